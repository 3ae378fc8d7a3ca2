//! The worker: the process that runs every guest. It enters no namespace, executes no program, and needs no capability.
//!
//! Three kinds of threads: the *front* serves connections and starts guests, the *back* runs guests that take long (see
//! [`crate::scheduler`]), and one thread does everything else here, on a runtime that no guest can starve: it talks with the
//! supervisor, prepares components, and tells endpoints what to serve.

mod prepare;
mod preparing;
mod proof;
mod pull;
mod queue;
mod retry;
mod room;
mod states;

use std::{
    collections::{HashMap, VecDeque},
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use pillion_confine::Process;
use pillion_protocol::{annotation::Port, pod::PodUid};
use pillion_sockets::{
    link::{Incoming, Link},
    listen,
};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::Interval,
};

pub use self::room::listeners_max;
use self::{
    prepare::{Failure, LookedUp, Preparation, Preparer},
    pull::PullEnd,
    queue::Queue,
    room::Room,
    states::States,
};
use crate::{
    endpoint::{Broken, Endpoint, InFlight, Shared},
    engine::{Engines, cache::Cache, settings::Capacity},
    log::{self, Lines},
    scheduler::{
        Scheduler,
        budget::{InstanceBudget, MemoryBudget, node_memory},
        cores, culprit,
    },
    store::{Artifact, Library},
    supervisor::message::{Binding, Event, FromWorker, Settings, ToWorker, Wish},
};

/// The worker's main function; its standard input is the link to its supervisor. Ends when the supervisor does.
///
/// # Errors
///
/// A machine on which it cannot run: the reason is logged, and the supervisor starts the next worker.
pub fn main() -> anyhow::Result<()> {
    let mut link = Link::new(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?));
    let ToWorker::Settings(settings) = link.receive()?.message else {
        anyhow::bail!("the supervisor's first message is not the settings");
    };
    culprit::name_culprits()?;
    Process::Worker.confine()?;
    let logging = settings.log.start()?;
    let control = Builder::new_current_thread().thread_name("control").enable_all().max_blocking_threads(8).build()?;
    let front = Builder::new_multi_thread().worker_threads(cores()).thread_name("front").enable_all().build()?;
    let worker = Worker::new(settings, link.try_clone()?, front.handle().clone(), Arc::clone(logging.lines()))?;
    let (messages, inbox) = mpsc::unbounded_channel();
    thread::Builder::new().name("from-supervisor".into()).spawn(move || {
        while let Ok(incoming) = link.receive() {
            if messages.send(incoming).is_err() {
                return;
            }
        }
    })?;
    let ended = control.block_on(worker.run(inbox));
    // Guests that run on are not waited for.
    front.shutdown_background();
    ended
}

/// How often it is looked whether the store holds too much, while it grows, and whether an artifact is to be pulled again.
const LOOK: Duration = Duration::from_secs(5);

/// The next turn of a clock that there may not be.
async fn next(clock: &mut Option<Interval>) {
    match clock {
        Some(clock) => _ = clock.tick().await,
        None => std::future::pending().await,
    }
}

struct Worker {
    settings: Settings,
    front: Handle,
    shared: Arc<Shared>,
    draining: watch::Sender<bool>,
    broken: mpsc::UnboundedReceiver<Broken>,
    preparer: Arc<Preparer>,
    states: States,
    /// What is bound, by pod and port.
    endpoints: HashMap<(Option<PodUid>, Port), Arc<Endpoint>>,
    /// Components to look up, artifacts to pull, code to compile: so many at once, the rest waits here. What takes long never holds
    /// up what does not.
    to_look_up: VecDeque<Preparation>,
    looking_up: JoinSet<LookedUp>,
    to_pull: Queue<Wish>,
    pulling: JoinSet<(Wish, PullEnd)>,
    to_compile: Queue<Artifact>,
    compiling: JoinSet<(Artifact, Result<(), Failure>)>,
    /// The store has grown since room was made in it; and that is to be done as soon as nothing is looked up.
    grown: bool,
    room_due: bool,
    /// The supervisor has told everything.
    complete: bool,
}

fn semaphore(permits: u64) -> Arc<Semaphore> {
    let permits = usize::try_from(permits).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}

impl Worker {
    fn new(settings: Settings, link: Link, front: Handle, lines: Arc<Lines>) -> anyhow::Result<Self> {
        let capacity = Capacity::of_this_process()?;
        let memory = settings.memory.map_or_else(node_memory, |memory| memory.get());
        let library = Library::open(&settings.store)?;
        let engines = Arc::new(Engines::new(capacity));
        let ticked = Arc::clone(&engines);
        let scheduler = Scheduler::new(front.clone(), settings.back, move || ticked.tick())?;
        let (draining, drain) = watch::channel(false);
        let (broken_sender, broken) = mpsc::unbounded_channel();
        let descriptors = listen::descriptor_limit();
        let Room { listeners, connections, spare } = Room::new(descriptors, u64::from(capacity.loaded), memory);
        tracing::info!(
            store = %settings.store.display(), cores = cores(), memory, descriptors, listeners, connections,
            instances = capacity.instances, loaded = capacity.loaded, "the worker starts"
        );
        let shared = Arc::new(Shared {
            scheduler: Arc::new(scheduler),
            cache: Cache::new(Arc::clone(&engines), capacity.loaded),
            memory: MemoryBudget::new(memory),
            instances: InstanceBudget::new(capacity.instances),
            listeners: semaphore(listeners),
            spare: semaphore(spare),
            connections: semaphore(connections),
            draining: drain,
            in_flight: InFlight::default(),
            open: AtomicUsize::new(0),
            lines,
            connections_each: usize::try_from(connections / 4).unwrap_or(Semaphore::MAX_PERMITS),
            broken: broken_sender,
        });
        Ok(Self {
            front,
            shared,
            draining,
            broken,
            preparer: Arc::new(Preparer::new(library, engines, link, settings.store_quota)),
            states: States::default(),
            endpoints: HashMap::new(),
            to_look_up: VecDeque::new(),
            looking_up: JoinSet::new(),
            to_pull: Queue::new(preparing::PULLS),
            pulling: JoinSet::new(),
            to_compile: Queue::new(cores()),
            compiling: JoinSet::new(),
            grown: true,
            room_due: false,
            complete: false,
            settings,
        })
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Incoming<ToWorker>>) -> anyhow::Result<()> {
        let every = |period| tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        // Nodes that were started together do not ask together.
        let refresh = self.settings.tag_refresh.map(|span| span.get().mul_f64(0.9 + fastrand::f64() / 5.0));
        let refresh = refresh.map(|period| period.max(Duration::from_secs(1)));
        let mut refresh = refresh.map(every);
        let mut look = every(LOOK);
        loop {
            self.start_preparations();
            self.report_when_decided();
            if self.room_due && self.to_look_up.is_empty() && self.looking_up.is_empty() {
                self.make_room().await;
            }
            tokio::select! {
                biased;
                incoming = inbox.recv() => match incoming {
                    // The supervisor is gone, and with it whoever would have told us to end.
                    None => return Ok(()),
                    Some(Incoming { message: ToWorker::Drain, .. }) => {
                        self.drain().await;
                        // Our end is the supervisor's to make: it may still be reading.
                        while inbox.recv().await.is_some() {}
                        return Ok(());
                    }
                    Some(incoming) => self.receive(incoming),
                },
                Some(looked_up) = self.looking_up.join_next() => match looked_up? {
                    LookedUp::Prepared(prepared) => self.prepared(prepared),
                    LookedUp::Unpulled(wish, preparation) => self.to_pull.push(wish, preparation),
                    LookedUp::Uncompiled(artifact, preparation) => self.to_compile.push(artifact, preparation),
                },
                Some(pulled) = self.pulling.join_next() => {
                    let (wish, end) = pulled?;
                    let waited = self.to_pull.done(&wish);
                    waited.into_iter().for_each(|waited| self.pulled(waited, &end));
                }
                Some(compiled) = self.compiling.join_next() => {
                    let (artifact, result) = compiled?;
                    let waited = self.to_compile.done(&artifact);
                    waited.into_iter().for_each(|waited| self.compiled(waited, &result));
                }
                Some(broken) = self.broken.recv() => self.to_look_up.extend(self.states.broken(&broken)),
                () = next(&mut refresh) => self.to_look_up.extend(self.states.refresh()),
                _ = look.tick(), if self.grown || self.states.has_retries() => {
                    self.to_look_up.extend(self.states.retries(Instant::now()));
                    self.room_due = self.grown;
                }
            }
        }
    }

    fn receive(&mut self, incoming: Incoming<ToWorker>) {
        match incoming.message {
            ToWorker::Component { id, spec, served, unproven } => {
                self.preparer.set_unproven(&id, unproven);
                let wanted = self.states.want(id, Arc::from(spec));
                self.to_look_up.push_back(Preparation { version: served, ..wanted });
            }
            ToWorker::ComponentGone(id) => {
                self.preparer.set_unproven(&id, false);
                for event in self.states.gone(&id) {
                    self.preparer.report(event);
                }
            }
            ToWorker::Unbind(pod, port) => self.unbind(pod, port),
            ToWorker::Verdict(pod, port, verdict) => {
                if let Some(endpoint) = self.endpoints.get(&(Some(pod), port)) {
                    endpoint.judge(verdict);
                }
            }
            ToWorker::Quarantined(digest) => self.preparer.quarantine(digest),
            ToWorker::Bind(bindings) => {
                let mut descriptors = incoming.descriptors.into_iter();
                for (binding, listeners) in bindings {
                    self.bind(binding, descriptors.by_ref().take(listeners));
                }
            }
            ToWorker::Compiled { id, result } => self.preparer.compiled(id, result),
            ToWorker::Pulled { id, result } => self.preparer.pulled(id, result),
            ToWorker::Complete => {
                self.complete = true;
                for event in self.states.complete() {
                    self.preparer.report(event);
                }
            }
            ToWorker::Settings(_) | ToWorker::Drain => {}
        }
    }

    fn bind(&mut self, binding: Binding, listeners: impl Iterator<Item = OwnedFd>) {
        let key = (binding.pod.as_ref().map(|pod| pod.uid.clone()), binding.port);
        let known = self.endpoints.get(&key);
        let endpoint = match known.filter(|known| known.is_of(&binding)) {
            Some(known) => {
                known.judge(binding.verdict.clone());
                known.stop_listening();
                Arc::clone(known)
            }
            None => {
                // Another component has the port now: what is on its way at the one before finishes there.
                if let (Some(pod), port) = &key
                    && known.is_some()
                {
                    self.unbind(pod.clone(), *port);
                }
                let state = self.states.bind(binding.clone());
                let endpoint = Endpoint::new(binding.clone(), state, Arc::clone(&self.shared));
                Arc::clone(self.endpoints.entry(key).insert_entry(Arc::new(endpoint)).get())
            }
        };
        let _front = self.front.enter();
        for listener in listeners {
            if let Err(error) = endpoint.listen(TcpListener::from(listener)) {
                tracing::error!(port = binding.port.get(), %error, "a listener cannot be served");
            }
        }
    }

    fn unbind(&mut self, pod: PodUid, port: Port) {
        self.states.unbind(&pod, port);
        if let Some(endpoint) = self.endpoints.remove(&(Some(pod), port)) {
            endpoint.close();
        }
    }

    /// Says once that every binding is decided.
    fn report_when_decided(&mut self) {
        if self.complete
            && let Some((ready, failed)) = self.states.all_decided()
        {
            self.complete = false;
            self.preparer.report(Event::Serving { ready, failed });
        }
    }

    /// Accepts nothing more and waits for what is in flight.
    async fn drain(&self) {
        _ = self.draining.send(true);
        let deadline = Instant::now() + self.settings.drain_timeout.get();
        // A guest ends before its answer is written: connections count too, and idle ones close at once.
        let busy = || self.shared.in_flight.now() > 0 || self.shared.open.load(Relaxed) > 0;
        while busy() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let cut = self.shared.in_flight.now();
        if cut > 0 {
            tracing::warn!(cut, "requests are cut short: they took longer than the time to drain");
        }
        // The supervisor ends this process as soon as it hears it.
        self.shared.lines.flush(log::END);
        self.preparer.report(Event::Drained { requests: self.shared.in_flight.total() });
    }
}

impl Preparer {
    /// Tells the supervisor.
    fn report(&self, event: Event) {
        self.send(&FromWorker::Event(event), &[]);
    }
}
