//! The one thread that owns every namespace and listener, and what it reacts to.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::Port,
    keeper::{Add, Answer, Call, FromHost, Status, ToHost, Wait},
    pod::{PodUid, SandboxId},
};
use pillion_sockets::link::Link;

use crate::{
    capacity::Capacity,
    claim::Claim,
    hear::Desired,
    host::{HostId, Hosts, Origin},
    netns::{Entrance, NetnsError},
    pod::{BindError, Pod},
    state::{Kept, StateError, StateFile},
};

/// How often what is desired is compared with what is there.
const COMPARE: Duration = Duration::from_secs(30);

/// How often `::1` is looked for in a pod that lacks it, within its first minute. That `lo` comes up nobody says but netlink.
const LOOPBACK: Duration = Duration::from_secs(1);

/// What the keeper reacts to.
pub enum Input {
    /// The plugin asks, with the pod's namespace.
    Plugin {
        /// What it asks for.
        call: Call,
        /// The descriptor that came with it.
        netns: Option<File>,
        /// It has asked before, and waits.
        again: bool,
        /// Where the answer goes.
        answer: Sender<Outcome>,
    },
    /// A newer keeper asks for everything.
    Successor {
        /// Its generation.
        generation: u64,
        /// The connection to it.
        link: Link,
    },
    /// A host connected.
    HostConnected(HostId, Link, Origin),
    /// A host said something.
    Host(HostId, FromHost, Vec<OwnedFd>),
    /// A host's connection ended.
    HostGone(HostId),
    /// The process is to end.
    Terminate,
}

/// Why the keeper is one no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to end. Nothing on the node is removed.
    Terminated,
    /// Another one holds everything.
    Succeeded,
}

/// What came of a request.
#[derive(Debug)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// What is missing still, that may come any moment: ask again.
    pub pending: Option<Pending>,
}

/// What a pod's start may wait for, each within its own time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// `::1` is missing in a namespace that has IPv6: its `lo` is down still. Afterwards the pod starts without.
    Loopback,
    /// Components that the pod wants to be ready, and why they are not. Afterwards the pod does not start.
    Components(String),
}

/// Why a pod's endpoints cannot be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its sandbox has ended")]
    Ended,
    #[error("the request came without a descriptor of the pod's network namespace")]
    NoDescriptor,
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(
        "{0} does not lead to the network namespace that came with the request: the keeper has to see it (mount its folder with HostToContainer)"
    )]
    Path(String),
    #[error(transparent)]
    Capacity(#[from] crate::capacity::Full),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// The state of the keeper.
pub struct Keeper {
    pub(crate) pods: BTreeMap<PodUid, Pod>,
    pub(crate) hosts: Hosts,
    /// The right to be the keeper.
    pub claim: Claim,
    pub(crate) desired: BTreeMap<PodUid, Desired>,
    pub(crate) entrance: Entrance,
    state: StateFile,
    pub(crate) capacity: Capacity,
    /// The node's `/proc`.
    pub(crate) proc: PathBuf,
    pub(crate) next_comparison: Instant,
    /// When `::1` is looked for again where it is missing.
    next_loopback: Instant,
    /// Sandboxes that ended a moment ago: what is said of them is late.
    pub(crate) ended: BTreeMap<SandboxId, Instant>,
    /// What is held is not written down yet.
    pub(crate) changed: bool,
}

impl Keeper {
    /// A keeper that holds again what its state file names, as far as it is there.
    ///
    /// # Errors
    ///
    /// A state file that cannot be read.
    pub fn new(claim: Claim, entrance: Entrance, state: StateFile, proc: PathBuf) -> Result<Self, StateError> {
        let kept = state.read()?;
        let (pods, desired) = (BTreeMap::new(), BTreeMap::new());
        let (hosts, capacity, next_comparison) = (Hosts::default(), Capacity::of_this_process(), Instant::now());
        let (ended, changed, next_loopback) = (BTreeMap::new(), false, Instant::now());
        let mut keeper = Self {
            pods,
            hosts,
            claim,
            desired,
            entrance,
            state,
            capacity,
            proc,
            next_comparison,
            next_loopback,
            ended,
            changed,
        };
        for kept in kept {
            keeper.find_again(kept);
        }
        Ok(keeper)
    }

    /// Reacts until it is told to end or another keeper has everything. What is held is left as it is: only descriptors of this
    /// process close.
    pub fn run(mut self, inbox: &Receiver<Input>) -> Ended {
        loop {
            if self.next_comparison <= Instant::now() {
                self.next_comparison = Instant::now() + COMPARE;
                self.compare();
            }
            let mut next = self.next_comparison;
            if self.pods.values().any(|pod| pod.awaiting_loopback().next().is_some()) {
                if self.next_loopback <= Instant::now() {
                    self.next_loopback = Instant::now() + LOOPBACK;
                    self.bind_loopback();
                }
                next = next.min(self.next_loopback);
            }
            match inbox.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Input::Plugin { call, netns, again, answer }) => _ = answer.send(self.answer(call, netns, again)),
                Ok(Input::Successor { generation, link }) => match self.hand_over(generation, link) {
                    Ok(()) => return Ended::Succeeded,
                    Err(error) => {
                        tracing::error!(generation, %error, "another keeper asked for everything, and has not got it")
                    }
                },
                Ok(Input::HostConnected(id, link, origin)) => self.hosts.add(id, link, origin),
                Ok(Input::Host(id, said, descriptors)) if self.hosts.has(id) => self.hear(id, said, descriptors),
                Ok(Input::HostGone(id)) => self.hosts.remove(id),
                Ok(Input::Host(..)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::Terminate) | Err(RecvTimeoutError::Disconnected) => return Ended::Terminated,
            }
        }
    }

    fn answer(&mut self, call: Call, netns: Option<File>, again: bool) -> Outcome {
        let done = |answer| Outcome { answer, pending: None };
        match call {
            Call::Add(add) => {
                if let Err(error) = self.add(add.clone(), netns, again) {
                    let Add { pod, sandbox, .. } = add;
                    let (namespace, pod) = (pod.namespace, pod.name);
                    tracing::error!(namespace, pod, %sandbox, %error, "a pod's endpoints cannot be bound");
                    return done(Answer::Refused(error.to_string()));
                }
                Outcome { answer: Answer::Done, pending: self.pending(&add) }
            }
            Call::Del { sandbox } => {
                self.del(&sandbox);
                done(Answer::Done)
            }
            Call::Status => done(Answer::Status(self.status())),
            // Asked for by itself, see `Input::Successor`.
            Call::Handover { .. } => done(Answer::Refused("a handover is no question".into())),
        }
    }

    fn pending(&self, add: &Add) -> Option<Pending> {
        if add.wait == Wait::Ready
            && let Some(why) = self.hosts.unready(&add.pod.namespace, &add.sidecars)
        {
            return Some(Pending::Components(why));
        }
        let whole = self.pods.get(&add.pod.uid).is_none_or(|pod| pod.is_whole(&self.entrance));
        (!whole).then_some(Pending::Loopback)
    }

    fn status(&self) -> Status {
        Status {
            generation: self.claim.generation,
            pods: self.pods.len(),
            listeners: self.held(),
            listeners_max: self.capacity.listeners_max(self.hosts.listeners_max(), self.pods.len()),
            hosts: self.hosts.introduced(),
            ready: self.hosts.has_own(),
        }
    }

    /// How many listeners are held.
    pub(crate) fn held(&self) -> usize {
        self.pods.values().map(Pod::open).sum()
    }

    /// Binds a pod's endpoints, all or none.
    fn add(&mut self, add: Add, netns: Option<File>, again: bool) -> Result<(), Refusal> {
        if again && self.ended.contains_key(&add.sandbox) {
            return Err(Refusal::Ended);
        }
        self.ended.remove(&add.sandbox);
        let netns = self.entrance.identify(netns.ok_or(Refusal::NoDescriptor)?)?;
        if !netns.is_at(&add.netns) {
            return Err(Refusal::Path(add.netns.display().to_string()));
        }
        let uid = add.pod.uid.clone();
        // What was desired of it under another name was not of it.
        self.desired.retain(|of, desired| *of != uid || desired.pod == add.pod);
        let same = |pod: &Pod| {
            let (known, of) = (&pod.add, &add.pod);
            (&known.pod, &known.sandbox, &known.sidecars) == (of, &add.sandbox, &add.sidecars)
                && pod.netns.id == netns.id
        };
        let known = self.pods.remove(&uid);
        let before = known.as_ref().filter(|pod| same(pod)).map(Pod::open);
        let mut pod = match known {
            Some(pod) if before.is_some() => pod,
            // Another sandbox, or other sidecars: what was there is closed first, on both sides.
            known => {
                known.iter().for_each(|old| self.close(old));
                Pod::new(add, netns)
            }
        };
        if let Err(refusal) = self.bind_all(&mut pod) {
            // The pod is dropped with every listener that was opened for it.
            self.close(&pod);
            self.write()?;
            return Err(refusal);
        }
        // Asked again, as while `lo` is down, with nothing new: there is nothing to tell or to write.
        let nothing_new = before == Some(pod.open());
        if let Some(desired) = self.desired.get_mut(&uid) {
            desired.sidecars = pod.add.sidecars.clone();
        }
        if !nothing_new {
            self.hosts.tell_of(&pod);
            pod.log("bound");
        }
        self.pods.insert(uid, pod);
        if !nothing_new {
            self.write()?;
        }
        Ok(())
    }

    fn bind_all(&self, pod: &mut Pod) -> Result<(), Refusal> {
        let ports: Vec<Port> = pod.add.sidecars.iter().map(|sidecar| sidecar.port).collect();
        let missing = ports.iter().filter(|port| !pod.listeners.contains_key(port)).count();
        let held = self.held() + pod.open();
        self.capacity.allows(self.hosts.listeners_max(), self.pods.len() + 1, held, missing)?;
        ports.into_iter().try_for_each(|port| Ok(pod.bind(&self.entrance, port)?))
    }

    /// Closes the endpoints of a sandbox, if it is its pod's current one: a late DEL of an older one changes nothing.
    fn del(&mut self, sandbox: &SandboxId) {
        self.ended.insert(sandbox.clone(), Instant::now());
        let uid = self.pods.iter().find(|(_, pod)| pod.add.sandbox == *sandbox).map(|(uid, _)| uid.clone());
        if let Some(uid) = uid {
            self.forget(&uid, "its sandbox ends");
            self.write_changes();
        }
    }

    /// Closes what a pod has. That is to be [written](Self::write_changes).
    pub(crate) fn forget(&mut self, uid: &PodUid, why: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        pod.log(&format!("unbound: {why}"));
        self.close(&pod);
        self.changed = true;
    }

    /// Tells the hosts to close what a pod has; this side's descriptors close with the pod.
    fn close(&self, pod: &Pod) {
        for endpoint in pod.endpoints() {
            self.hosts.tell(&ToHost::Unbind { pod: endpoint.pod.uid, port: endpoint.port }, &[]);
        }
    }

    fn write(&self) -> Result<(), StateError> {
        self.state.write(self.pods.values().map(|pod| Kept { add: pod.add.clone(), netns: pod.netns.id }).collect())
    }

    /// Writes down what has changed. What cannot be written is tried again at the next comparison; what the file names too much is
    /// found to be gone at the next start.
    pub(crate) fn write_changes(&mut self) {
        if self.changed {
            match self.write() {
                Ok(()) => self.changed = false,
                Err(error) => tracing::error!(%error, "what is held cannot be written down"),
            }
        }
    }

    /// Takes up a pod that was held before this process began.
    fn find_again(&mut self, kept: Kept) {
        let Kept { add, netns } = kept;
        let found = self.entrance.open(&add.netns);
        let (namespace, name) = (&add.pod.namespace, &add.pod.name);
        match found {
            Ok(found) if found.id == netns => _ = self.pods.insert(add.pod.uid.clone(), Pod::new(add, found)),
            Ok(_) => tracing::warn!(namespace, pod = name, "dropped: its network namespace is another one now"),
            Err(error) => tracing::warn!(namespace, pod = name, %error, "dropped: its network namespace is gone"),
        }
    }
}
