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

    /// Lets a request through, or not; `None` while nobody has said.
    pub(super) fn pass(&self) -> Option<Result<(), Problem>> {
        match &*self.verdict.lock().unwrap_or_else(PoisonError::into_inner) {
            Verdict::Served => Some(Ok(())),
            Verdict::NotAllowed(why) => Some(Err(Problem::NotAllowed(why.clone()))),
            Verdict::Unavailable(why) => Some(Err(Problem::Unavailable(why.clone()))),
            Verdict::Unsaid => None,
        }
    }

    /// The same, once somebody has said.
    pub(super) async fn pass_later(&self, by: Instant) -> Result<(), Problem> {
        loop {
            let changed = self.changed.notified();
            // Looked at after the ear is open: nothing is missed.
            if let Some(passed) = self.pass() {
                return passed;
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
        assert_eq!(gate.pass(), None);
        assert_eq!(gate.pass_later(soon).await, Err(Problem::Untold));
        let waiting = Arc::clone(&gate);
        let waiting = tokio::spawn(async move { waiting.pass_later(Instant::now() + Duration::from_secs(10)).await });
        tokio::task::yield_now().await;
        gate.set(Verdict::Served);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        gate.set(Verdict::NotAllowed("no".into()));
        assert_eq!(gate.pass_later(soon).await, Err(Problem::NotAllowed("no".into())));
    }
}
