//! Nothing that was handed to a connection is lost when what comes next is an error.
//!
//! hyper drops what it has not written yet when a body fails: the head of HTTP/1, the frames of an HTTP/2 stream. So a body fails only
//! after what came before is on its way.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::time::Sleep;

/// HTTP/2 writes for all streams at once, by a task of its own that has nothing to write by then, or is about to.
const MULTIPLEXED: Duration = Duration::from_millis(20);

/// Counts how often all that a connection had to write was written.
#[derive(Debug, Default)]
pub struct Flushes {
    count: AtomicU64,
    /// HTTP/1 has one body at a time.
    waker: AtomicWaker,
}

/// The wait of a body that is to fail.
#[derive(Debug)]
pub enum Flushed {
    /// For the next flush of an HTTP/1 connection: its task flushes whenever it has asked a body.
    Next(Arc<Flushes>, Option<u64>),
    /// For a time.
    Later(Option<Pin<Box<Sleep>>>),
}

impl Flushes {
    /// All is written.
    pub fn done(&self) {
        self.count.fetch_add(1, SeqCst);
        self.waker.wake();
    }
}

impl Flushed {
    /// For a body of a connection with these flushes.
    pub fn new(flushes: &Arc<Flushes>, multiplexed: bool) -> Self {
        if multiplexed { Self::Later(None) } else { Self::Next(Arc::clone(flushes), None) }
    }

    /// Ready once what came before the first call is written.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Next(flushes, before) => {
                flushes.waker.register(cx.waker());
                let now = flushes.count.load(SeqCst);
                if now > *before.get_or_insert(now) { Poll::Ready(()) } else { Poll::Pending }
            }
            Self::Later(sleep) => {
                sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(MULTIPLEXED))).as_mut().poll(cx)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_fails_after_the_next_flush_and_not_before() {
        let flushes = Arc::new(Flushes::default());
        flushes.done();
        let mut wait = Flushed::new(&flushes, false);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(wait.poll(&mut cx).is_pending());
        assert!(wait.poll(&mut cx).is_pending());
        flushes.done();
        assert!(wait.poll(&mut cx).is_ready());
    }
}
