//! How much CPU time a poll uses, at the price of two looks at a clock that needs no system call.
//!
//! The kernel's clock of a thread's CPU time needs one, and two of them are a tenth of what a small request costs. So a poll is timed
//! by the wall, and only one that lasts for a tick or longer by the thread's own clock: what is charged is never more than the time
//! that passed, and for longer polls at most one tick more than the thread computed.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::ticker::TICK;

thread_local! {
    /// The last reading of this thread's clock, and when it was taken; never more than a tick before the current poll began.
    static LAST: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// This thread's CPU time.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// Begins a poll on this thread: when it began.
pub fn begin() -> Instant {
    let now = Instant::now();
    let fresh = LAST.get().is_some_and(|(read, _)| now.saturating_duration_since(read) < TICK);
    if !fresh {
        LAST.set(Some((now, thread_time())));
    }
    now
}

/// CPU time of the poll that began on this thread at `began`, so far.
pub fn used_since(began: Instant) -> Duration {
    let passed = began.elapsed();
    match LAST.get() {
        Some((_, before)) if passed >= TICK => passed.min(thread_time().saturating_sub(before)),
        _ => passed,
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    /// Computes until the wall says so and the thread's own clock too.
    fn compute(time: Duration) {
        let (began, before) = (Instant::now(), thread_time());
        while began.elapsed() < time || thread_time() - before < time {}
    }

    #[test]
    fn time_asleep_does_not_count_and_time_computing_does() {
        let began = begin();
        sleep(20 * TICK);
        assert!(used_since(began) < 5 * TICK, "{:?}", used_since(began));
        compute(6 * TICK);
        assert!(used_since(began) >= 6 * TICK, "{:?}", used_since(began));
        assert!(used_since(began) < 20 * TICK, "what was slept is not charged later");
    }

    #[test]
    fn what_the_thread_did_before_is_charged_for_a_tick_at_most() {
        begin();
        compute(10 * TICK);
        let began = begin();
        sleep(2 * TICK);
        assert!(used_since(began) < TICK + TICK / 2, "{:?}", used_since(began));
    }
}
