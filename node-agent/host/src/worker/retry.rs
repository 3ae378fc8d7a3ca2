//! When what could not be pulled is tried again.

use std::time::{Duration, Instant};

/// How often something failed in a row, and when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    failures: u32,
    pub(super) at: Instant,
}

/// After the first failure, and at most.
const RETRY: Duration = Duration::from_secs(10);
const RETRY_AT_MOST: Duration = Duration::from_secs(300);

impl Retry {
    /// After one more failure, at `now`.
    pub(super) fn after(before: Option<Self>, now: Instant) -> Self {
        let failures = before.map_or(0, |retry| retry.failures).saturating_add(1);
        let pause = RETRY.saturating_mul(1 << (failures - 1).min(16)).min(RETRY_AT_MOST);
        Self { failures, at: now + pause }
    }
}
