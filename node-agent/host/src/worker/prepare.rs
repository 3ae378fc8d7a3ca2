//! Preparing a component: what its image holds into the store, its native code from the store or from a compiler, checked against its
//! limits. What takes long, a pull or a compilation, is asked of the supervisor.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use pillion_protocol::{
    component::{ComponentSpec, Image},
    digest::Digest,
    id::ComponentId,
    quantity::ByteSize,
    text,
};
use pillion_sockets::link::Link;
use tokio::sync::oneshot;

use crate::{
    compiler::facts::Facts,
    endpoint::{App, Part, Version},
    engine::{Engines, cache::Cache},
    registry::{self, message::Pulled},
    store::{Artifact, Held, Library, NativeCode, StoreError, Stored},
    supervisor::message::{Event, FromWorker, Reason, Wish},
};

/// A component to prepare.
#[derive(Clone, Debug)]
pub(super) struct Preparation {
    pub(super) id: ComponentId,
    pub(super) spec: Arc<ComponentSpec>,
    /// Which of the component's preparations this is: a newer one replaces it.
    pub(super) generation: u64,
    pub(super) began: Instant,
    /// Native code that is on disk is not to be used.
    pub(super) anew: bool,
    /// What is to be served, if it is in the store; else, what its file holds or its tag leads to now.
    pub(super) version: Option<Digest>,
    /// Native code was made for it.
    pub(super) compiled: bool,
    /// Its artifact was pulled for it: that is in the store, then.
    pub(super) pulled: bool,
}

/// What became of a preparation.
pub(super) struct Prepared {
    pub(super) preparation: Preparation,
    pub(super) result: Result<Outcome, Failure>,
}

/// A component that can be served.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) version: Arc<Version>,
    /// Native code had to be made.
    pub(super) compiled: bool,
}

/// Why a component cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// What a look into the store gave.
pub(super) enum LookedUp {
    Prepared(Prepared),
    /// The artifact is not in the store, or it is to be looked whether the tag leads elsewhere now.
    Unpulled(Wish, Preparation),
    /// The native code of this component is not on disk.
    Uncompiled(Artifact, Preparation),
}

/// Prepares components.
pub(super) struct Preparer {
    pub(super) library: Library,
    engines: Arc<Engines>,
    link: Link,
    next: AtomicU64,
    /// What took workers down.
    quarantined: Mutex<HashSet<Digest>>,
    /// Components whose namespaces have to be let to their images by the registry.
    pub(super) unproven: Mutex<HashSet<ComponentId>>,
    /// What the supervisor was asked for.
    compilations: Mutex<HashMap<u64, oneshot::Sender<Result<Facts, String>>>>,
    pub(super) pulls: Mutex<HashMap<u64, oneshot::Sender<Result<Pulled, registry::message::Failure>>>>,
    /// Registries that could not be asked.
    pub(super) away: Mutex<HashMap<String, Instant>>,
    /// What the store held when it was last looked through, and how much it may hold.
    pub(super) held: Mutex<Held>,
    pub(super) quota: u64,
}

impl Failure {
    pub(super) fn new(reason: Reason, error: impl ToString) -> Self {
        // It goes into logs, reports and Events, and may repeat what strangers wrote.
        Self { reason, message: text::reason(&error.to_string()) }
    }

    /// The same, with the artifact that it is about.
    pub(super) fn of(self, image: &Image) -> Self {
        match image {
            Image::Reference(reference) if !self.message.starts_with(&reference.to_string()) => {
                Self::new(self.reason, format!("{reference}: {}", self.message))
            }
            _ => self,
        }
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Preparer {
    pub(super) fn new(library: Library, engines: Arc<Engines>, link: Link, quota: ByteSize) -> Self {
        Self {
            library,
            engines,
            link,
            next: AtomicU64::new(0),
            quarantined: Mutex::default(),
            unproven: Mutex::default(),
            compilations: Mutex::default(),
            pulls: Mutex::default(),
            away: Mutex::default(),
            held: Mutex::default(),
            quota: quota.get(),
        }
    }

    /// Sends to the supervisor. It has gone only if we are about to end.
    pub(super) fn send(&self, message: &FromWorker, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(message, descriptors) {
            tracing::error!(%error, "the supervisor cannot be told");
        }
    }

    /// What a preparation that has failed leaves to serve: what its tag led to before, if that is another version and all here.
    pub(super) fn before(&self, preparation: &Preparation) -> Option<Digest> {
        let Image::Reference(reference) = &preparation.spec.image else { return None };
        let known = self.library.tag(reference).filter(|known| Some(*known) != preparation.version)?;
        let tried = preparation.version.is_some() && reference.digest().is_none();
        (tried && self.may_serve(preparation, known) && self.library.image(known).is_some()).then_some(known)
    }

    /// Looks for what the component's image holds, and for its native code.
    pub(super) async fn look_up(self: Arc<Self>, preparation: Preparation) -> LookedUp {
        let (preparer, asked) = (Arc::clone(&self), preparation.clone());
        let found = blocking(move || preparer.look(asked)).await;
        found.unwrap_or_else(|failure| LookedUp::Prepared(Prepared { preparation, result: Err(failure) }))
    }

    fn look(&self, mut preparation: Preparation) -> Result<LookedUp, StoreError> {
        let Some(stored) = self.stored(&preparation)? else {
            return Ok(match &preparation.spec.image {
                // Else it would be pulled again and again.
                Image::Reference(_) if preparation.pulled => {
                    let known = preparation.version.is_some_and(|version| self.library.image(version).is_some());
                    let problem = match known {
                        true => "others had it pulled, and its registry has not said that this namespace may have it",
                        false => "it was pulled, and has gone from the store",
                    };
                    LookedUp::Prepared(failed(preparation, Reason::Image, problem))
                }
                Image::Reference(reference) => LookedUp::Unpulled(self.wish(reference, &preparation.id), preparation),
                Image::Path(_) => LookedUp::Prepared(failed(preparation, Reason::Image, "it is not in the store")),
            });
        };
        if stored.artifacts.iter().any(|artifact| self.is_quarantined(artifact.digest)) {
            let message = "it took the host's worker down, more than once: it is not run again until it is another one, or the host is started anew";
            return Ok(LookedUp::Prepared(failed(preparation, Reason::Quarantined, message)));
        }
        // Code that this node made before is checked when it is first loaded: with thousands of components, reading all of them would
        // keep callers waiting.
        let believed = preparation.version.is_some();
        if std::mem::take(&mut preparation.anew) {
            stored.artifacts.iter().for_each(|artifact| self.library.forget(artifact));
        }
        stored.artifacts.iter().for_each(Artifact::used);
        // From here on it is about this version, whatever becomes of the file or the tag.
        preparation.version = Some(stored.version);
        let mut natives = Vec::with_capacity(stored.artifacts.len());
        for artifact in &stored.artifacts {
            match self.library.native(artifact, believed) {
                Some(native) => natives.push(native),
                None => return Ok(LookedUp::Uncompiled(artifact.clone(), preparation)),
            }
        }
        // What no engine can be made for would be ready, and never answer.
        for world in natives.iter().map(|native| native.world) {
            if let Err(error) = self.engines.make(world) {
                return Ok(LookedUp::Prepared(failed(preparation, Reason::Component, error)));
            }
        }
        let result = outcome(&preparation, stored, natives).map_err(|failure| failure.of(&preparation.spec.image));
        if let (Ok(outcome), Image::Reference(reference)) = (&result, &preparation.spec.image)
            && reference.digest().is_none()
        {
            self.library.set_served(reference, outcome.version.digest);
        }
        Ok(LookedUp::Prepared(Prepared { preparation, result }))
    }

    /// What the image holds, if it is in the store.
    fn stored(&self, preparation: &Preparation) -> Result<Option<Stored>, StoreError> {
        let library = &self.library;
        match &preparation.spec.image {
            Image::Path(path) => {
                let known = preparation.version.and_then(|digest| library.artifact(digest));
                known.map_or_else(|| library.add(Path::new(path)), Ok).map(|artifact| Some(artifact.into()))
            }
            Image::Reference(reference) => {
                let version = reference.digest().or(preparation.version).or_else(|| self.known_while_away(reference));
                let version = version.filter(|version| self.may_serve(preparation, *version));
                Ok(version.and_then(|version| library.image(version)))
            }
        }
    }

    /// Has a component compiled; its native code is in the store then.
    pub(super) async fn compile(self: Arc<Self>, artifact: Artifact, component: ComponentId) -> Result<(), Failure> {
        self.report(Event::Compiling { component, digest: artifact.digest });
        let job = self.library.job(&artifact).map_err(|error| Failure::new(Reason::Image, error))?;
        let descriptors = job.descriptors().map_err(|error| Failure::new(Reason::Image, error))?;
        let (id, receiver) = self.ask(&self.compilations);
        self.send(&FromWorker::Compile { id }, &descriptors.each_ref().map(AsFd::as_fd));
        let answer = receiver.await.unwrap_or_else(|_| Err("the supervisor is gone".into()));
        let facts = answer.map_err(|error| Failure::new(Reason::Component, error))?;
        let preparer = Arc::clone(&self);
        blocking(move || preparer.library.finish(&artifact, job, facts)).await
    }

    /// Loads what was just compiled: what a pool cannot hold is found out before anybody calls it, also where the compiler's look at it was not
    /// quite exact.
    pub(super) async fn load_first(&self, artifact: &Artifact, cache: &Cache) -> Result<(), Failure> {
        let Some(native) = self.library.native(artifact, true) else { return Ok(()) };
        match cache.load(artifact.digest, &Arc::new(native)).await {
            Err(error) if error.is_refused() => {
                self.library.forget(artifact);
                // The engine's words have several lines.
                let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                Err(Failure::new(Reason::Component, words))
            }
            // What the node lacks now it may have when somebody calls.
            _ => Ok(()),
        }
    }

    /// Removes from the store what was not used for longest, until its quota is kept; nothing of `bound`. False if it has to be tried
    /// again, because somebody else uses the store.
    pub(super) async fn make_room(self: Arc<Self>, bound: HashSet<Digest>) -> bool {
        let preparer = Arc::clone(&self);
        let made = tokio::task::spawn_blocking(move || preparer.library.make_room(preparer.quota, &bound));
        let Ok(Some(held)) = made.await else { return false };
        let Held { bytes, freed } = held;
        if freed > 0 {
            tracing::info!(freed, held = bytes, quota = self.quota, "what was not used for longest left the store");
        }
        if bytes > self.quota {
            tracing::warn!(
                held = bytes,
                quota = self.quota,
                "the store holds more than its quota, and all of it is in use"
            );
        }
        *locked(&self.held) = held;
        true
    }

    /// What has this digest is not to be run.
    pub(super) fn quarantine(&self, digest: Digest) {
        locked(&self.quarantined).insert(digest);
    }

    fn is_quarantined(&self, digest: Digest) -> bool {
        locked(&self.quarantined).contains(&digest)
    }

    /// Takes in what the supervisor says of a compilation.
    pub(super) fn compiled(&self, id: u64, result: Result<Facts, String>) {
        answer(&self.compilations, id, result);
    }

    /// Takes in what the supervisor says of a pull.
    pub(super) fn pulled(&self, id: u64, result: Result<Pulled, registry::message::Failure>) {
        answer(&self.pulls, id, result);
    }

    pub(super) fn ask<T>(&self, asked: &Mutex<HashMap<u64, oneshot::Sender<T>>>) -> (u64, oneshot::Receiver<T>) {
        let id = self.next.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        locked(asked).insert(id, sender);
        (id, receiver)
    }
}

fn answer<T>(asked: &Mutex<HashMap<u64, oneshot::Sender<T>>>, id: u64, result: T) {
    if let Some(sender) = locked(asked).remove(&id) {
        _ = sender.send(result);
    }
}

/// A preparation that came to nothing.
pub(super) fn failed(preparation: Preparation, reason: Reason, error: impl ToString) -> Prepared {
    let failure = Failure::new(reason, error).of(&preparation.spec.image);
    Prepared { preparation, result: Err(failure) }
}

/// Checks what the component is against its limits.
fn outcome(preparation: &Preparation, stored: Stored, natives: Vec<NativeCode>) -> Result<Outcome, Failure> {
    let Preparation { spec, compiled, .. } = preparation;
    let limit = spec.limits.memory.get();
    if let Some(needs) = natives.iter().map(|native| native.memory_minimum).find(|&needs| needs > limit.get()) {
        let needs = ByteSize::bytes(needs);
        let message = format!("the component needs at least {needs} of memory, its limits.memory is {limit}");
        return Err(Failure::new(Reason::Limits, message));
    }
    let parts = stored.artifacts.iter().map(|artifact| artifact.digest).zip(natives);
    let parts: Vec<_> = parts.map(|(digest, native)| Part { digest, native: Arc::new(native), own: None }).collect();
    let (parts, app) = match stored.app {
        None => (parts, None),
        Some(app) => {
            let (app, parts) = App::new(app, parts, spec).map_err(|error| Failure::new(Reason::Component, error))?;
            (parts, Some(Box::new(app)))
        }
    };
    let version = Version { digest: stored.version, spec: Arc::clone(spec), parts: parts.into(), app };
    Ok(Outcome { version: Arc::new(version), compiled: *compiled })
}

/// Does what waits for the disk on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Failure::new(Reason::Image, error)),
        Err(panic) => Err(Failure::new(Reason::Image, format!("the host failed: {panic}"))),
    }
}
