//! The waits that nobody else notices: a caller that takes nothing more, a guest that goes on after its answer, a whole request.
//!
//! They are watched where the guest waits, since a connection that cannot write does not ask its bodies for anything. A guest
//! that ends without waiting costs no timer.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::{
    GuestFuture,
    run::{Run, Stop},
};

/// How long each wait may be.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For the caller to take what is there.
    pub idle: Duration,
    /// From the answer's last byte to the guest's end.
    pub linger: Duration,
    /// When the whole request is over.
    pub total: Option<Instant>,
}

/// Runs a guest, and stops its run when a wait is too long. The stop ends this future from outside, so that the end is recorded
/// before the guest's store is dropped.
pub struct Watched {
    guest: GuestFuture,
    run: Arc<Run>,
    waits: Waits,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    /// Watches the waits of `guest`.
    pub fn new(guest: GuestFuture, run: Arc<Run>, waits: Waits) -> Self {
        Self { guest, run, waits, sleep: None }
    }
}

/// The wait that ends first, if there is one now.
fn next(run: &Run, waits: &Waits) -> Option<(Instant, Stop)> {
    let untaken = run.untaken_since().map(|since| (since + waits.idle, Stop::IdleTimeout));
    let lingering = run.delivered_at().map(|since| (since + waits.linger, Stop::Linger));
    let total = waits.total.map(|end| (end, Stop::TotalTimeout));
    [untaken, lingering, total].into_iter().flatten().min_by_key(|(end, _)| *end)
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { guest, run, waits, sleep } = &mut *self;
        if guest.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some((end, stop)) = next(run, waits) {
            if end <= Instant::now() {
                run.stop(stop);
                break;
            }
            let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            if sleep.deadline() != end {
                sleep.as_mut().reset(end);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_wait_that_ends_first_stops_the_run() {
        let run = Arc::new(Run::new(pillion_protocol::digest::Digest::from_sha256([0; 32]), Duration::from_secs(1)));
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let waits = Waits { idle: 30 * second, linger: second / 20, total: Some(began + 60 * second) };
        let stop = || next(&run, &waits).map(|(_, stop)| stop);
        assert_eq!(stop(), Some(Stop::TotalTimeout));
        run.handed_over();
        assert_eq!(stop(), Some(Stop::IdleTimeout));
        run.asked_for_more();
        assert_eq!(stop(), Some(Stop::TotalTimeout));
        run.delivered();
        assert_eq!(stop(), Some(Stop::Linger));
        let watched = Watched::new(Box::pin(std::future::pending()), Arc::clone(&run), waits);
        assert!(tokio::time::timeout(second / 5, watched).await.is_err(), "it is ended from outside");
        assert_eq!(run.stopped(), Some(Stop::Linger));
        assert!(Instant::now() >= began + waits.linger);
    }
}
