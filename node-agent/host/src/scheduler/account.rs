//! Accounts: how much CPU time each binding used of late, and whether that is more than its fair share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How long "of late" is.
const WINDOW: Duration = Duration::from_millis(100);

/// What all accounts share: time in windows, and how many accounts were active in the last one.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    cores: u32,
    /// Accounts that were charged something.
    active: Paced,
}

/// A binding's account.
#[derive(Debug)]
pub struct Account {
    window: Arc<Window>,
    /// Microseconds of CPU time.
    used: Paced,
}

/// A sum for the current window and one for the window before, without a lock. A charge that comes in while a window turns may
/// be lost: it is one of thousands.
#[derive(Debug, Default)]
struct Paced {
    /// The window's number in the upper half, its sum in the lower.
    now: AtomicU64,
    before: AtomicU64,
}

impl Paced {
    /// Adds to the current window; true if that is the first since it began.
    fn add(&self, window: u32, amount: u32) -> bool {
        let fresh = self.turn(window);
        self.now.fetch_add(u64::from(amount), Relaxed);
        fresh
    }

    fn turn(&self, window: u32) -> bool {
        let seen = self.now.load(Relaxed);
        if number(seen) == window {
            return false;
        }
        let next = u64::from(window) << 32;
        let turned = self.now.compare_exchange(seen, next, Relaxed, Relaxed).is_ok();
        if turned {
            let adjacent = number(seen).wrapping_add(1) == window;
            self.before.store(if adjacent { u64::from(sum(seen)) } else { 0 }, Relaxed);
        }
        turned
    }

    /// The sums of this window and of the one before.
    fn sums(&self, window: u32) -> (u32, u32) {
        let seen = self.now.load(Relaxed);
        match window.wrapping_sub(number(seen)) {
            0 => (sum(seen), u32::try_from(self.before.load(Relaxed)).unwrap_or(u32::MAX)),
            1 => (0, sum(seen)),
            _ => (0, 0),
        }
    }
}

fn number(packed: u64) -> u32 {
    u32::try_from(packed >> 32).unwrap_or(u32::MAX)
}

fn sum(packed: u64) -> u32 {
    u32::try_from(packed & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

impl Window {
    /// For a process with so many cores.
    pub fn new(cores: usize) -> Self {
        Self { start: Instant::now(), cores: u32::try_from(cores).unwrap_or(1), active: Paced::default() }
    }

    /// The current window's number, from 1 on, and how many microseconds of it have passed.
    fn at(&self, now: Instant) -> (u32, u32) {
        let micros = now.saturating_duration_since(self.start).as_micros();
        let window = WINDOW.as_micros();
        (u32::try_from(micros / window + 1).unwrap_or(u32::MAX), u32::try_from(micros % window).unwrap_or(0))
    }
}

impl Account {
    /// An account with nothing charged.
    pub fn new(window: Arc<Window>) -> Self {
        Self { window, used: Paced::default() }
    }

    /// Charges CPU time.
    pub fn charge(&self, used: Duration) {
        self.charge_at(Instant::now(), used);
    }

    /// Whether this binding used more than its fair share of the last 100 ms. Alone, it may have all there is.
    pub fn above_fair_share(&self) -> bool {
        self.above_fair_share_at(Instant::now())
    }

    fn charge_at(&self, now: Instant, used: Duration) {
        let (window, _) = self.window.at(now);
        if self.used.add(window, u32::try_from(used.as_micros()).unwrap_or(u32::MAX)) {
            self.window.active.add(window, 1);
        }
    }

    fn above_fair_share_at(&self, now: Instant) -> bool {
        let (window, passed) = self.window.at(now);
        let (active_now, active_before) = self.window.active.sums(window);
        let active = active_now.max(active_before);
        if active < 2 {
            return false;
        }
        let (this, before) = self.used.sums(window);
        let whole = u64::try_from(WINDOW.as_micros()).unwrap_or(u64::MAX);
        let still_counts = u64::from(before) * (whole - u64::from(passed)) / whole;
        u64::from(this) + still_counts > whole * u64::from(self.window.cores) / u64::from(active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn alone_a_binding_may_have_everything() {
        let window = Arc::new(Window::new(2));
        let (start, only) = (window.start, Account::new(Arc::clone(&window)));
        only.charge_at(start, 190 * MS);
        assert!(!only.above_fair_share_at(start + 99 * MS));
    }

    #[test]
    fn among_others_each_has_its_share_and_the_past_fades() {
        let window = Arc::new(Window::new(2));
        let start = window.start;
        let [hog, victim] = [(); 2].map(|()| Account::new(Arc::clone(&window)));
        victim.charge_at(start, MS);
        hog.charge_at(start, 99 * MS);
        assert!(!hog.above_fair_share_at(start), "two cores of 100 ms for two");
        hog.charge_at(start, 80 * MS);
        assert!(hog.above_fair_share_at(start + 50 * MS));
        assert!(!victim.above_fair_share_at(start + 50 * MS));
        assert!(hog.above_fair_share_at(start + 110 * MS), "nine tenths of the last window count");
        assert!(!hog.above_fair_share_at(start + 160 * MS), "four tenths do not make a share");
        assert!(!hog.above_fair_share_at(start + 1_000 * MS));
    }
}
