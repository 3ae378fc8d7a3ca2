//! The ticker: a thread that tells the engines once a tick that time has passed, and parks when no guest runs.
//!
//! It is a thread of its own and not a task, since guests must look up just when the runtimes are busy with them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

/// The time between two ticks. A stopped guest runs on for at most this long.
pub const TICK: Duration = Duration::from_millis(1);

/// Ticks without a running guest after which the thread parks: an idle node uses no CPU.
const PARK_AFTER: u32 = 100;

/// A running ticker. It ends when this is dropped.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// A guest ran since the last tick.
    touched: AtomicBool,
    parked: AtomicBool,
    ended: AtomicBool,
}

impl Ticker {
    /// Starts a thread that calls `tick` once a tick while guests run.
    ///
    /// # Errors
    ///
    /// A thread that cannot be started.
    pub fn start(mut tick: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let handle = thread::Builder::new().name("ticker".into()).spawn(move || of_thread.run(&mut tick))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Says that a guest is about to run.
    pub fn touch(&self) {
        // A store only when needed: this line is shared by all threads, and is written once a tick instead of at each poll.
        if !self.shared.touched.load(Ordering::Relaxed) {
            self.shared.touched.store(true, Ordering::SeqCst);
            if self.shared.parked.load(Ordering::SeqCst) {
                self.thread.unpark();
            }
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Shared {
    fn run(&self, tick: &mut impl FnMut()) {
        let mut quiet = 0;
        while !self.ended.load(Ordering::SeqCst) {
            if self.touched.swap(false, Ordering::SeqCst) {
                quiet = 0;
            } else {
                quiet += 1;
            }
            if quiet > PARK_AFTER {
                // First say that we park, then look once more: whoever touches after the look sees it and unparks.
                self.parked.store(true, Ordering::SeqCst);
                while !self.touched.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
            }
            thread::sleep(TICK);
            tick();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU32, time::Instant};

    use super::*;

    #[test]
    fn it_parks_when_nothing_runs_and_ticks_again_when_something_does() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let ticker = Ticker::start(move || _ = counted.fetch_add(1, Ordering::SeqCst)).unwrap();
        let until = |reached: &dyn Fn() -> bool| {
            let patience = Instant::now() + Duration::from_secs(20);
            while !reached() {
                assert!(Instant::now() < patience);
                thread::sleep(TICK);
            }
        };
        until(&|| ticker.shared.parked.load(Ordering::SeqCst));
        let before = count.load(Ordering::SeqCst);
        thread::sleep(20 * TICK);
        assert_eq!(count.load(Ordering::SeqCst), before);
        ticker.touch();
        until(&|| count.load(Ordering::SeqCst) > before + PARK_AFTER / 2);
        until(&|| ticker.shared.parked.load(Ordering::SeqCst));
    }
}
