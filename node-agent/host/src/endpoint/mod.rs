//! Endpoints: a binding's listeners, its connections, and what a caller gets.
//!
//! An endpoint accepts from the moment it is bound. Whether its component is ready is looked at when a request is there: until it
//! is, requests are held. An endpoint that nobody calls costs its listeners and this record.

mod app;
pub mod body;
mod connection;
mod ends;
pub mod flushes;
mod gate;
mod host;
pub mod problem;
mod request;
mod served;
mod stall;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use pillion_protocol::{annotation::Port, id::ComponentId};
use pillion_sockets::listen;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::AbortHandle,
};

pub use self::{
    app::{App, Own},
    served::{Part, State, Version},
};
use self::{gate::Gate, served::Served};
use crate::{
    catalog::told::Verdict,
    engine::cache::Cache,
    log::{Lines, Origin, tell},
    scheduler::{
        Scheduler,
        account::Account,
        budget::{InstanceBudget, MemoryBudget},
    },
    supervisor::message::Binding,
    warnings::Warnings,
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
    /// The most listeners.
    pub listeners: Arc<Semaphore>,
    /// Descriptors for listeners that are no connection's.
    pub spare: Arc<Semaphore>,
    /// Descriptors for connections, and for listeners beyond `spare`. The kernel queues connections that get none.
    pub connections: Arc<Semaphore>,
    /// Becomes true once, when the process drains.
    pub draining: watch::Receiver<bool>,
    /// The most connections of one binding.
    pub connections_each: usize,
    /// Requests that are being served.
    pub in_flight: InFlight,
    /// Connections that are open.
    pub open: AtomicUsize,
    /// Where guests write.
    pub lines: Arc<Lines>,
    /// Where to say that a component's native code cannot be loaded any more.
    pub broken: mpsc::UnboundedSender<Broken>,
}

/// Native code that cannot be loaded.
#[derive(Debug)]
pub struct Broken {
    /// The component.
    pub component: ComponentId,
    /// Why.
    pub why: String,
    /// The engine refuses what its own compiler wrote: making it anew does not help.
    pub refused: bool,
}

/// Counts requests.
#[derive(Debug, Default)]
pub struct InFlight {
    now: AtomicUsize,
    total: AtomicUsize,
}

/// Counts one request out when it is dropped.
struct Counted(Arc<Shared>);

/// Counts one connection out when it is dropped.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

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

/// Whether a binding ends. It is small: there are thousands of them.
#[derive(Default)]
struct Closing {
    closed: AtomicBool,
    changed: Notify,
}

impl Closing {
    fn close(&self) {
        self.closed.store(true, Release);
        self.changed.notify_waiters();
    }

    async fn wait(&self) {
        let changed = self.changed.notified();
        // Looked at after the ear is open: nothing is missed.
        if !self.closed.load(Acquire) {
            changed.await;
        }
    }
}

/// One binding.
pub struct Endpoint {
    origin: Arc<Origin>,
    port: Port,
    /// The tasks that accept at its listeners.
    accepting: Mutex<Vec<AbortHandle>>,
    closing: Closing,
    gate: Gate,
    state: watch::Receiver<State>,
    account: Arc<Account>,
    served: Served,
    warnings: Warnings,
    /// Connections that this binding may have yet: a caller that takes all of them takes none of another binding's.
    connections: Arc<Semaphore>,
    /// Requests that wait for the component.
    held: AtomicUsize,
    shared: Arc<Shared>,
}

/// Makes a listener listen again that somebody has shut down, who holds a copy of it. The runtime takes one that was for closed for
/// ever, so it is given to it anew.
fn listening(listener: TcpListener) -> io::Result<TcpListener> {
    if listen::revive(&listener)? { TcpListener::from_std(listener.into_std()?) } else { Ok(listener) }
}

impl Endpoint {
    /// A binding, whose component's state is told by `state`.
    pub fn new(binding: Binding, state: watch::Receiver<State>, shared: Arc<Shared>) -> Self {
        let Binding { name: binding, component, port, pod, verdict } = binding;
        let origin = Arc::new(Origin { component, part: None, binding, pod });
        let account = shared.scheduler.account();
        let connections = Arc::new(Semaphore::new(shared.connections_each));
        let (served, held) = (Served::default(), AtomicUsize::new(0));
        let (accepting, closing, gate) = (Mutex::default(), Closing::default(), Gate::new(verdict));
        Self {
            origin,
            port,
            accepting,
            closing,
            gate,
            state,
            account,
            served,
            warnings: Warnings::default(),
            connections,
            held,
            shared,
        }
    }

    /// Whether it is this binding's.
    pub fn is_of(&self, binding: &Binding) -> bool {
        self.origin.binding == binding.name && self.origin.component == binding.component
    }

    /// Whether its pod may have the component is otherwise now.
    pub fn judge(&self, verdict: Verdict) {
        self.gate.set(verdict);
    }

    /// Closes its listeners: others take their place, or it ends.
    pub fn stop_listening(&self) {
        for task in self.accepting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// Ends the binding: nothing more begins, answers that are on their way are finished.
    pub fn close(&self) {
        self.stop_listening();
        self.closing.close();
    }

    /// Serves `listener` until it is told to stop. Its descriptor is one that no connection can have.
    ///
    /// # Errors
    ///
    /// A descriptor that is no listener, or one more than the process may hold.
    pub fn listen(self: &Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let take = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned();
        let place = take(&self.shared.spare).or_else(|_| take(&self.shared.connections));
        let permits = take(&self.shared.listeners).and_then(|listener| Ok((listener, place?)));
        let permits =
            permits.map_err(|_| io::Error::other("no descriptor is left for a listener: see RLIMIT_NOFILE"))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let accepting = tokio::spawn(Arc::clone(self).accept(listener, permits)).abort_handle();
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner).push(accepting);
        Ok(())
    }

    async fn accept(
        self: Arc<Self>,
        mut listener: TcpListener,
        _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) {
        let mut draining = self.shared.draining.clone();
        loop {
            let Ok(own) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // What is queued now is for the next worker: the supervisor holds the listener.
                _ = draining.wait_for(|&draining| draining) => return,
            };
            match accepted {
                Ok((stream, client)) => self.admit(stream, client, own).await,
                Err(error) => {
                    tell!(WARN, &self.origin, %error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    listener = match listening(listener) {
                        Ok(listener) => listener,
                        Err(error) => {
                            tell!(ERROR, &self.origin, %error, "a listener is lost until the next worker");
                            return;
                        }
                    };
                }
            }
        }
    }

    async fn admit(self: &Arc<Self>, stream: TcpStream, client: SocketAddr, own: OwnedSemaphorePermit) {
        let Ok(permit) = Arc::clone(&self.shared.connections).acquire_owned().await else { return };
        let open = Open::new(&self.shared);
        let endpoint = Arc::clone(self);
        tokio::spawn(async move {
            connection::serve(endpoint, stream, client).await;
            drop((open, own, permit));
        });
    }
}
