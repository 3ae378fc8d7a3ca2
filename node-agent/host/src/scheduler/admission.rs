//! Admission of a binding's requests: so many at once, so many that wait, the rest is turned away at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one binding.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// A request's place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// All places are taken and the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all places are taken and the queue is full")]
pub struct Full;

/// Counts one who waits, and counts it out again however the wait ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Admission {
    /// `concurrency` places, and a queue of `queue`.
    pub fn new(concurrency: u32, queue: u32) -> Self {
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self { places: Arc::new(Semaphore::new(size(concurrency))), waiting: AtomicUsize::new(0), queue: size(queue) }
    }

    /// Takes a place, at once or in the order of the queue.
    ///
    /// # Errors
    ///
    /// [`Full`], at once, when the queue is.
    pub async fn admit(&self) -> Result<Place, Full> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place(permit));
        }
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Relaxed) >= self.queue {
            return Err(Full);
        }
        let permit = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Full)?;
        drop(waiting);
        Ok(Place(permit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn some_are_let_in_some_wait_the_rest_is_turned_away() {
        let admission = Arc::new(Admission::new(1, 1));
        let first = admission.admit().await.unwrap();
        let second = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit().await }
        });
        while admission.waiting.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(admission.admit().await.unwrap_err(), Full);
        assert_eq!(admission.waiting.load(Relaxed), 1, "who is turned away does not count as waiting");
        drop(first);
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_queue() {
        let admission = Admission::new(1, 1);
        let _first = admission.admit().await.unwrap();
        {
            let mut second = std::pin::pin!(admission.admit());
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(admission.waiting.load(Relaxed), 0);
    }
}
