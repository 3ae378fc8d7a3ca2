//! The puller: a short-lived child process that brings one artifact into the store.
//!
//! It parses what strangers say over the network and holds a password, so it does nothing else: it confines itself, hears what to do on
//! standard input, says what becomes of it on standard output, and ends. What it writes into the store is whole and checked, and
//! has its name from its digest; what it has not finished goes with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use futures::StreamExt;
use oci_client::RegistryOperation;
use pillion_confine::Process;
use pillion_protocol::digest::Digest;
use rustix::process::{Resource, Rlimit, setrlimit};
use tempfile::NamedTempFile;
use tokio::{runtime::Builder, time::timeout};

use super::{
    client::{Incoming, Registry},
    download::{Download, Wrong},
    manifest::{self, Blob, Layout},
    message::{Failure, Pulled, Request, Source, Step, Word},
    retry::{Problem, again},
};
use crate::{
    program, spin,
    store::{Image, Store, StoreError},
};

/// Address space. What an answer may hold is bounded far below it.
const MEMORY: u64 = 4 << 30;

/// A registry that sends less than this in a second, over its time, has stopped for us.
const SLOWEST: u64 = 1 << 10;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// While there is something to serve, a registry is not waited for longer than this for what is new.
const IMPATIENT: Duration = Duration::from_secs(2);

/// The child's main function; `parent` started it.
///
/// # Errors
///
/// Only what keeps it from hearing or saying anything.
pub fn main(parent: u32) -> anyhow::Result<()> {
    // Nobody waits for it once its supervisor is gone.
    program::end_with(parent)?;
    for (resource, most) in [(Resource::As, MEMORY), (Resource::Core, 0)] {
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Process::Puller.confine()?;
    let mut request = Vec::new();
    io::stdin().lock().read_to_end(&mut request)?;
    let request: Request = serde_json::from_slice(&request).map_err(|_| anyhow::anyhow!("this is no request"))?;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let word = match runtime.block_on(pull(request)) {
        Ok(pulled) => Word::Pulled(pulled),
        Err(failure) => Word::Failed(failure),
    };
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    say(&word);
    Ok(())
}

fn say(word: &Word) {
    if let Ok(mut line) = serde_json::to_vec(word) {
        line.push(b'\n');
        // Who does not listen any more does not need to know.
        _ = io::stdout().lock().write_all(&line);
    }
}

async fn pull(request: Request) -> Result<Pulled, Failure> {
    let store_failed = |error: StoreError| Failure {
        image: request.reference.to_string(),
        registry: request.reference.registry().to_owned(),
        step: Step::Store,
        problem: error.to_string(),
    };
    let store = Store::open(&request.store).map_err(store_failed)?;
    // What the tag led to, as long as all of that is here.
    let known = request.fall_back.then(|| store.tag(&request.reference)).flatten();
    let known = known.and_then(|digest| Some((digest, store.image(digest)?.0)));
    if let Some((digest, image)) = request.reference.digest().and_then(|digest| Some((digest, store.image(digest)?.0)))
    {
        return Ok(Pulled::here(digest, image));
    }
    let (mut failed, mut sources) = (None, request.sources.iter().peekable());
    while let Some(source) = sources.next() {
        let pull = Pull { request: &request, source, store: &store, has_known: known.is_some() };
        match pull.run().await {
            Ok(pulled) => return Ok(pulled),
            Err(failure) if sources.peek().is_some() => say(&Word::Warning(failure.to_string())),
            Err(failure) => failed = Some(failure),
        }
    }
    let no_source = || Failure {
        image: request.reference.to_string(),
        registry: request.reference.registry().to_owned(),
        step: Step::Resolve,
        problem: "there is nobody to ask".into(),
    };
    let failure = failed.unwrap_or_else(no_source);
    match known {
        Some((digest, image)) => {
            say(&Word::Warning(format!("{failure}; what the tag led to before is served: {digest}")));
            Ok(Pulled { stale: true, ..Pulled::here(digest, image) })
        }
        None => Err(failure),
    }
}

impl Pulled {
    /// One that was in the store.
    fn here(digest: Digest, image: Image) -> Self {
        let none = Duration::ZERO;
        Self { digest, image, bytes: 0, resolve: none, pull: none, verify: none, stale: false }
    }
}

/// A pull from one registry.
struct Pull<'a> {
    request: &'a Request,
    source: &'a Source,
    store: &'a Store,
    /// There is something to serve if this fails.
    has_known: bool,
}

/// Bytes that are here, of those that are to be.
#[derive(Default)]
struct Progress {
    done: u64,
    total: u64,
    /// Time that went into hashing.
    verify: Duration,
    told: Option<Instant>,
}

impl Pull<'_> {
    fn at(&self, step: Step) -> impl Fn(Problem) -> Failure {
        move |problem| self.failure(step.clone(), problem.text)
    }

    fn failure(&self, step: Step, problem: impl ToString) -> Failure {
        let (image, registry) = (self.request.reference.to_string(), self.source.registry.clone());
        Failure { image, registry, step, problem: problem.to_string() }
    }

    async fn run(&self) -> Result<Pulled, Failure> {
        let reference = &self.request.reference;
        let began = Instant::now();
        let timeout = self.request.timeout;
        let first = if self.has_known { timeout.min(IMPATIENT) } else { timeout };
        let registry = Registry::new(self.source.clone(), first).map_err(self.at(Step::Login))?;
        registry.log_in(reference, RegistryOperation::Pull, self.has_known).await.map_err(self.at(Step::Login))?;
        let digest = match reference.digest() {
            Some(digest) => digest,
            None => registry.digest(reference, self.has_known).await.map_err(self.at(Step::Resolve))?,
        };
        let registry = registry.with_timeout(timeout);
        let (resolve, began) = (began.elapsed(), Instant::now());
        if let Some((image, _)) = self.store.image(digest) {
            self.note(digest)?;
            return Ok(Pulled { resolve, ..Pulled::here(digest, image) });
        }
        let bytes = registry.manifest(reference, digest).await.map_err(self.at(Step::Manifest))?;
        let layout = manifest::read(&bytes).map_err(|problem| self.failure(Step::Manifest, problem))?;
        let (image, progress) = match layout {
            Layout::Component { config, layer } => self.component(&registry, &config, &layer).await?,
            Layout::App { lock, components } => self.app(&registry, &lock, &components).await?,
        };
        self.store.add_image(digest, &image).map_err(|error| self.failure(Step::Store, error))?;
        self.note(digest)?;
        let Progress { done, verify, .. } = progress;
        Ok(Pulled { digest, image, bytes: done, resolve, pull: began.elapsed(), verify, stale: false })
    }

    /// Takes note of what the tag leads to: it is all here.
    fn note(&self, digest: Digest) -> Result<(), Failure> {
        match self.request.reference.digest() {
            Some(_) => Ok(()),
            None => {
                self.store.set_tag(&self.request.reference, digest).map_err(|error| self.failure(Step::Store, error))
            }
        }
    }

    async fn component(&self, registry: &Registry, config: &Blob, layer: &Blob) -> Result<(Image, Progress), Failure> {
        let mut progress = Progress::default();
        self.expect(&mut progress, [config, layer])?;
        let document = self.document(registry, config, Step::Config, &mut progress).await?;
        manifest::check_config(&document, layer).map_err(|problem| self.failure(Step::Config, problem))?;
        self.layer(registry, layer, &mut progress).await?;
        Ok((Image::Component(layer.digest), progress))
    }

    async fn app(
        &self,
        registry: &Registry,
        lock: &Blob,
        components: &BTreeMap<Digest, Blob>,
    ) -> Result<(Image, Progress), Failure> {
        let mut progress = Progress::default();
        self.expect(&mut progress, [lock])?;
        let document = self.document(registry, lock, Step::Application, &mut progress).await?;
        let wrong = |problem: String| self.failure(Step::Application, problem);
        let app = spin::App::read(&document).map_err(|error| wrong(error.to_string()))?;
        let missing = |digest| wrong(format!("its component {digest} is in none of its layers"));
        let find = |digest: Digest| components.get(&digest).ok_or_else(|| missing(digest));
        let needed: BTreeSet<_> = app.digests().collect();
        let layers = needed.into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
        self.expect(&mut progress, layers.iter().copied())?;
        for layer in layers {
            self.layer(registry, layer, &mut progress).await?;
        }
        Ok((Image::App(app), progress))
    }

    /// Takes note of what is to be pulled, if it is not too much.
    fn expect<'b>(&self, progress: &mut Progress, blobs: impl IntoIterator<Item = &'b Blob>) -> Result<(), Failure> {
        let missing = blobs.into_iter().filter(|blob| self.store.artifact(blob.digest).is_none());
        progress.total = missing.fold(progress.total, |total, blob| total.saturating_add(blob.size));
        let most = self.request.most;
        if progress.total > most.get() {
            let problem = format!("it has {} bytes: at most {most} are allowed", progress.total);
            return Err(self.failure(Step::Manifest, problem));
        }
        Ok(())
    }

    /// A small blob, which is to be read here.
    async fn document(
        &self,
        registry: &Registry,
        blob: &Blob,
        step: Step,
        progress: &mut Progress,
    ) -> Result<Vec<u8>, Failure> {
        let file = self.download(registry, blob, step.clone(), progress).await?;
        std::fs::read(file.path()).map_err(|error| self.failure(step, error))
    }

    /// A component, into the store.
    async fn layer(&self, registry: &Registry, blob: &Blob, progress: &mut Progress) -> Result<(), Failure> {
        if self.store.artifact(blob.digest).is_some() {
            return Ok(());
        }
        let file = self.download(registry, blob, Step::Layer(blob.digest), progress).await?;
        self.store.add_file(blob.digest, file).map_err(|error| self.failure(Step::Store, error))
    }

    /// Downloads a blob, and goes on where it broke off.
    async fn download(
        &self,
        registry: &Registry,
        blob: &Blob,
        step: Step,
        progress: &mut Progress,
    ) -> Result<NamedTempFile, Failure> {
        let file = self.store.new_file().map_err(|error| self.failure(Step::Store, error))?;
        let mut download = Download::new(file, blob);
        let before = progress.done;
        let get = async || {
            let incoming = registry.blob(&self.request.reference, blob, download.done()).await?;
            self.receive(incoming, &mut download, &mut |done| progress.tell(before.saturating_add(done))).await
        };
        again(get).await.map_err(self.at(step.clone()))?;
        progress.done = before.saturating_add(blob.size);
        let (file, hashing) = download.finish().map_err(|wrong| self.failure(step, wrong))?;
        progress.verify += hashing;
        Ok(file)
    }

    /// Takes in what comes, until the blob is here.
    async fn receive(
        &self,
        mut incoming: Incoming,
        download: &mut Download,
        tell: &mut impl FnMut(u64),
    ) -> Result<(), Problem> {
        let wrong = |wrong: Wrong| Problem::lasting(wrong.to_string());
        download.begin_at(incoming.from).map_err(wrong)?;
        let window = self.request.timeout;
        let least = SLOWEST.saturating_mul(window.as_secs());
        let (mut since, mut then) = (Instant::now(), download.done());
        loop {
            let late = || Problem::passing(format!("nothing came for {}", humantime::format_duration(window)));
            match timeout(window, incoming.bytes.next()).await.map_err(|_| late())? {
                Some(Ok(bytes)) => download.write(&bytes).map_err(wrong)?,
                // What the library says of the digest is said by us, when all is here.
                Some(Err(_)) | None if download.is_complete() => return Ok(()),
                Some(Err(error)) => return Err(Problem::passing(format!("it broke off: {error}"))),
                None => {
                    return Err(Problem::passing(format!("it broke off after {} of its bytes", download.done())));
                }
            }
            tell(download.done());
            if since.elapsed() >= window {
                let came = download.done().saturating_sub(then);
                if came < least && !download.is_complete() {
                    return Err(Problem::lasting(format!(
                        "it is too slow: {came} bytes in {}",
                        humantime::format_duration(window)
                    )));
                }
                (since, then) = (Instant::now(), download.done());
            }
        }
    }
}

impl Progress {
    fn tell(&mut self, done: u64) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            say(&Word::Progress { done, total: self.total });
        }
    }
}
