//! The back's floor: guests that run for long keep 5% of the CPU when short ones saturate it.
//!
//! `SCHED_IDLE` threads get next to nothing beside a busy front. So, in each window in which the back is hungry and got less than
//! its floor, one of its threads runs as an ordinary one until it has caught up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::cores;
use crate::sys::{ThreadClass, set_thread_class};

/// How often the back's share is looked at.
const WINDOW: Duration = Duration::from_millis(100);

/// One part in so many of a window's CPU time is the back's for sure.
const FLOOR: u32 = 20;

/// What the back's threads tell.
#[derive(Debug, Default)]
pub struct Back {
    /// CPU time that guests used at the back, in microseconds.
    used: AtomicU64,
    /// Guests there that want to run: they yielded at a tick, or have not run since they came.
    hungry: AtomicUsize,
}

/// Whether one guest at the back wants to run.
#[derive(Debug)]
pub struct Hunger {
    back: Arc<Back>,
    hungry: bool,
}

impl Back {
    /// A guest that comes to the back wants to run.
    pub fn enter(self: &Arc<Self>) -> Hunger {
        self.hungry.fetch_add(1, Relaxed);
        Hunger { back: Arc::clone(self), hungry: true }
    }
}

impl Hunger {
    /// The guest ran for so long; whether it yielded and wants to run on.
    pub fn ran(&mut self, used: Duration, wants_more: bool) {
        self.back.used.fetch_add(u64::try_from(used.as_micros()).unwrap_or(0), Relaxed);
        match (self.hungry, wants_more) {
            (false, true) => _ = self.back.hungry.fetch_add(1, Relaxed),
            (true, false) => _ = self.back.hungry.fetch_sub(1, Relaxed),
            _ => {}
        }
        self.hungry = wants_more;
    }
}

impl Drop for Hunger {
    fn drop(&mut self) {
        self.ran(Duration::ZERO, false);
    }
}

/// Watches the back and lifts one of its threads when it starves. Driven by the ticker.
#[derive(Debug)]
pub struct Floor {
    back: Arc<Back>,
    threads: Arc<Mutex<Vec<i32>>>,
    state: State,
}

#[derive(Debug)]
struct State {
    window_began: Instant,
    used_before: u64,
    floor: u64,
    lifted: bool,
}

impl State {
    /// Whether a thread should be lifted now. `used` is all the CPU time that the back ever used, in microseconds.
    fn decide(&mut self, now: Instant, used: u64, hungry: bool) -> bool {
        let in_window = used.saturating_sub(self.used_before);
        let over = now.saturating_duration_since(self.window_began) >= WINDOW;
        self.lifted = match (self.lifted, over) {
            (true, _) => in_window < self.floor && hungry,
            (false, true) => in_window < self.floor && hungry,
            (false, false) => false,
        };
        if over {
            self.window_began = now;
            self.used_before = used;
        }
        self.lifted
    }
}

impl Floor {
    /// For a back with these threads.
    pub fn new(back: Arc<Back>, threads: Arc<Mutex<Vec<i32>>>) -> Self {
        let window = u64::try_from(WINDOW.as_micros()).unwrap_or(0) * u64::try_from(cores()).unwrap_or(1);
        let state =
            State { window_began: Instant::now(), used_before: 0, floor: window / u64::from(FLOOR), lifted: false };
        Self { back, threads, state }
    }

    /// Looks once; called at every tick.
    pub fn tick(&mut self, now: Instant) {
        let was = self.state.lifted;
        let hungry = self.back.hungry.load(Relaxed) > 0;
        let lifted = self.state.decide(now, self.back.used.load(Relaxed), hungry);
        if was == lifted {
            return;
        }
        let class = if lifted { ThreadClass::Normal } else { ThreadClass::Idle };
        let first = self.threads.lock().unwrap_or_else(PoisonError::into_inner).first().copied();
        if let Some(thread) = first
            && let Err(error) = set_thread_class(thread, class)
        {
            tracing::error!(%error, thread, ?class, "a back thread cannot change its class");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_hungry_until_it_waits_or_ends() {
        let back = Arc::new(Back::default());
        let (mut first, second) = (back.enter(), back.enter());
        assert_eq!(back.hungry.load(Relaxed), 2, "they have not run yet");
        first.ran(Duration::from_millis(1), true);
        drop(second);
        assert_eq!(back.hungry.load(Relaxed), 1);
        first.ran(Duration::from_millis(1), false);
        assert_eq!((back.hungry.load(Relaxed), back.used.load(Relaxed)), (0, 2_000));
        drop(first);
        assert_eq!(back.hungry.load(Relaxed), 0);
    }

    #[test]
    fn only_a_hungry_back_below_its_floor_is_lifted_and_only_until_it_caught_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut state = State { window_began: start, used_before: 0, floor: 5_000, lifted: false };
        assert!(!state.decide(at(50), 0, true), "the window is not over");
        assert!(!state.decide(at(100), 6_000, true), "it had its share");
        assert!(!state.decide(at(200), 6_100, false), "it wants nothing");
        assert!(state.decide(at(300), 6_200, true), "it starves");
        assert!(state.decide(at(301), 7_200, true));
        assert!(!state.decide(at(305), 11_300, true), "it caught up");
        assert!(!state.decide(at(350), 11_300, true), "until the next window");
    }
}
