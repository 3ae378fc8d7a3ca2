//! How requests ended that did not end well: a warning each, within bounds. Otherwise their callers alone would know.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Endpoint, problem::Problem};
use crate::scheduler::run::{End, Run, Stop};

/// Of one binding, this many warnings are written in each such time; the others are counted.
const MOST: u32 = 20;
const EACH: Duration = Duration::from_secs(10);

/// What one binding has told. It is small: there are thousands of them.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Told {
    /// How many were not told since the last one that was; `None`: this one is not told, either.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= EACH) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told == MOST {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

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
        let Some(untold) = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) else {
            return;
        };
        let pod = self.pod.as_ref();
        let (namespace, pod) = pod.map(|pod| (pod.namespace.as_str(), pod.name.as_str())).unzip();
        let (component, binding) = (self.component.name.as_str(), self.binding.as_str());
        let untold = (untold > 0).then_some(untold);
        tracing::warn!(namespace, pod, component, binding, reason, cause, untold, "request failed");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_and_what_is_left_out_is_counted() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!((0..MOST).all(|_| told.take(now) == Some(0)));
        assert_eq!((told.take(now), told.take(now)), (None, None));
        assert_eq!(told.take(now + EACH), Some(2));
        assert_eq!(told.take(now + EACH), Some(0));
    }
}
