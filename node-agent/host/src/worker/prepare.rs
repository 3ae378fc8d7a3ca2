//! Preparing a component: its file into the store, its native code from the store or from a compiler, checked against its limits.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use pillion_protocol::{
    component::{ComponentSpec, Image},
    digest::Digest,
    name::Name,
    quantity::ByteSize,
};
use pillion_sockets::link::Link;
use tokio::sync::oneshot;

use crate::{
    compiler::facts::Facts,
    endpoint::Version,
    store::{Artifact, Library, NativeCode, StoreError},
    supervisor::message::{Event, FromWorker, Reason},
};

/// A component to prepare.
#[derive(Clone, Debug)]
pub(super) struct Preparation {
    pub(super) name: Name,
    pub(super) spec: Arc<ComponentSpec>,
    /// Which of the component's preparations this is: a newer one replaces it.
    pub(super) generation: u64,
    pub(super) began: Instant,
    /// Native code that is on disk is not to be used.
    pub(super) anew: bool,
    /// What is to be served, if it is in the store; else, what its file holds now.
    pub(super) served: Option<Digest>,
}

/// A component whose native code is not on disk.
pub(super) struct Unprepared {
    preparation: Preparation,
    artifact: Artifact,
}

/// What became of a preparation.
pub(super) struct Prepared {
    pub(super) preparation: Preparation,
    pub(super) result: Result<Outcome, Failure>,
}

/// A component that can be served.
pub(super) struct Outcome {
    pub(super) version: Arc<Version>,
    /// Native code had to be made.
    pub(super) compiled: bool,
}

/// Why a component cannot be served.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// What a look into the store gave.
pub(super) enum LookedUp {
    Prepared(Prepared),
    Uncompiled(Unprepared),
}

/// Prepares components.
pub(super) struct Preparer {
    library: Library,
    link: Link,
    next: AtomicU64,
    /// What took workers down.
    quarantined: Mutex<HashSet<Digest>>,
    /// Compilations that the supervisor was asked for.
    asked: Mutex<HashMap<u64, oneshot::Sender<Result<Facts, String>>>>,
}

impl Failure {
    fn new(reason: Reason, error: impl ToString) -> Self {
        Self { reason, message: error.to_string() }
    }
}

impl Preparer {
    pub(super) fn new(library: Library, link: Link) -> Self {
        Self { library, link, next: AtomicU64::new(0), quarantined: Mutex::default(), asked: Mutex::default() }
    }

    /// Sends to the supervisor. It has gone only if we are about to end.
    pub(super) fn send(&self, message: &FromWorker, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(message, descriptors) {
            tracing::error!(%error, "the supervisor cannot be told");
        }
    }

    /// Stores the component's file and looks for its native code.
    pub(super) async fn look_up(self: Arc<Self>, preparation: Preparation) -> LookedUp {
        let Image::Path(path) = preparation.spec.image.clone();
        let (anew, served) = (preparation.anew, preparation.served);
        let preparer = Arc::clone(&self);
        let found = blocking(move || {
            let library = &preparer.library;
            let (artifact, native) = match served.and_then(|digest| library.find_again(digest)) {
                Some(found) => found,
                None => library.find(Path::new(&path))?,
            };
            if let Some(native) = native.as_ref().filter(|_| anew) {
                library.forget(&artifact, native);
            }
            Ok((artifact, native.filter(|_| !anew)))
        })
        .await;
        if let Ok((artifact, _)) = &found
            && self.is_quarantined(artifact.digest)
        {
            let message = "it took the host's worker down, more than once: it is not run again until it is another one, or the host is started anew";
            let result = Err(Failure::new(Reason::Quarantined, message));
            return LookedUp::Prepared(Prepared { preparation, result });
        }
        match found {
            Ok((artifact, None)) => LookedUp::Uncompiled(Unprepared { preparation, artifact }),
            Ok((artifact, Some(native))) => {
                let result = outcome(&preparation.spec, &artifact, native, false);
                LookedUp::Prepared(Prepared { preparation, result })
            }
            Err(failure) => LookedUp::Prepared(Prepared { preparation, result: Err(failure) }),
        }
    }

    /// Has the component compiled.
    pub(super) async fn compile(self: Arc<Self>, unprepared: Unprepared) -> Prepared {
        let Unprepared { preparation, artifact } = unprepared;
        let (component, digest) = (preparation.name.clone(), artifact.digest);
        self.report(Event::Compiling { component, digest });
        let result = match self.native_code(&artifact).await {
            Ok(native) => outcome(&preparation.spec, &artifact, native, true),
            Err(failure) => Err(failure),
        };
        Prepared { preparation, result }
    }

    async fn native_code(self: &Arc<Self>, artifact: &Artifact) -> Result<NativeCode, Failure> {
        let job = self.library.job(artifact).map_err(|error| Failure::new(Reason::Image, error))?;
        let descriptors = job.descriptors().map_err(|error| Failure::new(Reason::Image, error))?;
        let id = self.next.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.asked().insert(id, sender);
        self.send(&FromWorker::Compile { id }, &descriptors.each_ref().map(AsFd::as_fd));
        let answer = receiver.await.unwrap_or_else(|_| Err("the supervisor is gone".into()));
        let facts = answer.map_err(|error| Failure::new(Reason::Component, error))?;
        let (preparer, artifact) = (Arc::clone(self), artifact.clone());
        blocking(move || preparer.library.finish(&artifact, job, facts)).await
    }

    /// What has this digest is not to be run.
    pub(super) fn quarantine(&self, digest: Digest) {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }

    fn is_quarantined(&self, digest: Digest) -> bool {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }

    /// Takes in what the supervisor says of a compilation.
    pub(super) fn compiled(&self, id: u64, result: Result<Facts, String>) {
        if let Some(asked) = self.asked().remove(&id) {
            _ = asked.send(result);
        }
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Facts, String>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks what the component is against its limits.
fn outcome(
    spec: &Arc<ComponentSpec>,
    artifact: &Artifact,
    native: NativeCode,
    compiled: bool,
) -> Result<Outcome, Failure> {
    let (needs, limit) = (native.memory_minimum, spec.limits.memory.get());
    if needs > limit.get() {
        let needs = ByteSize::bytes(needs);
        let message = format!("the component needs at least {needs} of memory, its limits.memory is {limit}");
        return Err(Failure::new(Reason::Limits, message));
    }
    let version = Version { digest: artifact.digest, native: Arc::new(native), spec: Arc::clone(spec) };
    Ok(Outcome { version: Arc::new(version), compiled })
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
