//! The supervisor: the first process. It is small and starts the others.
//!
//! It holds every listener, so that the kernel keeps queueing connections while there is no worker; it starts the worker again
//! at once when that dies, and hands it everything anew; it starts a compiler or a puller when the worker asks for one. It
//! reads nothing from the network.

pub mod child;
pub mod control;
mod errands;
pub mod keeper;
pub mod message;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{PipeReader, Read},
    mem,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    process::Child,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::Port,
    component::ComponentSpec,
    digest::Digest,
    id::ComponentId,
    keeper::{Endpoint, Fate, ToHost},
    pod::PodUid,
    stream::ToNode,
    text,
};
use pillion_sockets::{
    link::{Incoming, Link, MAX_DESCRIPTORS},
    listen,
};

use self::{
    control::Control,
    message::{Binding, Event, FromWorker, Served, Settings, ToWorker, Wish},
};
use crate::registry::{
    credentials::Credentials,
    message::{Failure, Pulled},
    settings::Location,
};

/// A worker that lived for less than this is not started again at once, but after as long a pause.
const CRASH_LOOP: Duration = Duration::from_secs(1);

/// How long the worker may read nothing.
const STALL: Duration = Duration::from_secs(5);

/// How often to look whether listeners listen.
const LOOK: Duration = Duration::from_secs(30);

/// A component that took so many workers down is not run again.
const QUARANTINE: u32 = 2;

/// So many workers in a row that fail before they say anything are a fault that the next one will not mend.
const STILLBORN: u32 = 5;

/// What the supervisor reacts to.
pub enum Input {
    /// The worker said something; the number says which worker.
    Worker(u32, Incoming<FromWorker>),
    /// The link to the worker is gone: it is dead or dying.
    WorkerGone(u32),
    /// A compiler child ended.
    Compiled(u32, u64, Result<crate::compiler::facts::Facts, String>),
    /// A puller child ended.
    Pulled(Wish, Box<Result<Pulled, Failure>>),
    /// A component is new or has changed.
    Component(ComponentId, Box<ComponentSpec>),
    /// A component is no more.
    ComponentGone(ComponentId),
    /// A keeper is there: what this node's pods have bound comes from it.
    KeeperConnected {
        /// The connection to it.
        link: Link,
        /// It knows what is held here.
        introduced: bool,
    },
    /// The keeper said something.
    Keeper(ToHost, Vec<OwnedFd>),
    /// Control has said something.
    Told(Box<ToNode>),
    /// The follower of control has ended.
    FollowerGone,
    /// The user, or Kubernetes, asks us to end.
    Terminate,
}

/// What the worker needs to know; told again to each new one.
pub struct Desired {
    /// How it works.
    pub settings: Settings,
    /// Where the settings for registries are.
    pub registries: Location,
    /// Components.
    pub components: BTreeMap<ComponentId, Component>,
    /// Bindings.
    pub bindings: BTreeMap<BindingKey, Bound>,
    /// What control tells; `None` where components come from files.
    pub control: Option<Control>,
}

/// Identifies a binding: by the pod that it is in, and its port.
pub type BindingKey = (Option<PodUid>, Port);

/// A binding with its listeners.
pub struct Bound {
    binding: Binding,
    listeners: Vec<OwnedFd>,
    /// What the keeper told of it; `None` on a laptop.
    endpoint: Option<Endpoint>,
}

impl Bound {
    /// The component that is bound.
    pub fn component(&self) -> &ComponentId {
        &self.binding.component
    }
}

impl From<(Binding, Vec<OwnedFd>)> for Bound {
    fn from((binding, listeners): (Binding, Vec<OwnedFd>)) -> Self {
        Self { binding, listeners, endpoint: None }
    }
}

/// A component that is wanted.
pub struct Component {
    spec: ComponentSpec,
    /// What a worker has served of it: the next one goes on with that, whatever became of its file.
    served: Option<Served>,
    /// It has changed since, and what becomes of that is not known yet.
    changed: bool,
    /// What became of it, as far as that is known.
    fate: Option<Fate>,
    /// Why it is not served as it is wanted now, if it is not: what was served before goes on.
    failure: Option<String>,
}

impl From<ComponentSpec> for Component {
    fn from(spec: ComponentSpec) -> Self {
        Self { spec, served: None, changed: false, fate: None, failure: None }
    }
}

/// The supervisor's state.
pub struct Supervisor {
    desired: Desired,
    inputs: (Sender<Input>, Receiver<Input>),
    worker: Option<Worker>,
    /// The number of the current worker: 0 for the first.
    generation: u32,
    terminating: bool,
    /// The keeper, once one was there.
    keeper: Option<Link>,
    /// Components whose fate it was told when one was bound.
    told_fates: BTreeSet<ComponentId>,
    /// Components that took a worker down, and how often.
    culprits: HashMap<Digest, u32>,
    /// Who we are at registries.
    credentials: Arc<Credentials>,
    /// Pulls that are on their way, and the questions of the worker that wait for each.
    pulls: HashMap<Wish, Vec<u64>>,
    /// When to look after the listeners.
    next_look: Instant,
    /// Workers in a row that failed before they said anything.
    stillborn: u32,
}

struct Worker {
    process: Child,
    link: Link,
    /// What it says when a fault ends it.
    last_words: PipeReader,
    started: Instant,
}

impl Supervisor {
    /// A supervisor for what is desired. Nothing is started yet.
    pub fn new(desired: Desired) -> Self {
        Self {
            desired,
            inputs: channel(),
            worker: None,
            generation: 0,
            terminating: false,
            keeper: None,
            told_fates: BTreeSet::new(),
            culprits: HashMap::new(),
            credentials: Arc::default(),
            pulls: HashMap::new(),
            next_look: Instant::now() + LOOK,
            stillborn: 0,
        }
    }

    /// Where to send what it should react to.
    pub fn inputs(&self) -> Sender<Input> {
        self.inputs.0.clone()
    }

    /// Runs until the worker has drained; tells `report` what happens.
    ///
    /// # Errors
    ///
    /// A worker that cannot be started at all.
    pub fn run(mut self, mut report: impl FnMut(Event)) -> anyhow::Result<()> {
        self.start_worker(&mut report)?;
        self.start_follower();
        loop {
            match self.next_input()? {
                Input::Worker(generation, incoming) if generation == self.generation => {
                    self.stillborn = 0;
                    match incoming.message {
                        FromWorker::Compile { id } => self.compile(id, incoming.descriptors),
                        FromWorker::Pull { id, wish, full } => self.pull(id, wish, full),
                        FromWorker::Decided { component, result } => self.remember(&component, result),
                        FromWorker::Event(event) => {
                            let drained = matches!(event, Event::Drained { .. });
                            report(event);
                            if drained {
                                return self.end_worker();
                            }
                        }
                    }
                }
                Input::Compiled(generation, id, result) if generation == self.generation => {
                    self.tell(&ToWorker::Compiled { id, result });
                }
                Input::Pulled(wish, result) => self.pulled(&wish, *result),
                // Of a worker that is gone.
                Input::Worker(..) | Input::Compiled(..) => {}
                Input::WorkerGone(generation) if generation == self.generation => {
                    if self.bury_worker() {
                        return Ok(());
                    }
                    anyhow::ensure!(
                        self.stillborn < STILLBORN,
                        "{STILLBORN} workers failed one after another as they started; see what they logged"
                    );
                    self.generation += 1;
                    // Nobody waits for them any more; who asks now joins them.
                    self.pulls.values_mut().for_each(Vec::clear);
                    self.start_worker(&mut report)?;
                }
                Input::WorkerGone(_) => {}
                Input::Component(id, spec) => self.change_component(id, spec),
                Input::ComponentGone(id) => self.remove_component(id),
                Input::Told(told) => self.hear_control(*told),
                Input::FollowerGone => self.start_follower(),
                Input::KeeperConnected { link, introduced } => self.meet_keeper(link, introduced),
                Input::Keeper(said, descriptors) => self.hear_keeper(said, descriptors),
                Input::Terminate if self.terminating => {
                    // Asked twice: at once.
                    return self.end_worker();
                }
                Input::Terminate => {
                    self.terminating = true;
                    self.tell(&ToWorker::Drain);
                }
            }
        }
    }

    fn change_component(&mut self, id: ComponentId, spec: Box<ComponentSpec>) {
        let unproven = self.is_unproven(&id);
        self.tell(&ToWorker::Component { id: id.clone(), spec: spec.clone(), served: None, unproven });
        // Should the new version turn out to be broken, the old one serves on. The next worker, which knows nothing of it,
        // could only serve it as what it is not.
        let known = self.desired.components.get(&id).filter(|known| known.spec.image == spec.image);
        let served = known.and_then(|known| known.served.clone());
        let fate = served.as_ref().map(|_| Fate::Ready);
        let component = Component { spec: *spec, served, changed: true, fate, failure: None };
        self.desired.components.insert(id, component);
    }

    /// Whether a component's namespace has to be let to its image by the registry, whoever had it pulled.
    fn is_unproven(&self, id: &ComponentId) -> bool {
        self.desired.control.as_ref().is_some_and(|control| control.is_unproven(id))
    }

    fn remove_component(&mut self, id: ComponentId) {
        self.desired.components.remove(&id);
        self.tell_fate(&id);
        self.tell(&ToWorker::ComponentGone(id));
    }

    /// Waits for the next input, and looks after the listeners meanwhile.
    fn next_input(&mut self) -> anyhow::Result<Input> {
        loop {
            let next = self.report_due().map_or(self.next_look, |due| due.min(self.next_look));
            match self.inputs.1.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(input) => return Ok(input),
                Err(RecvTimeoutError::Timeout) if self.report_due().is_some_and(|due| due <= Instant::now()) => {
                    self.report()
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.next_look = Instant::now() + LOOK;
                    self.listen_again();
                }
                Err(error @ RecvTimeoutError::Disconnected) => return Err(error.into()),
            }
        }
    }

    /// Makes listeners listen again that whoever holds a copy has shut down; the worker's copies do, too, then.
    fn listen_again(&self) {
        for listener in self.desired.bindings.values().flat_map(|bound| &bound.listeners) {
            match listen::revive(listener) {
                Ok(false) => {}
                Ok(true) => tracing::warn!("a listener was shut down by somebody, and listens again"),
                Err(error) => tracing::error!(%error, "a listener that was shut down cannot listen again"),
            }
        }
    }

    fn remember(&mut self, component: &ComponentId, result: Result<Served, String>) {
        let Some(known) = self.desired.components.get_mut(component) else { return };
        let result = result.map_err(|why| text::reason(&why));
        known.changed = false;
        known.failure = result.as_ref().err().cloned();
        known.served = result.as_ref().ok().cloned().or(known.served.take());
        // What serves goes on serving: a broken new version does not take the old one's place.
        let fate = match (&known.served, result) {
            (None, Err(message)) => Fate::Failed(message),
            _ => Fate::Ready,
        };
        if known.fate.as_ref() != Some(&fate) {
            known.fate = Some(fate);
            self.tell_fate(component);
        }
        self.report_soon();
    }

    fn start_worker(&mut self, report: &mut impl FnMut(Event)) -> anyhow::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(STALL))?;
        let (last_words, mouth) = std::io::pipe()?;
        let process = child::worker(theirs, mouth)?;
        report(Event::Worker { pid: process.id(), restarts: self.generation });
        let link = Link::new(ours);
        self.read_from(link.try_clone()?)?;
        self.worker = Some(Worker { process, link, last_words, started: Instant::now() });
        self.tell_everything();
        Ok(())
    }

    /// Reads what the worker says on a thread of its own, so that neither side ever waits for the other to read.
    fn read_from(&self, mut link: Link) -> std::io::Result<()> {
        let (inputs, generation) = (self.inputs(), self.generation);
        thread::Builder::new().name("from-worker".into()).spawn(move || {
            while let Ok(incoming) = link.receive() {
                if inputs.send(Input::Worker(generation, incoming)).is_err() {
                    return;
                }
            }
            _ = inputs.send(Input::WorkerGone(generation));
        })?;
        Ok(())
    }

    fn tell_everything(&self) {
        let Desired { settings, components, bindings, .. } = &self.desired;
        self.tell(&ToWorker::Settings(settings.clone()));
        // Bindings first: what becomes of a component is told for each binding that there is.
        // Many at once: thousands of messages would take longer than everything else.
        let (mut told, mut descriptors) = (Vec::new(), Vec::new());
        for Bound { binding, listeners, .. } in bindings.values() {
            if descriptors.len() + listeners.len() > MAX_DESCRIPTORS {
                self.tell_with(&ToWorker::Bind(mem::take(&mut told)), &mem::take(&mut descriptors));
            }
            told.push((binding.clone(), listeners.len()));
            descriptors.extend(listeners.iter().map(AsFd::as_fd));
        }
        self.tell_with(&ToWorker::Bind(told), &descriptors);
        for (digest, _) in self.culprits.iter().filter(|(_, deaths)| **deaths >= QUARANTINE) {
            self.tell(&ToWorker::Quarantined(*digest));
        }
        for (id, Component { spec, served, changed, .. }) in components {
            let (id, spec) = (id.clone(), Box::new(spec.clone()));
            let served = served.as_ref().map(|served| served.version).filter(|_| !changed);
            let unproven = self.is_unproven(&id);
            self.tell(&ToWorker::Component { id, spec, served, unproven });
        }
        if self.is_complete() {
            self.tell(&ToWorker::Complete);
        }
    }

    fn tell(&self, message: &ToWorker) {
        self.tell_with(message, &[]);
    }

    /// A worker that cannot be told is dying: its end comes as an input, and the next one is told everything.
    fn tell_with(&self, message: &ToWorker, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        if let Some(worker) = &self.worker
            && let Err(error) = worker.link.send(message, descriptors)
        {
            tracing::debug!(%error, "the worker cannot be told");
            // Half of a message may be there.
            _ = worker.link.socket().shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes note of a worker's death; true if that was to be.
    fn bury_worker(&mut self) -> bool {
        let Some(mut worker) = self.worker.take() else { return self.terminating };
        // Its end of the link is closed: if it is not dead it is of no use.
        _ = worker.process.kill();
        let ended = worker.process.wait();
        let failed = ended.as_ref().is_ok_and(|status| status.code().is_some());
        let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        if self.terminating {
            return true;
        }
        // One that is killed says nothing about the next one.
        self.stillborn += u32::from(failed);
        tracing::error!(%status, pid = worker.process.id(), "the worker died; the next one starts");
        if let Some(culprit) = last_words(&mut worker.last_words) {
            self.blame(culprit);
        }
        let lived = worker.started.elapsed();
        if lived < CRASH_LOOP && self.generation > 2 {
            thread::sleep(CRASH_LOOP.saturating_sub(lived));
        }
        false
    }

    /// Takes note of a component that took a worker down. The next worker is told of those that did so too often.
    fn blame(&mut self, culprit: Digest) {
        let deaths = self.culprits.entry(culprit).or_default();
        *deaths += 1;
        let (deaths, quarantined) = (*deaths, *deaths >= QUARANTINE);
        let mut names = Vec::new();
        for (id, component) in &mut self.desired.components {
            if component.served.as_ref().is_some_and(|served| served.parts.contains(&culprit)) {
                names.push(id.to_string());
                component.served = component.served.take().filter(|_| !quarantined);
            }
        }
        let components = names.join(", ");
        tracing::error!(components, %culprit, deaths, quarantined, "the worker died while it ran this component");
    }

    fn end_worker(&mut self) -> anyhow::Result<()> {
        if let Some(mut worker) = self.worker.take() {
            worker.process.kill()?;
            worker.process.wait()?;
        }
        Ok(())
    }
}

/// What the worker said as it died: the component that the dying thread ran, if it ran one.
fn last_words(pipe: &mut PipeReader) -> Option<Digest> {
    let mut digest = [0; 32];
    pipe.read_exact(&mut digest).ok()?;
    Some(Digest::from_sha256(digest))
}
