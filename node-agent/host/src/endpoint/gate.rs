//! Whether a binding's pod may have its component, as control has said. It is small: there are thousands of them.

use std::sync::{Mutex, PoisonError};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::problem::Problem;
use crate::catalog::told::Verdict;

#[derive(Debug, Default)]
pub(super) struct Gate {
    verdict: Mutex<Verdict>,
    changed: Notify,
}

impl Gate {
    pub(super) fn new(verdict: Verdict) -> Self {
        Self { verdict: Mutex::new(verdict), changed: Notify::new() }
    }

    pub(super) fn set(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
        self.changed.notify_waiters();
    }

    /// Whether anybody has said.
    pub(super) fn is_said(&self) -> bool {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) != Verdict::Unsaid
    }

    /// Lets a request through, or not; waits until somebody has said.
    pub(super) async fn pass(&self, by: Instant) -> Result<(), Problem> {
        loop {
            let changed = self.changed.notified();
            // Looked at after the ear is open: nothing is missed.
            match &*self.verdict.lock().unwrap_or_else(PoisonError::into_inner) {
                Verdict::Served => return Ok(()),
                Verdict::NotAllowed(why) => return Err(Problem::NotAllowed(why.clone())),
                Verdict::Unavailable(why) => return Err(Problem::Unavailable(why.clone())),
                Verdict::Unsaid => {}
            }
            timeout_at(by, changed).await.map_err(|_| Problem::Untold)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_request_waits_until_somebody_has_said() {
        let gate = Arc::new(Gate::new(Verdict::Unsaid));
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(gate.pass(soon).await, Err(Problem::Untold));
        let waiting = Arc::clone(&gate);
        let waiting = tokio::spawn(async move { waiting.pass(Instant::now() + Duration::from_secs(10)).await });
        tokio::task::yield_now().await;
        gate.set(Verdict::Served);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        gate.set(Verdict::NotAllowed("no".into()));
        assert_eq!(gate.pass(soon).await, Err(Problem::NotAllowed("no".into())));
    }
}
