//! The back: threads for guests that run for long. They give way to every other thread, and one more keeps the guests' floor.
//!
//! A thread that has become `SCHED_IDLE` cannot leave that class again without a privilege, and beside a busy program it gets next to
//! nothing. So no thread is ever lifted: one that stays ordinary takes guests in each window in which the others did not get
//! `FLOOR` done, until that is done. A thread that finds that it starves rests: the guest that it has in hand would starve with it.
//!
//! Guests take turns in one queue, tick by tick. It has no lock: a thread that the kernel does not run must not keep anybody waiting.

use std::{
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use async_task::Runnable;
use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::Handle;

use super::cores;
use crate::sys::{ThreadClass, lower_this_thread};

/// How often the back's share is looked at.
const WINDOW: Duration = Duration::from_millis(40);

/// How long of a window the threads that give way have before the ordinary one takes part.
const GRACE: Duration = Duration::from_millis(10);

/// One part in so many of a window's CPU time is the back's for sure.
const FLOOR: u32 = 20;

/// A turn that took longer by the wall than this, and in which the thread got less than its part of [`FLOOR`], was one of a thread
/// that starves.
const LONG_TURN: Duration = Duration::from_millis(20);

/// How long a thread that starves leaves guests to the ordinary one.
const REST: Duration = Duration::from_secs(2);

/// Where guests run that run for long.
#[derive(Debug)]
pub struct Back {
    queue: SegQueue<Runnable>,
    /// Counts what is in the queue, for the threads that wait for it.
    queued: OwnedFd,
    /// CPU time that guests used here, in microseconds.
    used: AtomicU64,
    /// Guests that want to run: they yielded at a tick, or have not run since they came.
    hungry: AtomicUsize,
    /// Becomes readable when somebody is hungry, for the ordinary thread.
    hunger: OwnedFd,
    ended: AtomicBool,
}

/// Whether one guest at the back wants to run.
#[derive(Debug)]
pub struct Hunger {
    back: Arc<Back>,
    hungry: bool,
}

impl Back {
    /// Starts a thread of `class` for each core, and the ordinary one. Timers and sockets of guests are `front`'s.
    ///
    /// # Errors
    ///
    /// Threads that cannot be started.
    pub fn start(class: ThreadClass, front: &Handle) -> io::Result<Arc<Self>> {
        let event = |flags| eventfd(0, flags | EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let back = Arc::new(Self::new(event(EventfdFlags::SEMAPHORE)?, event(EventfdFlags::empty())?));
        for _ in 0..cores() {
            back.start_thread("back", front, move |back| {
                if let Err(error) = lower_this_thread(class) {
                    tracing::error!(%error, ?class, "back: a thread cannot be lowered, so long guests will delay short ones");
                }
                back.work();
            })?;
        }
        back.start_thread("back-floor", front, |back| back.keep_the_floor())?;
        Ok(back)
    }

    fn new(queued: OwnedFd, hunger: OwnedFd) -> Self {
        let (used, hungry, ended) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        Self { queue: SegQueue::new(), queued, used, hungry, hunger, ended }
    }

    fn start_thread(
        self: &Arc<Self>,
        name: &str,
        front: &Handle,
        run: impl FnOnce(&Self) + Send + 'static,
    ) -> io::Result<()> {
        let (back, front) = (Arc::clone(self), front.clone());
        let within = move || {
            let _entered = front.enter();
            run(&back);
            // What still waits holds this: nobody else would free it.
            while back.queue.pop().is_some() {}
        };
        thread::Builder::new().name(name.into()).spawn(within).map(drop)
    }

    /// Runs `guest` here until it ends.
    pub fn spawn(self: &Arc<Self>, guest: impl Future<Output = ()> + Send + 'static) {
        let back = Arc::clone(self);
        let (runnable, task) = async_task::spawn(guest, move |runnable| back.push(runnable));
        task.detach();
        runnable.schedule();
    }

    /// A guest that comes to the back wants to run.
    pub fn enter(self: &Arc<Self>) -> Hunger {
        self.add_hungry();
        Hunger { back: Arc::clone(self), hungry: true }
    }

    /// Ends the threads, when each has ended its turn.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
        signal(&self.queued, cores() as u64);
        signal(&self.hunger, 1);
    }

    fn push(&self, runnable: Runnable) {
        self.queue.push(runnable);
        signal(&self.queued, 1);
    }

    fn add_hungry(&self) {
        if self.hungry.fetch_add(1, Relaxed) == 0 {
            signal(&self.hunger, 1);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    fn work(&self) {
        loop {
            wait(&self.queued);
            if self.has_ended() {
                return;
            }
            let Some(runnable) = self.queue.pop() else { continue };
            let (began, cpu_before) = (Instant::now(), thread_time());
            take_turn(runnable);
            if starved(began.elapsed(), thread_time().saturating_sub(cpu_before)) {
                thread::sleep(REST);
            }
        }
    }

    fn keep_the_floor(&self) {
        let floor = floor(cores());
        while !self.has_ended() {
            wait(&self.hunger);
            while self.hungry.load(Relaxed) > 0 && !self.has_ended() {
                self.one_window(floor);
            }
        }
    }

    /// Takes part in one window, if the others did not get enough done.
    fn one_window(&self, floor: u64) {
        let (began, before) = (Instant::now(), self.used.load(Relaxed));
        thread::sleep(GRACE);
        while self.used.load(Relaxed).saturating_sub(before) < floor && began.elapsed() < WINDOW {
            let Some(runnable) = self.queue.pop() else { break };
            take_turn(runnable);
        }
        thread::sleep(WINDOW.saturating_sub(began.elapsed()));
    }
}

/// Whether a thread starves that had so much CPU time in a turn that took so long.
fn starved(took: Duration, cpu: Duration) -> bool {
    took > LONG_TURN && cpu * FLOOR < took
}

/// The CPU time of the calling thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The CPU time of a window that is the back's for sure, in microseconds.
fn floor(cores: usize) -> u64 {
    let all = WINDOW * u32::try_from(cores).unwrap_or(1);
    u64::try_from((all / FLOOR).as_micros()).unwrap_or(u64::MAX)
}

/// A panic costs the one guest, whose future drops while it unwinds.
fn take_turn(runnable: Runnable) {
    _ = catch_unwind(AssertUnwindSafe(|| runnable.run()));
}

fn signal(event: &OwnedFd, count: u64) {
    // It fails only when 2^64 signals wait.
    _ = rustix::io::write(event, &count.to_ne_bytes());
}

fn wait(event: &OwnedFd) {
    let mut count = [0; 8];
    _ = rustix::io::retry_on_intr(|| rustix::io::read(event, &mut count));
}

impl Hunger {
    /// The guest ran for so long; whether it yielded and wants to run on.
    pub fn ran(&mut self, used: Duration, wants_more: bool) {
        self.back.used.fetch_add(u64::try_from(used.as_micros()).unwrap_or(0), Relaxed);
        match (self.hungry, wants_more) {
            (false, true) => self.back.add_hungry(),
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn unstarted() -> Arc<Back> {
        let event = |flags| eventfd(0, flags | EventfdFlags::CLOEXEC).unwrap();
        Arc::new(Back::new(event(EventfdFlags::SEMAPHORE), event(EventfdFlags::NONBLOCK)))
    }

    #[test]
    fn a_guest_is_hungry_until_it_waits_or_ends() {
        let back = unstarted();
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
    fn the_floor_is_a_twentieth_of_all_cores() {
        assert_eq!((floor(1), floor(2), floor(16)), (2_000, 4_000, 32_000));
    }

    /// A guest that uses `turns` milliseconds, one a turn.
    async fn spin(mut hunger: Hunger, turns: u32, done: mpsc::Sender<()>) {
        for _ in 0..turns {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(1) {}
            hunger.ran(began.elapsed(), true);
            yield_once().await;
        }
        drop(hunger);
        _ = done.send(());
    }

    async fn yield_once() {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
    }

    #[test]
    fn the_ordinary_thread_alone_takes_its_share_and_no_more() {
        let back = unstarted();
        let (done, ended) = mpsc::channel();
        back.spawn(spin(back.enter(), 60, done));
        (0..3).for_each(|_| back.one_window(4_000));
        let used = back.used.load(Relaxed);
        // Turns are measured by the wall here: on a busy machine they are longer.
        assert!((3 * 4_000..).contains(&used), "{used} µs in three windows of which 4,000 each are the back's");
        assert!(ended.try_recv().is_err(), "it has a share, not all of the windows");
    }

    #[test]
    fn a_thread_starves_that_gets_less_than_the_floor() {
        let ms = Duration::from_millis;
        assert!(starved(ms(300), ms(1)));
        assert!(!starved(ms(10), ms(0)), "a short wait says nothing");
        assert!(!starved(ms(100), ms(6)), "it has more than a twentieth");
    }

    #[test]
    fn what_comes_to_the_back_ends_and_a_panic_costs_itself_only() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let back = Back::start(ThreadClass::Idle, runtime.handle()).unwrap();
        let (done, ended) = mpsc::channel();
        back.spawn(async { panic!("a guest's future that panics") });
        for _ in 0..3 {
            back.spawn(spin(back.enter(), 5, done.clone()));
        }
        let sleeping = done.clone();
        back.spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            _ = sleeping.send(());
        });
        for _ in 0..4 {
            ended.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        assert_eq!(back.hungry.load(Relaxed), 0);
        back.end();
    }
}
