//! The one thread that owns every namespace and listener, and what it reacts to.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::{Port, Sidecar, Sidecars},
    keeper::{Add, Answer, Call, Endpoint, FromHost, Status, ToHost, VERSION, Wait},
    pod::{Pod as PodName, PodUid, SandboxId},
};
use pillion_sockets::link::Link;

use crate::{
    capacity::Capacity,
    claim::Claim,
    find::{self, Found},
    host::{HostId, Hosts},
    netns::{Entrance, NetnsError},
    plan::{Action, plan},
    pod::{BindError, Pod},
    state::{Kept, StateError, StateFile},
};

/// How often what is desired is compared with what is there.
const COMPARE: Duration = Duration::from_secs(30);

/// How soon after a pod was named that is not held.
const SOON: Duration = Duration::from_millis(50);

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
    /// A newer keeper asks for everything.
    Successor {
        /// Its generation.
        generation: u64,
        /// The connection to it.
        link: Link,
    },
    /// A host connected.
    HostConnected(HostId, Link),
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
    Capacity(#[from] crate::capacity::Full),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// A pod that should have endpoints, as the host has said.
struct Desired {
    pod: PodName,
    sidecars: Sidecars,
    /// Where its namespace may be.
    hint: Option<PathBuf>,
    /// Why it has none, as the host was told.
    failure: Option<String>,
}

/// The state of the keeper.
pub struct Keeper {
    pub(crate) pods: BTreeMap<PodUid, Pod>,
    pub(crate) hosts: Hosts,
    pub(crate) claim: Claim,
    desired: BTreeMap<PodUid, Desired>,
    entrance: Entrance,
    state: StateFile,
    capacity: Capacity,
    /// The node's `/proc`.
    proc: PathBuf,
    next_comparison: Instant,
    /// What is held is not written down yet.
    changed: bool,
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
        let mut keeper =
            Self { pods, hosts, claim, desired, entrance, state, capacity, proc, next_comparison, changed: false };
        for kept in kept {
            keeper.find_again(kept);
        }
        Ok(keeper)
    }

    /// Reacts until it is told to end or another keeper has everything. What is held is left as it is: only descriptors of this
    /// process close.
    pub fn run(mut self, inbox: &Receiver<Input>) -> Ended {
        self.next_comparison = Instant::now();
        loop {
            if self.next_comparison <= Instant::now() {
                self.next_comparison = Instant::now() + COMPARE;
                self.compare();
            }
            match inbox.recv_timeout(self.next_comparison.saturating_duration_since(Instant::now())) {
                Ok(Input::Plugin { call, netns, answer }) => _ = answer.send(self.answer(call, netns)),
                Ok(Input::Successor { generation, link }) => match self.hand_over(generation, link) {
                    Ok(()) => return Ended::Succeeded,
                    Err(error) => {
                        tracing::error!(generation, %error, "another keeper asked for everything, and has not got it")
                    }
                },
                Ok(Input::HostConnected(id, link)) => self.hosts.add(id, link),
                Ok(Input::Host(id, said, descriptors)) if self.hosts.has(id) => self.hear(id, said, descriptors),
                Ok(Input::HostGone(id)) => self.hosts.remove(id),
                Ok(Input::Host(..)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::Terminate) | Err(RecvTimeoutError::Disconnected) => return Ended::Terminated,
            }
        }
    }

    fn answer(&mut self, call: Call, netns: Option<File>) -> Outcome {
        let done = |answer| Outcome { answer, pending: None };
        match call {
            Call::Add(add) => {
                let (uid, wait, sidecars) = (add.pod.uid.clone(), add.wait, add.sidecars.clone());
                let (name, namespace, sandbox) =
                    (add.pod.name.clone(), add.pod.namespace.clone(), add.sandbox.to_string());
                if let Err(error) = self.add(add, netns) {
                    tracing::error!(namespace, pod = name, sandbox, %error, "a pod's endpoints cannot be bound");
                    return done(Answer::Refused(error.to_string()));
                }
                Outcome { answer: Answer::Done, pending: self.pending(&uid, wait, &sidecars) }
            }
            Call::Del { sandbox } => {
                self.del(&sandbox);
                done(Answer::Done)
            }
            Call::Status => done(Answer::Status(self.status())),
            Call::Handover { .. } => done(Answer::Refused("this is not how a keeper is asked to hand over".into())),
        }
    }

    fn pending(&self, uid: &PodUid, wait: Wait, sidecars: &Sidecars) -> Option<Pending> {
        let unready = || self.hosts.unready(sidecars).map(Pending::Components);
        if wait == Wait::Ready
            && let Some(pending) = unready()
        {
            return Some(pending);
        }
        let whole = self.pods.get(uid).is_none_or(|pod| pod.is_whole(&self.entrance));
        (!whole).then_some(Pending::Loopback)
    }

    fn status(&self) -> Status {
        Status {
            generation: self.claim.generation,
            pods: self.pods.len(),
            listeners: self.pods.values().map(Pod::open).sum(),
            listeners_max: self.capacity.listeners_max(self.hosts.listeners_max(), self.pods.len()),
            hosts: self.hosts.count(),
        }
    }

    /// Binds a pod's endpoints, all or none.
    fn add(&mut self, add: Add, netns: Option<File>) -> Result<(), Refusal> {
        let netns = self.entrance.identify(netns.ok_or(Refusal::NoDescriptor)?)?;
        if !netns.is_at(&add.netns) {
            return Err(Refusal::Path(add.netns.display().to_string()));
        }
        let uid = add.pod.uid.clone();
        let same =
            |pod: &Pod| pod.add.sandbox == add.sandbox && pod.netns.id == netns.id && pod.add.sidecars == add.sidecars;
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
            self.tell_of(&pod, None);
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
        let held = self.pods.values().map(Pod::open).sum::<usize>() + pod.open();
        self.capacity.allows(self.hosts.listeners_max(), self.pods.len() + 1, held, missing)?;
        ports.into_iter().try_for_each(|port| Ok(pod.bind(&self.entrance, port)?))
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
        pod.log(&format!("unbound: {why}"));
        self.close(&pod);
        if let Err(error) = self.write() {
            // What it names too much is found to be gone at the next start.
            tracing::error!(%error, "what is held cannot be written down");
        }
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

    /// Takes up a pod that was held before this process began.
    fn find_again(&mut self, kept: Kept) {
        let Kept { add, netns } = kept;
        let found = File::open(&add.netns).map_err(NetnsError::Io).and_then(|file| self.entrance.identify(file));
        let (namespace, name) = (&add.pod.namespace, &add.pod.name);
        match found {
            Ok(found) if found.id == netns => _ = self.pods.insert(add.pod.uid.clone(), Pod::new(add, found)),
            Ok(_) => tracing::warn!(namespace, pod = name, "dropped: its network namespace is another one now"),
            Err(error) => tracing::warn!(namespace, pod = name, %error, "dropped: its network namespace is gone"),
        }
    }

    /// Compares what each pod should have with what is there, and mends it.
    fn compare(&mut self) {
        let observed = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.observe(&self.entrance))).collect();
        let held = self.pods.iter().map(|(uid, pod)| (uid, &pod.add.sidecars));
        let sought = self.desired.iter().filter(|(uid, _)| !self.pods.contains_key(uid));
        let actions = plan(held.chain(sought.map(|(uid, desired)| (uid, &desired.sidecars))), &observed);
        let mut missing = BTreeMap::new();
        for action in actions {
            match action {
                Action::Forget(uid) => self.forget(&uid, "its network namespace is gone"),
                Action::Bind(uid, port) => self.bind(&uid, port),
                Action::Close(uid, port) => self.close_port(&uid, port),
                Action::Find(uid) => {
                    let hint = self.desired.get(&uid).and_then(|desired| desired.hint.clone());
                    missing.insert(uid, hint);
                }
            }
        }
        if !missing.is_empty() {
            self.find(&missing);
        }
        if std::mem::take(&mut self.changed)
            && let Err(error) = self.write()
        {
            tracing::error!(%error, "what is held cannot be written down");
            self.changed = true;
        }
    }

    fn close_port(&mut self, uid: &PodUid, port: Port) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.listeners.remove(&port);
            self.hosts.tell(&ToHost::Unbind { pod: uid.clone(), port }, &[]);
        }
    }

    fn bind(&mut self, uid: &PodUid, port: Port) {
        let (pods, held) = (self.pods.len(), self.pods.values().map(Pod::open).sum());
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let before = pod.open();
        if let Some(listeners) = pod.listeners.get(&port) {
            listeners.listen_again();
        }
        let allowed = self.capacity.allows(self.hosts.listeners_max(), pods, held, 1).map_err(Refusal::Capacity);
        let bound = allowed.and_then(|()| Ok(pod.bind(&self.entrance, port)?));
        let (opened, name) = (pod.open() > before, pod.add.pod.clone());
        match bound {
            Ok(()) => {}
            // After a restart the host may still have it, and hands it back when it connects.
            Err(Refusal::Bind(error)) if error.error.kind() == io::ErrorKind::AddrInUse && self.hosts.count() == 0 => {}
            Err(error) => {
                tracing::error!(namespace = name.namespace, pod = name.name, %error, "an endpoint is missing");
                self.tell_failure(uid, &error.to_string());
            }
        }
        if opened && let Some(pod) = self.pods.get(uid) {
            self.tell_of(pod, None);
        }
    }

    /// Looks for pods that are desired and not held, and binds what can be bound.
    fn find(&mut self, missing: &BTreeMap<PodUid, Option<PathBuf>>) {
        for (uid, found) in find::find(&self.proc, missing) {
            let Some(desired) = self.desired.get(&uid) else { continue };
            let (pod, sidecars) = (desired.pod.clone(), desired.sidecars.clone());
            let netns = found.map_err(|_| NetnsError::HostNetwork).and_then(|Found { sandbox, netns }| {
                let identified = self.entrance.identify(File::open(&netns)?)?;
                Ok((Add { pod, sandbox, netns, sidecars, wait: Wait::Bound }, identified))
            });
            match netns {
                Ok((add, netns)) => {
                    let ports: Vec<Port> = add.sidecars.iter().map(|sidecar| sidecar.port).collect();
                    let pod = Pod::new(add, netns);
                    pod.log("found");
                    self.pods.insert(uid.clone(), pod);
                    ports.into_iter().for_each(|port| self.bind(&uid, port));
                    self.changed = true;
                }
                Err(error) => self.tell_failure(&uid, &error.to_string()),
            }
        }
    }

    /// Tells the hosts once why a pod that they desire has not what it should.
    fn tell_failure(&mut self, uid: &PodUid, why: &str) {
        let Some(desired) = self.desired.get_mut(uid) else { return };
        if desired.failure.as_deref() != Some(why) {
            desired.failure = Some(why.to_owned());
            let pod = desired.pod.clone();
            tracing::warn!(namespace = pod.namespace, pod = pod.name, why, "a pod that is desired cannot be served");
            self.hosts.tell(&ToHost::Failed { pod, why: why.to_owned() }, &[]);
        }
    }

    /// Hears what a host says.
    fn hear(&mut self, id: HostId, said: FromHost, descriptors: Vec<OwnedFd>) {
        match said {
            FromHost::Hello { version: VERSION, listeners_max } => self.hosts.limit(id, listeners_max),
            FromHost::Hello { version, .. } => {
                tracing::error!(version, expected = VERSION, "a host speaks another version: it is not served");
                self.hosts.remove(id);
            }
            FromHost::Held(endpoint) => self.take_back(endpoint, descriptors),
            FromHost::Complete => {
                self.compare();
                self.hosts.introduce(id);
                self.pods.values().for_each(|pod| self.tell_of(pod, Some(id)));
                self.hosts.tell_one(id, &ToHost::Complete, &[]);
            }
            FromHost::Component { name, fate } => self.hosts.note(id, name, fate),
            FromHost::Desired { pod, sidecars, netns } => self.desire(pod, sidecars, netns),
            FromHost::Ended(uid) => {
                self.desired.remove(&uid);
                self.forget(&uid, "the pod has ended");
            }
        }
    }

    fn desire(&mut self, name: PodName, sidecars: Sidecars, hint: Option<PathBuf>) {
        let uid = name.uid.clone();
        if let Some(pod) = self.pods.get_mut(&uid)
            && pod.add.sidecars != sidecars
        {
            pod.add.sidecars = sidecars.clone();
            self.changed = true;
            if let Some(pod) = self.pods.get(&uid) {
                self.tell_of(pod, None);
            }
        }
        self.desired.insert(uid, Desired { pod: name, sidecars, hint, failure: None });
        self.next_comparison = self.next_comparison.min(Instant::now() + SOON);
    }

    /// Takes listeners that the host or another keeper had, if they are what they should be. A pod that is not known yet, because
    /// the state file was lost, is known then.
    pub fn take_back(&mut self, endpoint: Endpoint, descriptors: Vec<OwnedFd>) {
        let Endpoint { pod, sandbox, netns, netns_cookie, name, port } = endpoint;
        let uid = pod.uid.clone();
        let entrance = &self.entrance;
        let sidecar = Sidecar { name, port };
        if !self.pods.contains_key(&uid) {
            let found = File::open(&netns).ok().and_then(|file| entrance.identify(file).ok());
            let Some(found) = found.filter(|found| found.id.cookie == netns_cookie) else { return };
            let add = Add { pod, sandbox, netns, sidecars: sidecar.clone().into(), wait: Wait::Bound };
            let pod = Pod { learned: true, ..Pod::new(add, found) };
            pod.log("known again, by what another process held of it");
            self.pods.insert(uid.clone(), pod);
            self.changed = true;
        }
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        if pod.learned && !pod.add.sidecars.iter().any(|known| known.port == port) {
            pod.add.sidecars.push(sidecar);
        }
        if pod.netns.id.cookie != netns_cookie {
            return;
        }
        for descriptor in descriptors {
            if let Err(error) = pod.take(port, descriptor) {
                let (namespace, name) = (&pod.add.pod.namespace, &pod.add.pod.name);
                tracing::warn!(namespace, pod = name, port = port.get(), %error, "a listener that another process had is not used");
            }
        }
    }

    /// Tells of what a pod has: every host, or one.
    fn tell_of(&self, pod: &Pod, to: Option<HostId>) {
        for endpoint in pod.endpoints() {
            let Some(listeners) = pod.listeners.get(&endpoint.port) else { continue };
            let (message, descriptors) = (ToHost::Bind(endpoint), listeners.descriptors());
            match to {
                Some(id) => self.hosts.tell_one(id, &message, &descriptors),
                None => self.hosts.tell(&message, &descriptors),
            }
        }
    }
}
