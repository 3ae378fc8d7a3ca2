//! Endpoints: a binding's listeners, its connections, and what a caller gets.
//!
//! An endpoint accepts from the moment it is bound. Whether its component is ready is looked at when a request is there: until it
//! is, requests are held. An endpoint that nobody calls costs its listeners and this record.

pub mod body;
mod connection;
pub mod problem;
mod request;
mod served;
mod stall;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use pillion_protocol::{annotation::Port, name::Name};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};

use self::served::Served;
pub use self::served::{State, Version};
use crate::{
    engine::cache::Cache,
    scheduler::{
        Scheduler,
        account::Account,
        budget::{InstanceBudget, MemoryBudget},
    },
};

/// How long a listener rests after it could not accept, for example because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all endpoints of a process share.
pub struct Shared {
    /// Runs guests.
    pub scheduler: Arc<Scheduler>,
    /// Loaded components.
    pub cache: Cache,
    /// Memory for guests.
    pub memory: MemoryBudget,
    /// Instances at once.
    pub instances: InstanceBudget,
    /// Connections at once: the kernel queues the others.
    pub connections: Arc<Semaphore>,
    /// Becomes true once, when the process drains.
    pub draining: watch::Receiver<bool>,
    /// Requests that are being served.
    pub in_flight: InFlight,
    /// Where to say that a component's native code cannot be loaded any more.
    pub broken: mpsc::UnboundedSender<Name>,
}

/// Counts requests.
#[derive(Debug, Default)]
pub struct InFlight {
    now: AtomicUsize,
    total: AtomicUsize,
}

/// Counts one request out when it is dropped.
struct Counted(Arc<Shared>);

impl InFlight {
    /// Requests that have begun and not ended.
    pub fn now(&self) -> usize {
        self.now.load(Relaxed)
    }

    /// Requests that have begun.
    pub fn total(&self) -> usize {
        self.total.load(Relaxed)
    }
}

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.in_flight.now.fetch_add(1, Relaxed);
        shared.in_flight.total.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.now.fetch_sub(1, Relaxed);
    }
}

/// One binding.
pub struct Endpoint {
    binding: Name,
    component: Name,
    port: Port,
    state: watch::Receiver<State>,
    account: Arc<Account>,
    served: Served,
    shared: Arc<Shared>,
}

impl Endpoint {
    /// A binding of `component`, whose state is told by `state`.
    pub fn new(binding: Name, component: Name, port: Port, state: watch::Receiver<State>, shared: Arc<Shared>) -> Self {
        let account = shared.scheduler.account();
        Self { binding, component, port, state, account, served: Served::default(), shared }
    }

    /// Serves `listener` for as long as the process lives.
    ///
    /// # Errors
    ///
    /// A descriptor that is no listener.
    pub fn listen(self: &Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(Arc::clone(self).accept(listener));
        Ok(())
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut draining = self.shared.draining.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // What is queued now is for the next worker: the supervisor holds the listener.
                _ = draining.wait_for(|&draining| draining) => return,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream).await,
                Err(error) => {
                    tracing::warn!(binding = %self.binding, %error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(self: &Arc<Self>, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.shared.connections).acquire_owned().await else { return };
        let endpoint = Arc::clone(self);
        tokio::spawn(async move {
            connection::serve(endpoint, stream).await;
            drop(permit);
        });
    }
}
