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
    /// The poll that runs on this thread.
    static POLL: Cell<Option<Poll>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Poll {
    began: Instant,
    /// A reading of the thread's clock, and when it was taken: never more than a tick before the poll began.
    read_at: Instant,
    read: Duration,
}

/// This thread's CPU time.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// Begins a poll on this thread.
pub fn begin() {
    let began = Instant::now();
    let fresh = POLL.get().filter(|last| began.saturating_duration_since(last.read_at) < TICK);
    let poll = fresh.map_or_else(|| Poll { began, read_at: began, read: thread_time() }, |last| Poll { began, ..last });
    POLL.set(Some(poll));
}

/// CPU time of the poll that began last on this thread.
pub fn used() -> Duration {
    let Some(poll) = POLL.get() else { return Duration::ZERO };
    let passed = poll.began.elapsed();
    if passed < TICK { passed } else { passed.min(thread_time().saturating_sub(poll.read)) }
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
        begin();
        sleep(20 * TICK);
        assert!(used() < 5 * TICK, "{:?}", used());
        compute(6 * TICK);
        assert!(used() >= 6 * TICK, "{:?}", used());
        assert!(used() < 20 * TICK, "what was slept is not charged later");
    }

    #[test]
    fn what_the_thread_did_before_is_charged_for_a_tick_at_most() {
        begin();
        compute(10 * TICK);
        begin();
        sleep(2 * TICK);
        assert!(used() < TICK + TICK / 2, "{:?}", used());
    }
}
