//! So much in a time: a token bucket.

use std::time::Instant;

/// How much may be taken.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// For long.
    pub per_second: f64,
    /// At once, after nothing was taken for a time.
    pub burst: f64,
}

/// What may be taken now.
#[derive(Debug)]
pub struct Allowance {
    rate: Rate,
    left: f64,
    filled: Instant,
}

impl Allowance {
    /// A whole burst.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, filled: now }
    }

    /// Whether so much may be taken now.
    pub fn has(&mut self, amount: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * self.rate.per_second).min(self.rate.burst);
        self.filled = now;
        self.left >= amount
    }

    /// Takes it.
    pub fn take(&mut self, amount: f64) {
        self.left -= amount;
    }

    /// Whether less than half of the burst is left.
    pub fn is_low(&self) -> bool {
        self.left < self.rate.burst / 2.0
    }

    /// Whether nothing was taken for so long that it is as it was made.
    pub fn is_whole(&mut self, now: Instant) -> bool {
        self.has(self.rate.burst, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_what_comes_in_time_may_be_taken() {
        let start = Instant::now();
        let mut allowance = Allowance::new(Rate { per_second: 100.0, burst: 200.0 }, start);
        let mut take = |now| allowance.has(1.0, now).then(|| allowance.take(1.0)).is_some();
        assert_eq!((0..1_000).filter(|_| take(start)).count(), 200);
        assert!(take(start + Duration::from_millis(15)));
        assert!(!take(start + Duration::from_millis(15)));
        assert!(allowance.is_low() && !allowance.is_whole(start + Duration::from_millis(1_500)));
        assert!(allowance.is_whole(start + Duration::from_secs(3)));
    }
}
