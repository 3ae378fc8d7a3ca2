//! How requests ended that did not end well: a warning each, within bounds. Otherwise their callers alone would know.

use super::{Endpoint, problem::Problem};
use crate::{
    log::tell,
    scheduler::run::{End, Run, Stop},
};

/// Why a run's end is worth a warning, in a word and in a sentence. Callers that go away, and what they send, are nobody's fault here.
fn failure(run: &Run) -> Option<(&'static str, String)> {
    match run.failure()? {
        End::Stopped(Stop::CallerGone | Stop::BrokenBody) => None,
        End::Stopped(Stop::Linger) => {
            Some(("linger-timeout", "see spec.limits.lingerTimeout of the component".to_owned()))
        }
        end => {
            let problem = Problem::from(end);
            Some((problem.reason(), problem.detail()))
        }
    }
}

impl Endpoint {
    /// Tells how a request ended.
    pub(super) fn tell(&self, reason: &str, cause: &str) {
        let Some(untold) = self.warnings.take() else { return };
        tell!(WARN, &self.origin, reason, cause, untold = untold.count(), "request failed");
    }
}

/// Tells how a run ended, if it did not end well, when its guest is gone.
pub(super) struct TellEnd {
    pub(super) endpoint: std::sync::Arc<Endpoint>,
    pub(super) run: std::sync::Arc<Run>,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        if let Some((reason, cause)) = failure(&self.run) {
            self.endpoint.tell(reason, &cause);
        }
    }
}
