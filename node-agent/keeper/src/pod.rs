//! A pod whose endpoints are held, and the listeners of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::{Port, Sidecar},
    keeper::{Add, Endpoint},
};
use pillion_sockets::listen;

use crate::{
    netns::{Entrance, Netns},
    plan::Observed,
};

/// For how long a pod's `::1` is looked for often.
const LOOPBACK: Duration = Duration::from_secs(60);

/// A pod whose endpoints are held.
pub struct Pod {
    /// What was asked for.
    pub add: Add,
    /// Its namespace.
    pub netns: Netns,
    /// What was asked for is known only by what another process held of it.
    pub learned: bool,
    /// What is open.
    pub listeners: BTreeMap<Port, Listeners>,
    /// Until when `::1`, which comes with `lo`, is looked for often.
    pub loopback_until: Instant,
}

/// A port's listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    /// At 127.0.0.1.
    pub v4: Option<OwnedFd>,
    /// At ::1; none where the namespace has no IPv6, or not yet.
    pub v6: Option<OwnedFd>,
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{address} port {port} cannot be listened on in the pod: {error}")]
pub struct BindError {
    address: IpAddr,
    port: Port,
    /// What the kernel says.
    pub error: io::Error,
}

impl Pod {
    /// One with nothing open.
    pub fn new(add: Add, netns: Netns) -> Self {
        let loopback_until = Instant::now() + LOOPBACK;
        Self { add, netns, learned: false, listeners: BTreeMap::new(), loopback_until }
    }

    /// Its runtime has said who it is, by the CNI plugin. One that was found is who control says it is.
    pub fn is_announced(&self) -> bool {
        !self.add.late
    }

    /// Writes a log line about it.
    pub fn log(&self, what: &str) {
        let Add { pod, sandbox, sidecars, .. } = &self.add;
        let sidecars = sidecars.to_string();
        tracing::info!(namespace = pod.namespace, pod = pod.name, %sandbox, sidecars, "{what}");
    }

    /// Looks at what is there.
    pub fn observe(&self, entrance: &Entrance) -> Observed {
        let ipv6 = entrance.has_ipv6(&self.netns);
        let whole = |listeners: &&Listeners| listeners.is_whole(ipv6);
        let ports: BTreeSet<Port> =
            self.listeners.iter().filter(|(_, listeners)| whole(listeners)).map(|(port, _)| *port).collect();
        Observed {
            vanished: self.netns.is_gone_from(&self.add.netns),
            held: self.listeners.keys().copied().collect(),
            whole: ports,
        }
    }

    /// Opens what is missing at `port`. Where there is no IPv6 that is no error.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(&mut self, entrance: &Entrance, port: Port) -> Result<(), BindError> {
        let mut listeners = self.listeners.remove(&port).unwrap_or_default();
        let bound = listeners.bind(entrance, &self.netns, port);
        if listeners.open() > 0 {
            self.listeners.insert(port, listeners);
        }
        bound
    }

    /// Takes a listener that another process had, if it is what it should be and none is there.
    ///
    /// # Errors
    ///
    /// See [`listen::Wrong`].
    pub fn take(&mut self, port: Port, descriptor: OwnedFd) -> Result<(), listen::Wrong> {
        listen::check(&descriptor, port.get(), self.netns.id.cookie)?;
        let address = rustix::net::getsockname(&descriptor).ok().and_then(|address| SocketAddr::try_from(address).ok());
        let listeners = self.listeners.entry(port).or_default();
        let place = match address {
            Some(SocketAddr::V4(_)) => &mut listeners.v4,
            _ => &mut listeners.v6,
        };
        place.get_or_insert(descriptor);
        Ok(())
    }

    /// How many listeners it has.
    pub fn open(&self) -> usize {
        self.listeners.values().map(Listeners::open).sum()
    }

    /// Whether each port listens at each address of localhost that there is.
    pub fn is_whole(&self, entrance: &Entrance) -> bool {
        let ipv6 = entrance.has_ipv6(&self.netns);
        self.listeners.values().all(|listeners| listeners.is_whole(ipv6))
    }

    /// The ports that listen at 127.0.0.1 only, while `::1` may come any moment.
    pub fn awaiting_loopback(&self) -> impl Iterator<Item = Port> {
        let awaiting = Instant::now() < self.loopback_until;
        let missing = move |listeners: &Listeners| awaiting && listeners.v6.is_none();
        self.listeners.iter().filter(move |(_, listeners)| missing(listeners)).map(|(port, _)| *port)
    }

    /// Its endpoints that have listeners, with them.
    pub fn bound(&self) -> impl Iterator<Item = (Endpoint, &Listeners)> {
        self.endpoints()
            .filter_map(|endpoint| self.listeners.get(&endpoint.port).map(|listeners| (endpoint, listeners)))
    }

    /// Its endpoints, those without a listener included.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.add.sidecars.iter().map(|Sidecar { name, port }| Endpoint {
            pod: self.add.pod.clone(),
            sandbox: self.add.sandbox.clone(),
            netns: self.add.netns.clone(),
            netns_cookie: self.netns.id.cookie,
            name: name.clone(),
            port: *port,
            late: self.add.late,
        })
    }
}

impl Listeners {
    fn bind(&mut self, entrance: &Entrance, netns: &Netns, port: Port) -> Result<(), BindError> {
        let missing =
            [(IpAddr::V4(Ipv4Addr::LOCALHOST), &mut self.v4), (IpAddr::V6(Ipv6Addr::LOCALHOST), &mut self.v6)];
        for (address, listener) in missing.into_iter().filter(|(_, listener)| listener.is_none()) {
            match entrance.within(netns, move || listen::open(address, port.get())).flatten() {
                Ok(opened) => *listener = Some(opened),
                Err(error) if address.is_ipv6() && listen::is_no_ipv6(&error) => {}
                Err(error) => return Err(BindError { address, port, error }),
            }
        }
        Ok(())
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        usize::from(self.v4.is_some()) + usize::from(self.v6.is_some())
    }

    /// Their descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [&self.v4, &self.v6].into_iter().flatten().map(AsFd::as_fd).collect()
    }

    fn is_whole(&self, ipv6: bool) -> bool {
        let listens =
            |listener: &Option<OwnedFd>| listener.as_ref().is_some_and(|fd| listen::listens(fd).unwrap_or(false));
        listens(&self.v4) && (listens(&self.v6) || !ipv6)
    }

    /// Makes a listener listen again that whoever holds a copy has shut down; it keeps its port, and the host its copy.
    pub fn listen_again(&self) {
        for listener in self.descriptors() {
            if let Err(error) = listen::revive(listener) {
                tracing::error!(%error, "a listener that was shut down cannot listen again");
            }
        }
    }
}
