//! The supervisor: the first process. It is small and starts the other two.
//!
//! It holds every listener, so that the kernel keeps queueing connections while there is no worker; it starts the worker again
//! at once when that dies, and hands it everything anew; it starts a compiler child when the worker asks for one. It reads
//! nothing from the network.

pub mod child;
pub mod keeper;
pub mod message;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    process::Child,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::Port, component::ComponentSpec, digest::Digest, keeper::ToHost, name::Name, pod::PodUid,
};
use pillion_sockets::link::{Incoming, Link};

use self::message::{Binding, Event, FromWorker, Settings, ToWorker};

/// A worker that lived for less than this is not started again at once, but after as long a pause.
const CRASH_LOOP: Duration = Duration::from_secs(1);

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
    /// A component is new or has changed.
    Component(Name, Box<ComponentSpec>),
    /// A component is no more.
    ComponentGone(Name),
    /// A keeper is there: what this node's pods have bound comes from it.
    KeeperConnected(Link),
    /// The keeper said something.
    Keeper(ToHost, Vec<OwnedFd>),
    /// The user, or Kubernetes, asks us to end.
    Terminate,
}

/// What the worker needs to know; told again to each new one.
pub struct Desired {
    /// How it works.
    pub settings: Settings,
    /// Components by name.
    pub components: BTreeMap<Name, Component>,
    /// Bindings with the listeners of each.
    pub bindings: Vec<(Binding, Vec<OwnedFd>)>,
}

/// A component that is wanted.
pub struct Component {
    spec: ComponentSpec,
    /// What a worker has served of it: the next one goes on with that, whatever became of its file.
    served: Option<Digest>,
    /// It has changed since, and what becomes of that is not known yet.
    changed: bool,
}

impl From<ComponentSpec> for Component {
    fn from(spec: ComponentSpec) -> Self {
        Self { spec, served: None, changed: false }
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
    /// What the keeper has told since it connected.
    told: BTreeSet<(PodUid, Port)>,
    /// Workers in a row that failed before they said anything.
    stillborn: u32,
}

struct Worker {
    process: Child,
    link: Link,
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
            told: BTreeSet::new(),
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
        loop {
            match self.inputs.1.recv()? {
                Input::Worker(generation, incoming) if generation == self.generation => {
                    self.stillborn = 0;
                    match incoming.message {
                        FromWorker::Compile { id } => self.compile(id, incoming.descriptors),
                        FromWorker::Event(event) => {
                            self.remember(&event);
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
                    self.start_worker(&mut report)?;
                }
                Input::WorkerGone(_) => {}
                Input::Component(name, spec) => {
                    self.tell(&ToWorker::Component { name: name.clone(), spec: spec.clone(), served: None });
                    // Should the new version turn out to be broken, the old one serves on.
                    let served = self.desired.components.get(&name).and_then(|known| known.served);
                    self.desired.components.insert(name, Component { spec: *spec, served, changed: true });
                }
                Input::ComponentGone(name) => {
                    self.desired.components.remove(&name);
                    self.tell(&ToWorker::ComponentGone(name));
                }
                Input::KeeperConnected(link) => self.meet_keeper(&link),
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

    fn remember(&mut self, event: &Event) {
        let (component, digest) = match event {
            Event::Ready { component, digest, .. } => (component, Some(*digest)),
            Event::Failed { component, .. } => (component, None),
            _ => return,
        };
        if let Some(known) = self.desired.components.get_mut(component) {
            known.served = digest.or(known.served);
            known.changed = false;
        }
    }

    fn start_worker(&mut self, report: &mut impl FnMut(Event)) -> anyhow::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let process = child::worker(theirs)?;
        report(Event::Worker { pid: process.id(), restarts: self.generation });
        let link = Link::new(ours);
        self.read_from(link.try_clone()?)?;
        self.worker = Some(Worker { process, link, started: Instant::now() });
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
        let Desired { settings, components, bindings } = &self.desired;
        self.tell(&ToWorker::Settings(settings.clone()));
        // Bindings first: what becomes of a component is told for each binding that there is.
        for (binding, listeners) in bindings {
            let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            self.tell_with(&ToWorker::Bind(binding.clone()), &descriptors);
        }
        for (name, Component { spec, served, changed }) in components {
            let (name, spec) = (name.clone(), Box::new(spec.clone()));
            self.tell(&ToWorker::Component { name, spec, served: served.filter(|_| !changed) });
        }
        self.tell(&ToWorker::Complete);
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
        }
    }

    fn compile(&self, id: u64, descriptors: Vec<OwnedFd>) {
        let (inputs, generation) = (self.inputs(), self.generation);
        let compile = move || {
            let result = child::compile(descriptors);
            _ = inputs.send(Input::Compiled(generation, id, result));
        };
        if let Err(error) = thread::Builder::new().name("compile".into()).spawn(compile) {
            let reason = format!("a thread for the compiler cannot be started: {error}");
            _ = self.inputs.0.send(Input::Compiled(self.generation, id, Err(reason)));
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
        let lived = worker.started.elapsed();
        if lived < CRASH_LOOP && self.generation > 2 {
            thread::sleep(CRASH_LOOP.saturating_sub(lived));
        }
        false
    }

    fn end_worker(&mut self) -> anyhow::Result<()> {
        if let Some(mut worker) = self.worker.take() {
            worker.process.kill()?;
            worker.process.wait()?;
        }
        Ok(())
    }
}
