//! When, where and how long guests run.
//!
//! A request is admitted ([`admission`], [`budget`]), then its guest is driven as a [`run::Run`]:
//!
//! 1. It starts on the connection's own runtime, the *front*. Most guests end there, within microseconds.
//! 2. One that uses up its first quantum ([`run::QUANTUM`]) moves to the [`back`]: as many threads as there are cores, which the kernel
//!    preempts for every front thread. So a short request never waits behind a long one.
//! 3. A binding that used more than its fair share of the last 100 ms starts at the back ([`account`]), so that a flood of short
//!    requests does not win by being short.
//! 4. The back keeps a floor of the CPU when the front, or another program, saturates it.
//!
//! The [`ticker`] makes running guests look up once a tick: at their CPU budget, at being stopped, at the quantum.
//!
//! The place of the fair queue between pods is the back: today its guests take turns tick by tick.

pub mod account;
pub mod admission;
pub mod back;
pub mod budget;
mod clock;
pub mod culprit;
pub mod run;
pub mod ticker;
pub mod watch;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
};

use tokio::runtime::Handle;

use self::{
    account::{Account, Window},
    back::{Back, Hunger},
    run::{End, Run},
    ticker::Ticker,
    watch::{Waits, Watched},
};
use crate::sys::ThreadClass;

/// The future of one guest: instantiates it, calls it, ends with its `Store` dropped.
pub type GuestFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The number of cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs guests.
pub struct Scheduler {
    front: Handle,
    back: Arc<Back>,
    /// Guests at the front that were interrupted by a tick: each takes a millisecond when its turn comes.
    ticked: Arc<AtomicUsize>,
    ticker: Ticker,
    window: Arc<Window>,
}

impl Scheduler {
    /// A scheduler whose guests start on `front`, whose ticks go to `tick`, and whose back threads are of the class `back`.
    ///
    /// # Errors
    ///
    /// Threads that cannot be started.
    pub fn new(front: Handle, back: ThreadClass, tick: impl Fn() + Send + 'static) -> io::Result<Self> {
        let back = Back::start(back, &front)?;
        let ticker = Ticker::start(tick)?;
        let (ticked, window) = (Arc::default(), Arc::new(Window::new(cores())));
        Ok(Self { front, back, ticked, ticker, window })
    }

    /// Lets everybody at the front who is ready go first, if that is a matter of microseconds.
    pub async fn after_others(&self) {
        if self.ticked.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// An account for a binding whose CPU time is to be measured and compared with others'.
    pub fn account(&self) -> Arc<Account> {
        Arc::new(Account::new(Arc::clone(&self.window)))
    }

    /// Starts `guest`, which may wait for so long. What becomes of it is told by `run`.
    pub fn start(self: &Arc<Self>, guest: GuestFuture, waits: Waits, run: Arc<Run>, account: Arc<Account>) {
        let above_share = account.above_fair_share();
        let guest = Watched::new(guest, Arc::clone(&run), waits);
        let driven = Driven { guest, run, account, scheduler: Arc::clone(self), place: Place::Front(None) };
        if above_share {
            self.spawn_at_the_back(driven);
        } else {
            self.front.spawn(driven.drive());
        }
    }

    fn spawn_at_the_back(&self, mut driven: Driven) {
        driven.place = Place::Back(self.back.enter());
        self.back.spawn(driven.drive());
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.back.end();
    }
}

/// A guest on its way over the threads. Every poll is measured and charged.
struct Driven {
    guest: Watched,
    run: Arc<Run>,
    account: Arc<Account>,
    scheduler: Arc<Scheduler>,
    place: Place,
}

/// Where a guest runs.
enum Place {
    /// At the front; counted once a tick has interrupted it.
    Front(Option<Ticked>),
    /// At the back.
    Back(Hunger),
}

/// Counts a guest at the front that was interrupted by a tick.
struct Ticked(Arc<AtomicUsize>);

impl Ticked {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Ticked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Driven {
    async fn drive(mut self) {
        let ended = std::future::poll_fn(|cx| self.poll(cx)).await;
        if !ended {
            let scheduler = Arc::clone(&self.scheduler);
            scheduler.spawn_at_the_back(self);
        }
    }

    /// Ready with `true` when the guest has ended, with `false` when it has to move to the back.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Self { guest, run, account, scheduler, place } = self;
        run.wake_by(cx.waker());
        if run.end_if_stopped() {
            // The caller of this drops the guest, and with it its store.
            return Poll::Ready(true);
        }
        scheduler.ticker.touch();
        let (polled, used) = run.measure(|| Pin::new(guest).poll(cx));
        account.charge(used);
        let yielded = polled.is_pending() && run.take_yielded();
        match place {
            Place::Back(hunger) => hunger.ran(used, yielded),
            Place::Front(_) if polled.is_pending() && run.outlived_quantum() => return Poll::Ready(false),
            Place::Front(ticked) if yielded => _ = ticked.get_or_insert_with(|| Ticked::new(&scheduler.ticked)),
            Place::Front(ticked) => *ticked = None,
        }
        polled.map(|()| true)
    }
}

impl Drop for Driven {
    /// A guest that vanishes without an end must not look complete to its caller.
    fn drop(&mut self) {
        self.run.finish(End::Host("the host failed while it ran this request"));
    }
}
