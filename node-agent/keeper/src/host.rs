//! The socket of the host, and what it says. While one host is replaced there are two: each is told everything.

use std::{
    collections::BTreeMap,
    io, mem,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::Sender,
    },
    thread,
    time::Duration,
};

use pillion_protocol::{
    annotation::{Port, Sidecars},
    id::ComponentId,
    keeper::{Endpoint, Fate, FromHost, MAX_MESSAGE, ToHost},
    name::Name,
    pod::PodUid,
};
use pillion_sockets::{
    heard::Heard,
    link::{Incoming, Link},
};

use crate::{keeper::Input, pod::Pod, socket};

/// How long the host may read nothing.
const STALL: Duration = Duration::from_secs(5);

/// The most components that are known of a host.
const FATES: usize = 100_000;

/// Hosts at once: one, and another while it is replaced, and those whose end is not noticed yet.
const HOSTS: usize = 8;

/// The longest reason why components are not ready, in characters: it has to fit a message.
const REASON: usize = 2_000;

/// Where a host comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came by itself.
    Own,
    /// Another keeper handed it over. If it was introduced there, it knows everything that is bound.
    Handed {
        /// Whether it was.
        introduced: bool,
    },
}

/// Identifies a connection.
pub type HostId = u64;

/// Serves hosts until the listener is closed. Besides root and this user, `uid` may be one.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn serve(listener: UnixListener, uid: Option<u32>, inputs: Sender<Input>) -> io::Result<()> {
    thread::Builder::new().name("host".into()).spawn(move || {
        socket::accept(&listener, uid, |client| connect(client, Origin::Own, &inputs));
    })?;
    Ok(())
}

/// Listens to a host that is connected.
///
/// # Errors
///
/// A thread that cannot be started, no descriptor left.
pub fn connect(client: UnixStream, origin: Origin, inputs: &Sender<Input>) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Relaxed);
    client.set_write_timeout(Some(STALL))?;
    let mut link = Link::bounded(client, MAX_MESSAGE);
    let gone = |_| io::Error::other("the keeper ends");
    inputs.send(Input::HostConnected(id, link.try_clone()?, origin)).map_err(gone)?;
    let (inputs, failed) = (inputs.clone(), inputs.clone());
    let started = thread::Builder::new().name("from-host".into()).spawn(move || {
        let mut said = false;
        loop {
            match link.receive::<Heard<FromHost>>() {
                Ok(Incoming { message: Heard::Known(message), descriptors }) => {
                    if inputs.send(Input::Host(id, message, descriptors)).is_err() {
                        return;
                    }
                }
                Ok(Incoming { message: Heard::Unknown { kind, why }, .. }) => {
                    if !mem::replace(&mut said, true) {
                        tracing::warn!(kind, why, "a host says what this keeper does not know: it is passed over");
                    }
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        tracing::warn!(%error, "what a host says is not understood");
                    }
                    _ = link.socket().shutdown(std::net::Shutdown::Both);
                    _ = inputs.send(Input::HostGone(id));
                    return;
                }
            }
        }
    });
    if started.is_err() {
        _ = failed.send(Input::HostGone(id));
    }
    started.map(drop)
}

/// A new connection for a host.
pub struct Reconnected {
    /// Which host.
    pub id: HostId,
    /// Whether it knows everything that is bound.
    pub introduced: bool,
    /// Its end.
    pub theirs: UnixStream,
    /// The other keeper's end.
    pub ours: OwnedFd,
}

/// The hosts that are connected.
#[derive(Default)]
pub struct Hosts(BTreeMap<HostId, Host>);

struct Host {
    link: Link,
    origin: Origin,
    /// The most listeners that it takes; unknown until it has said hello.
    listeners_max: Option<usize>,
    /// It has said what it holds, and is told of every change.
    introduced: bool,
    fates: BTreeMap<ComponentId, Fate>,
    /// What it has handed back and is not told again: the component and the number of listeners of each.
    handed_back: BTreeMap<(PodUid, Port), (Name, usize)>,
}

impl Hosts {
    /// Another one is there.
    pub fn add(&mut self, id: HostId, link: Link, origin: Origin) {
        let introduced = origin == Origin::Handed { introduced: true };
        let (fates, handed_back) = (BTreeMap::new(), BTreeMap::new());
        let host = Host { link, origin, listeners_max: None, introduced, fates, handed_back };
        if self.0.len() >= HOSTS {
            tracing::error!(hosts = HOSTS, "a host is refused: so many are connected already");
            return;
        }
        self.0.insert(id, host);
    }

    /// One is gone.
    pub fn remove(&mut self, id: HostId) {
        if self.0.remove(&id).is_some() && self.0.is_empty() {
            tracing::warn!("the host is gone: connections are queued until the next one is there");
        }
    }

    /// Whether it is connected.
    pub fn has(&self, id: HostId) -> bool {
        self.0.contains_key(&id)
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How many are told of everything.
    pub fn introduced(&self) -> usize {
        self.0.values().filter(|host| host.introduced).count()
    }

    /// Whether one that came by itself is told of everything.
    pub fn has_own(&self) -> bool {
        self.0.values().any(|host| host.introduced && host.origin == Origin::Own)
    }

    /// One has said how much it takes.
    pub fn limit(&mut self, id: HostId, listeners_max: usize) {
        if let Some(host) = self.0.get_mut(&id) {
            host.listeners_max = Some(listeners_max);
        }
    }

    /// One has handed back all listeners of an endpoint.
    pub fn note_handed_back(&mut self, id: HostId, endpoint: &Endpoint, listeners: usize) {
        if let Some(host) = self.0.get_mut(&id) {
            let key = (endpoint.pod.uid.clone(), endpoint.port);
            host.handed_back.insert(key, (endpoint.name.clone(), listeners));
        }
    }

    /// One has said what it holds: from now on it is told of every change. Gives what it has handed back; `None` if it was
    /// introduced already.
    pub fn introduce(&mut self, id: HostId) -> Option<BTreeMap<(PodUid, Port), (Name, usize)>> {
        let host = self.0.get_mut(&id).filter(|host| !host.introduced)?;
        host.introduced = true;
        Some(mem::take(&mut host.handed_back))
    }

    /// Forgets what became of components that cannot be served and that nobody has.
    pub fn forget_fates(&mut self, is_bound: impl Fn(&Name) -> bool) {
        for host in self.0.values_mut() {
            host.fates.retain(|component, fate| *fate == Fate::Ready || is_bound(&component.name));
        }
    }

    /// The most listeners that all of them take; `None` while nobody has said.
    pub fn listeners_max(&self) -> Option<usize> {
        self.0.values().filter_map(|host| host.listeners_max).min()
    }

    /// One has said what became of a component.
    pub fn note(&mut self, id: HostId, component: ComponentId, fate: Fate) {
        if let Some(host) = self.0.get_mut(&id).filter(|host| host.fates.len() < FATES) {
            host.fates.insert(component, fate);
        }
    }

    /// Which of these components no host has ready for pods of the namespace, and why; `None` if there is none.
    pub fn unready(&self, namespace: &str, sidecars: &Sidecars) -> Option<String> {
        if self.0.is_empty() {
            return Some("the host of this node is away".into());
        }
        let namespace: Option<Name> = namespace.parse().ok();
        let unready = |name: &Name| {
            let mut why = None;
            // A host that serves a folder knows of no namespaces.
            let [own, any] = [namespace.clone(), None].map(|namespace| ComponentId { namespace, name: name.clone() });
            for host in self.0.values() {
                match host.fates.get(&own).or_else(|| host.fates.get(&any)) {
                    Some(Fate::Ready) => return None,
                    Some(Fate::Failed(text)) => why = Some(format!("{name} cannot be served: {text}")),
                    None => {}
                }
            }
            Some(why.unwrap_or_else(|| format!("{name} is still being made ready")))
        };
        let unready: Vec<String> = sidecars.iter().filter_map(|sidecar| unready(&sidecar.name)).collect();
        (!unready.is_empty()).then(|| unready.join("; ").chars().take(REASON).collect())
    }

    /// Tells every host that has introduced itself.
    pub fn tell(&self, message: &ToHost, descriptors: &[BorrowedFd<'_>]) {
        for host in self.0.values().filter(|host| host.introduced) {
            host.tell(message, descriptors);
        }
    }

    /// Tells every host that has introduced itself of what a pod has.
    pub fn tell_of(&self, pod: &Pod) {
        for (endpoint, listeners) in pod.bound() {
            self.tell(&ToHost::Bind(endpoint), &listeners.descriptors());
        }
    }

    /// Tells one host.
    pub fn tell_one(&self, id: HostId, message: &ToHost, descriptors: &[BorrowedFd<'_>]) {
        if let Some(host) = self.0.get(&id) {
            host.tell(message, descriptors);
        }
    }

    /// A new connection for each host: the other ends, to give to another keeper. Told of it is nobody yet.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn reconnect(&self) -> io::Result<Vec<Reconnected>> {
        let pair = |(id, host): (&HostId, &Host)| {
            let (theirs, ours) = UnixStream::pair()?;
            Ok(Reconnected { id: *id, introduced: host.introduced, theirs, ours: ours.into() })
        };
        self.0.iter().map(pair).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The thread that listens to it ends with that. What was told is read all the same.
        _ = self.link.socket().shutdown(std::net::Shutdown::Both);
    }
}

impl Host {
    /// A host that cannot be told is dying: its next one is told everything.
    fn tell(&self, message: &ToHost, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(message, descriptors) {
            tracing::warn!(%error, "the host cannot be told: its connection is closed");
            _ = self.link.socket().shutdown(std::net::Shutdown::Both);
        }
    }
}
