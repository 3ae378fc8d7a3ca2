//! The one thread that owns every namespace and listener, and what it reacts to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::Port,
    keeper::{Add, Answer, Call, Endpoint, FromHost, ToHost},
    pod::{PodUid, SandboxId},
};
use pillion_sockets::{link::Link, listen};

use crate::{
    netns::{BindError, Entrance, Listeners, Netns, NetnsError},
    plan::{Action, Observed, plan},
    state::{Kept, StateFile},
};

/// How often what is desired is compared with what is there.
const COMPARE: Duration = Duration::from_secs(30);

/// What the keeper reacts to.
pub enum Input {
    /// The plugin asks, with the pod's namespace.
    Plugin {
        /// What it asks for.
        call: Call,
        /// The descriptor that came with it.
        netns: Option<File>,
        /// Where the answer goes.
        answer: Sender<Outcome>,
    },
    /// A host connected; it takes the place of the one before.
    HostConnected(u64, Link),
    /// A host said something.
    Host(u64, FromHost, Vec<OwnedFd>),
    /// A host's connection ended.
    HostGone(u64),
    /// The process is to end.
    Terminate,
}

/// What came of a request.
#[derive(Debug)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// False while `::1` is missing in a namespace that has IPv6: its `lo` may come up any moment, so ask again.
    pub settled: bool,
}

/// Why a pod's endpoints cannot be bound.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request came without a descriptor of the pod's network namespace")]
    NoDescriptor,
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(
        "{0} does not lead to the network namespace that came with the request: the keeper has to see it (mount its folder with HostToContainer)"
    )]
    Path(String),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

/// A pod whose endpoints are held.
struct Pod {
    add: Add,
    netns: Netns,
    listeners: BTreeMap<Port, Listeners>,
}

/// The state of the keeper.
pub struct Keeper {
    pods: BTreeMap<PodUid, Pod>,
    entrance: Entrance,
    state: StateFile,
    host: Option<(u64, Link)>,
}

impl Keeper {
    /// A keeper that holds again what its state file names, as far as it is there.
    ///
    /// # Errors
    ///
    /// A state file that cannot be read.
    pub fn new(entrance: Entrance, state: StateFile) -> anyhow::Result<Self> {
        let kept = state.read()?;
        let mut keeper = Self { pods: BTreeMap::new(), entrance, state, host: None };
        for kept in kept {
            keeper.find_again(kept);
        }
        keeper.compare();
        Ok(keeper)
    }

    /// Reacts until it is told to end. What is held is left as it is: only descriptors of this process close.
    pub fn run(mut self, inbox: &Receiver<Input>) {
        let mut next = Instant::now() + COMPARE;
        loop {
            match inbox.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Input::Plugin { call, netns, answer }) => _ = answer.send(self.answer(call, netns)),
                Ok(Input::HostConnected(id, link)) => self.host = Some((id, link)),
                Ok(Input::Host(id, said, descriptors)) if self.is_host(id) => self.hear(said, descriptors),
                Ok(Input::HostGone(id)) if self.is_host(id) => {
                    tracing::warn!("the host is gone: connections are queued until the next one is there");
                    self.host = None;
                }
                Ok(Input::Host(..) | Input::HostGone(_)) => {}
                Ok(Input::Terminate) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.compare();
                    next = Instant::now() + COMPARE;
                }
            }
        }
    }

    fn is_host(&self, id: u64) -> bool {
        self.host.as_ref().is_some_and(|(current, _)| *current == id)
    }

    fn answer(&mut self, call: Call, netns: Option<File>) -> Outcome {
        let done = match call {
            Call::Add(add) => {
                let shown = add.clone();
                let done = self.add(add, netns);
                if let Err(error) = &done {
                    let (pod, namespace) = (&shown.pod.name, &shown.pod.namespace);
                    tracing::error!(namespace, pod, sandbox = %shown.sandbox, %error, "a pod's endpoints cannot be bound");
                }
                done
            }
            Call::Del { sandbox } => {
                self.del(&sandbox);
                Ok(true)
            }
        };
        match done {
            Ok(settled) => Outcome { answer: Answer::Done, settled },
            Err(error) => Outcome { answer: Answer::Refused(error.to_string()), settled: true },
        }
    }

    /// Binds a pod's endpoints; gives whether all addresses are there.
    fn add(&mut self, add: Add, netns: Option<File>) -> Result<bool, Refusal> {
        let netns = self.entrance.identify(netns.ok_or(Refusal::NoDescriptor)?)?;
        if !netns.is_at(&add.netns) {
            return Err(Refusal::Path(add.netns.display().to_string()));
        }
        let uid = add.pod.uid.clone();
        let known = self.pods.remove(&uid);
        let before = known.as_ref().map(Pod::descriptors);
        let same =
            |pod: &Pod| pod.add.sandbox == add.sandbox && pod.netns.id == netns.id && pod.add.sidecars == add.sidecars;
        let same_as_before = known.as_ref().is_some_and(same);
        let mut pod = match known {
            Some(pod) if same_as_before => pod,
            Some(old) => {
                // Another sandbox, or other sidecars: what was there is closed first, on both sides.
                self.close(old);
                Pod { add, netns, listeners: BTreeMap::new() }
            }
            None => Pod { add, netns, listeners: BTreeMap::new() },
        };
        let ports: Vec<Port> = pod.add.sidecars.iter().map(|sidecar| sidecar.port).collect();
        for port in ports {
            let listeners = pod.listeners.entry(port).or_default();
            // An error here drops the pod with every listener that was opened for it.
            if let Err(error) = self.entrance.bind(&pod.netns, port, listeners) {
                self.close(pod);
                self.write()?;
                return Err(error.into());
            }
        }
        let settled = pod.is_whole(&self.entrance);
        // Asked again, as while `lo` is down, with nothing new: there is nothing to tell or to write.
        if same_as_before && before == Some(pod.descriptors()) {
            self.pods.insert(uid, pod);
            return Ok(settled);
        }
        self.tell_of(&pod);
        let (name, namespace, sidecars) = (&pod.add.pod.name, &pod.add.pod.namespace, pod.add.sidecars.to_string());
        tracing::info!(namespace, pod = name, sandbox = %pod.add.sandbox, sidecars, "bound");
        self.pods.insert(uid, pod);
        self.write()?;
        Ok(settled)
    }

    /// Closes the endpoints of a sandbox, if it is its pod's current one: a late DEL of an older one changes nothing.
    fn del(&mut self, sandbox: &SandboxId) {
        let uid = self.pods.iter().find(|(_, pod)| pod.add.sandbox == *sandbox).map(|(uid, _)| uid.clone());
        if let Some(uid) = uid {
            self.forget(&uid, "its sandbox ends");
        }
    }

    fn forget(&mut self, uid: &PodUid, why: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        tracing::info!(namespace = pod.add.pod.namespace, pod = pod.add.pod.name, sandbox = %pod.add.sandbox, why, "unbound");
        self.close(pod);
        if let Err(error) = self.write() {
            // What it names too much is found to be gone at the next start.
            tracing::error!(%error, "what is held cannot be written down");
        }
    }

    /// Closes a pod's listeners on both sides.
    fn close(&mut self, pod: Pod) {
        self.tell(&ToHost::Unbind(pod.add.pod), &[]);
    }

    fn write(&self) -> Result<(), crate::state::StateError> {
        self.state.write(self.pods.values().map(|pod| Kept { add: pod.add.clone(), netns: pod.netns.id }).collect())
    }

    /// Takes up a pod that was held before this process began.
    fn find_again(&mut self, kept: Kept) {
        let Kept { add, netns } = kept;
        let (namespace, name) = (add.pod.namespace.clone(), add.pod.name.clone());
        let found = File::open(&add.netns).map_err(NetnsError::Io).and_then(|file| self.entrance.identify(file));
        match found {
            Ok(found) if found.id == netns => {
                _ = self.pods.insert(add.pod.uid.clone(), Pod { add, netns: found, listeners: BTreeMap::new() });
            }
            Ok(_) => tracing::warn!(namespace, pod = name, "dropped: its network namespace is another one now"),
            Err(error) => tracing::warn!(namespace, pod = name, %error, "dropped: its network namespace is gone"),
        }
    }

    /// Compares what each pod should have with what is there, and mends it.
    fn compare(&mut self) {
        let observed = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.observe(&self.entrance))).collect();
        let desired = self.pods.iter().map(|(uid, pod)| (uid, &pod.add.sidecars));
        for action in plan(desired, &observed) {
            match action {
                Action::Forget(uid) => self.forget(&uid, "its network namespace is gone"),
                Action::Bind(uid, port) => self.bind(&uid, port),
            }
        }
    }

    fn bind(&mut self, uid: &PodUid, port: Port) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let listeners = pod.listeners.entry(port).or_default();
        listeners.listen_again();
        let before = listeners.descriptors().len();
        let bound = self.entrance.bind(&pod.netns, port, listeners);
        let opened = listeners.descriptors().len() > before;
        match bound {
            Ok(()) => {}
            // After a restart the host may still have it, and hands it back when it connects.
            Err(error) if error.error.kind() == io::ErrorKind::AddrInUse && self.host.is_none() => {}
            Err(error) => {
                let (namespace, name) = (&pod.add.pod.namespace, &pod.add.pod.name);
                tracing::error!(namespace, pod = name, %error, "an endpoint is missing");
            }
        }
        if opened && let Some(pod) = self.pods.get(uid) {
            self.tell_of(pod);
        }
    }

    /// Hears what the host says.
    fn hear(&mut self, said: FromHost, descriptors: Vec<OwnedFd>) {
        match said {
            FromHost::Held(endpoint) => self.take_back(&endpoint, descriptors),
            FromHost::Complete => {
                self.compare();
                for pod in self.pods.values() {
                    self.tell_of(pod);
                }
                self.tell(&ToHost::Complete, &[]);
            }
        }
    }

    /// Takes back listeners that the host had from a keeper before this one, if they are what they should be.
    fn take_back(&mut self, endpoint: &Endpoint, descriptors: Vec<OwnedFd>) {
        let (namespace, name, port) = (&endpoint.pod.namespace, &endpoint.pod.name, endpoint.port);
        let Some(pod) = self.pods.get_mut(&endpoint.pod.uid) else { return };
        if !pod.add.sidecars.iter().any(|sidecar| sidecar.port == port) {
            return;
        }
        let listeners = pod.listeners.entry(port).or_default();
        for descriptor in descriptors {
            if let Err(error) = listen::check(&descriptor, port.get(), pod.netns.id.cookie) {
                tracing::warn!(namespace, pod = name, port = port.get(), %error, "a listener that the host had is not used");
                continue;
            }
            let address =
                rustix::net::getsockname(&descriptor).ok().and_then(|address| SocketAddr::try_from(address).ok());
            let place = match address {
                Some(SocketAddr::V4(_)) => &mut listeners.v4,
                _ => &mut listeners.v6,
            };
            place.get_or_insert(descriptor);
        }
    }

    fn tell_of(&self, pod: &Pod) {
        for sidecar in &pod.add.sidecars {
            let Some(listeners) = pod.listeners.get(&sidecar.port) else { continue };
            let endpoint = Endpoint {
                pod: pod.add.pod.clone(),
                name: sidecar.name.clone(),
                port: sidecar.port,
                netns_cookie: pod.netns.id.cookie,
            };
            self.tell(&ToHost::Bind(endpoint), &listeners.descriptors());
        }
    }

    /// A host that cannot be told is dying: its next one is told everything.
    fn tell(&self, message: &ToHost, descriptors: &[BorrowedFd<'_>]) {
        if let Some((_, link)) = &self.host
            && let Err(error) = link.send(message, descriptors)
        {
            tracing::warn!(%error, "the host cannot be told: its connection is closed");
            _ = link.socket().shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Pod {
    fn observe(&self, entrance: &Entrance) -> Observed {
        let ipv6 = entrance.has_ipv6(&self.netns);
        let whole = |listeners: &&Listeners| listeners.is_whole(ipv6);
        let ports: BTreeSet<Port> =
            self.listeners.iter().filter(|(_, listeners)| whole(listeners)).map(|(port, _)| *port).collect();
        Observed { vanished: !self.netns.is_at(&self.add.netns), whole: ports }
    }

    /// How many listeners it has.
    fn descriptors(&self) -> usize {
        self.listeners.values().map(|listeners| listeners.descriptors().len()).sum()
    }

    fn is_whole(&self, entrance: &Entrance) -> bool {
        let ipv6 = entrance.has_ipv6(&self.netns);
        self.listeners.values().all(|listeners| listeners.is_whole(ipv6))
    }
}

impl Listeners {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [&self.v4, &self.v6].into_iter().flatten().map(AsFd::as_fd).collect()
    }

    fn is_whole(&self, ipv6: bool) -> bool {
        let listens =
            |listener: &Option<OwnedFd>| listener.as_ref().is_some_and(|fd| listen::listens(fd).unwrap_or(false));
        listens(&self.v4) && (listens(&self.v6) || !ipv6)
    }

    /// Makes a listener listen again that whoever holds a copy has shut down; it keeps its port, and the host its copy.
    fn listen_again(&self) {
        for listener in self.descriptors() {
            if !listen::listens(listener).unwrap_or(true)
                && let Err(error) = listen::again(listener)
            {
                tracing::error!(%error, "a listener that was shut down cannot listen again");
            }
        }
    }
}
