//! A timer for silence: how long something that is waited for may bring nothing. It costs nothing until there is a wait.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// The timer.
pub struct Idle {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    /// For silences of at most `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    /// Something came.
    pub fn reset(&mut self) {
        self.sleep = None;
    }

    /// Nothing came; ready when that has been so for too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + self.timeout)));
        sleep.as_mut().poll(cx)
    }
}
