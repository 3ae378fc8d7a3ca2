//! One request's run: its CPU time, how it is stopped, how it ended.
//!
//! Shared by the guest's future, its epoch callback, the connection that waits for the response, and the response's body. How a
//! run ended is recorded before its store is dropped, since the drop is what the others see first.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use futures::task::AtomicWaker;
use pillion_protocol::digest::Digest;
use tokio::time::Instant;
use wasmtime::UpdateDeadline;

use super::{clock, culprit::Running, ticker::TICK};

/// CPU time after which a guest leaves the front. Never less than two ticks: the first tick can come right after the start.
pub const QUANTUM: Duration = Duration::from_millis(5);

const _: () = assert!(QUANTUM.as_millis() >= 2 * TICK.as_millis());

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest returned.
    Returned,
    /// The guest trapped; the text says where.
    Trapped(String),
    /// The guest used its CPU time.
    CpuLimit,
    /// The guest ended after a growth that its memory limit denied.
    MemoryLimit,
    /// The node had no memory or no instance left for it.
    NodeLimit,
    /// The host stopped it.
    Stopped(Stop),
    /// The host failed.
    Host(&'static str),
}

/// Why the host stopped a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nobody waits for the response any more.
    CallerGone,
    /// No response head in time.
    HeadTimeout,
    /// A body stood still.
    IdleTimeout,
    /// The whole request took too long.
    TotalTimeout,
    /// It went on for too long after its response.
    Linger,
    /// The caller's body is malformed or broke off.
    BrokenBody,
}

/// Shared state of one run.
#[derive(Debug)]
pub struct Run {
    /// Which component runs.
    component: Digest,
    cpu_limit: u64,
    /// Nanoseconds of CPU time in finished polls.
    cpu_used: AtomicU64,
    outlived: AtomicBool,
    yielded: AtomicBool,
    /// Since when the caller has not asked for more of the answer, in milliseconds after `began`, and one; 0 while it asks.
    untaken_since: AtomicU64,
    delivered: OnceLock<Instant>,
    began: Instant,
    stop: OnceLock<Stop>,
    end: OnceLock<End>,
    waker: AtomicWaker,
}

/// What the epoch callback ends a guest with. It is never shown: [`Run`] knows why.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("the guest was stopped")]
    Stopped,
    #[error("the guest used its CPU time")]
    CpuLimit,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Run {
    /// A run of a component, that may use so much CPU time.
    pub fn new(component: Digest, cpu_limit: Duration) -> Self {
        Self {
            component,
            cpu_limit: nanos(cpu_limit),
            cpu_used: AtomicU64::new(0),
            outlived: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            untaken_since: AtomicU64::new(0),
            delivered: OnceLock::new(),
            began: Instant::now(),
            stop: OnceLock::new(),
            end: OnceLock::new(),
            waker: AtomicWaker::new(),
        }
    }

    /// Asks the guest to stop. One that waits ends now, one that runs at its next tick. The first reason stands.
    pub fn stop(&self, reason: Stop) {
        if self.end.get().is_none() && self.stop.set(reason).is_ok() {
            self.waker.wake();
        }
    }

    /// Records how the run ended. The first end stands; a stop that was asked for comes before what it caused.
    pub fn finish(&self, end: End) {
        let end = match (self.stop.get(), end) {
            (Some(&stop), End::Trapped(_) | End::Host(_)) => End::Stopped(stop),
            (_, end) => end,
        };
        _ = self.end.set(end);
    }

    /// How the run ended, if it has.
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Why the run was asked to stop, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    /// The run ended, and not by returning.
    pub fn failure(&self) -> Option<&End> {
        self.end().filter(|end| **end != End::Returned)
    }

    /// A part of the answer was handed to the connection.
    pub fn handed_over(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.untaken_since.store(millis + 1, Relaxed);
    }

    /// The connection has room again and asks for more of the answer.
    pub fn asked_for_more(&self) {
        self.untaken_since.store(0, Relaxed);
    }

    pub(super) fn untaken_since(&self) -> Option<Instant> {
        let millis = self.untaken_since.load(Relaxed).checked_sub(1)?;
        Some(self.began + Duration::from_millis(millis))
    }

    /// The answer's last byte was handed to the connection. From now on the guest lingers.
    pub fn delivered(&self) {
        self.asked_for_more();
        if self.delivered.set(Instant::now()).is_ok() {
            self.waker.wake();
        }
    }

    pub(super) fn delivered_at(&self) -> Option<Instant> {
        self.delivered.get().copied()
    }

    pub(super) fn wake_by(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn end_if_stopped(&self) -> bool {
        let stopped = self.stop.get();
        if let Some(&stop) = stopped {
            self.finish(End::Stopped(stop));
        }
        stopped.is_some()
    }

    /// Does one poll and gives its CPU time.
    pub(super) fn measure<T>(&self, poll: impl FnOnce() -> T) -> (T, Duration) {
        let _running = Running::new(self.component);
        clock::begin();
        let result = poll();
        let used = clock::used();
        self.cpu_used.fetch_add(nanos(used), Relaxed);
        (result, used)
    }

    pub(super) fn outlived_quantum(&self) -> bool {
        self.outlived.load(Relaxed)
    }

    /// Whether the last poll ended because the guest yielded at a tick: it wants to run on.
    pub(super) fn take_yielded(&self) -> bool {
        self.yielded.swap(false, Relaxed)
    }

    /// What a guest that is running does at a tick. Called on the thread that polls it.
    ///
    /// # Errors
    ///
    /// An error makes the guest trap: it was stopped, or used its CPU time.
    pub fn tick(&self) -> wasmtime::Result<UpdateDeadline> {
        if self.stop.get().is_some() {
            return Err(Interrupted::Stopped.into());
        }
        let used = self.cpu_used.load(Relaxed).saturating_add(nanos(clock::used()));
        if used > self.cpu_limit {
            self.finish(End::CpuLimit);
            return Err(Interrupted::CpuLimit.into());
        }
        if u128::from(used) >= QUANTUM.as_nanos() {
            self.outlived.store(true, Relaxed);
        }
        self.yielded.store(true, Relaxed);
        Ok(UpdateDeadline::Yield(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_stands() {
        let run = Run::new(Digest::from_sha256([0; 32]), Duration::from_secs(1));
        run.finish(End::CpuLimit);
        run.finish(End::Trapped("later".into()));
        assert_eq!(run.end(), Some(&End::CpuLimit));
        run.stop(Stop::CallerGone);
        assert!(run.stop.get().is_none(), "what has ended cannot be stopped");
    }

    #[test]
    fn a_stop_explains_the_trap_that_it_causes() {
        let run = Run::new(Digest::from_sha256([0; 32]), Duration::from_secs(1));
        run.stop(Stop::HeadTimeout);
        assert!(run.tick().is_err());
        run.finish(End::Trapped("interrupted".into()));
        assert_eq!(run.end(), Some(&End::Stopped(Stop::HeadTimeout)));
    }

    #[test]
    fn cpu_time_counts_and_time_asleep_does_not() {
        let run = Run::new(Digest::from_sha256([0; 32]), Duration::from_secs(1));
        let ((), asleep) = run.measure(|| std::thread::sleep(Duration::from_millis(400)));
        assert!(asleep < Duration::from_millis(200), "{asleep:?}");
        run.measure(|| {
            while clock::used() < Duration::from_millis(6) {}
            run.tick().map(|_| ()).unwrap();
        });
        assert!(run.outlived_quantum());
        assert!(run.cpu_used.load(Relaxed) >= 6_000_000);
    }

    #[test]
    fn who_uses_its_cpu_time_ends_at_the_next_tick() {
        let run = Run::new(Digest::from_sha256([0; 32]), Duration::from_millis(1));
        let (ticked, _) = run.measure(|| {
            while clock::used() < Duration::from_millis(2) {}
            run.tick().map(|_| ())
        });
        assert!(ticked.is_err());
        assert_eq!(run.end(), Some(&End::CpuLimit));
    }
}
