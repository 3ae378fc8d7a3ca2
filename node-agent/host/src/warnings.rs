//! Warnings about what callers and guests bring about: so many in a time, since anybody can cause them; the others are counted.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// This many are written in each such time.
const MOST: u32 = 20;
const EACH: Duration = Duration::from_secs(10);

/// What was told of one source of warnings. It is small: there are thousands of them.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Warnings {
    /// Whether one more may be written, and then how many were left out since the last one that was.
    pub fn take(&self) -> Option<Untold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()).map(Untold)
    }
}

/// Warnings that were left out.
#[derive(Clone, Copy, Debug)]
pub struct Untold(u64);

impl Untold {
    /// How many, if there were any.
    pub fn count(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
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
