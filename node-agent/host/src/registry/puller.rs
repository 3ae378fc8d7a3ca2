//! The puller: a short-lived child process that brings one artifact into the store.
//!
//! It parses what strangers say over the network and holds a password, so it does nothing else: it confines itself, hears what to do on
//! standard input, says what becomes of it on standard output, and ends. What it writes into the store is whole and checked, and
//! has its name from its digest; what it has not finished goes with it.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use futures::StreamExt;
use pillion_confine::Process;
use pillion_protocol::digest::Digest;
use rustix::process::{Resource, Rlimit, setrlimit};
use tempfile::NamedTempFile;
use tokio::{runtime::Builder, time::timeout};

use super::{
    client::{Ask, Incoming, Operation, Remote},
    download::{Download, Wrong},
    manifest::{self, Blob, Layout},
    message::{Failure, GREETING, Pulled, Request, Source, Step, Word},
    problem::Problem,
    retry::again,
};
use crate::{
    program, spin,
    store::{Image, Store},
};

/// Address space. What an answer may hold is bounded far below it.
const MEMORY: u64 = 4 << 30;

/// A registry that sends less than this in a second, over its time, has stopped for us.
const SLOWEST: u64 = 1 << 10;

/// The longest that a pull takes; its supervisor waits a little longer.
const LONGEST: Duration = Duration::from_secs(840);

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
    limit(parent)?;
    Process::Puller.confine()?;
    // Only now: whoever is the same user could look into this process before, and into its standard input.
    println!("{GREETING}");
    let mut request = Vec::new();
    io::stdin().lock().read_to_end(&mut request)?;
    let request: Request = serde_json::from_slice(&request).map_err(|_| anyhow::anyhow!("this is no request"))?;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let word = runtime.block_on(async {
        // Within its time, so that nothing partial stays: who is killed cleans up nothing.
        match timeout(LONGEST, pull(&request)).await {
            Ok(Ok(pulled)) => Word::Pulled(pulled),
            Ok(Err(failure)) => Word::Failed(failure),
            Err(_) => {
                Word::Failed(failure(&request, Step::Pull, format!("it takes more than {} s", LONGEST.as_secs())))
            }
        }
    });
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    say(&word);
    Ok(())
}

/// Bounds this process, a child of `parent` that asks registries, in time and memory.
pub(super) fn limit(parent: u32) -> io::Result<()> {
    // Nobody waits for it once whoever started it is gone.
    program::end_with(parent)?;
    for (resource, most) in [(Resource::As, MEMORY), (Resource::Core, 0)] {
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

fn say(word: &Word) {
    if let Ok(mut line) = serde_json::to_vec(word) {
        line.push(b'\n');
        // Who does not listen any more does not need to know.
        _ = io::stdout().lock().write_all(&line);
    }
}

/// A failure of no registry's.
fn failure(request: &Request, step: Step, problem: impl ToString) -> Failure {
    let registry = request.reference.registry().to_owned();
    Failure { image: request.reference.to_string(), registry, step, problem: problem.to_string(), passes: true }
}

async fn pull(request: &Request) -> Result<Pulled, Failure> {
    let store = Store::open_as_child(&request.store).map_err(|error| failure(request, Step::Store, error))?;
    let is_here = |digest: &Digest| request.proof.is_none() && store.image(*digest).is_some();
    if let Some(digest) = request.reference.digest().filter(is_here) {
        return Ok(Pulled::here(digest));
    }
    let known = store.tag(&request.reference).is_some_and(|digest| store.image(digest).is_some());
    let (mut failed, mut sources) = (None, request.sources.iter().peekable());
    while let Some(source) = sources.next() {
        let is_last = sources.peek().is_none();
        let how = match request.impatient && known {
            true => Ask::Within(IMPATIENT),
            false if is_last => Ask::Again,
            false => Ask::Once,
        };
        match (Pull { request, source, store: &store, how }).run().await {
            Ok(pulled) => return Ok(pulled),
            Err(failure) if is_last => failed = Some(failure),
            Err(failure) => say(&Word::Warning(failure.to_string())),
        }
    }
    Err(failed.unwrap_or_else(|| failure(request, Step::Resolve, "there is nobody to ask")))
}

/// A pull from one registry.
struct Pull<'a> {
    request: &'a Request,
    source: &'a Source,
    store: &'a Store,
    /// How patiently it is asked who we are, and where the tag leads.
    how: Ask,
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
        move |problem| Failure { passes: problem.passes(), ..self.failure(step.clone(), problem.text) }
    }

    /// One that stays.
    fn failure(&self, step: Step, problem: impl ToString) -> Failure {
        Failure { registry: self.source.registry.clone(), passes: false, ..failure(self.request, step, problem) }
    }

    async fn run(&self) -> Result<Pulled, Failure> {
        let reference = &self.request.reference;
        let began = Instant::now();
        let registry = Remote::new(self.source.clone(), self.request.timeout).map_err(self.at(Step::Login))?;
        registry.log_in(reference, Operation::Pull, self.how).await.map_err(self.at(Step::Login))?;
        let digest = match reference.digest() {
            // What is here is asked for, too: whether the registry lets us have it is the question then.
            Some(digest) if self.store.image(digest).is_some() => {
                registry.digest(reference, self.how).await.map_err(self.at(Step::Resolve))?;
                digest
            }
            Some(digest) => digest,
            None => registry.digest(reference, self.how).await.map_err(self.at(Step::Resolve))?,
        };
        let (resolve, began) = (began.elapsed(), Instant::now());
        if self.store.image(digest).is_some() {
            self.note(digest)?;
            return Ok(Pulled { resolve, ..Pulled::here(digest) });
        }
        if let Some(full) = &self.request.full {
            return Err(self.failure(Step::Store, full));
        }
        let bytes = registry.manifest(reference, digest).await.map_err(self.at(Step::Manifest))?;
        let read = |bytes: &[u8]| manifest::read(bytes).map_err(|problem| self.failure(Step::Manifest, problem));
        let layout = match read(&bytes)? {
            Layout::Index(one) => read(&registry.manifest(reference, one).await.map_err(self.at(Step::Manifest))?)?,
            layout => layout,
        };
        let (image, progress) = match layout {
            Layout::Component { config, layer } => self.component(&registry, config.as_ref(), &layer).await?,
            Layout::App { lock, components } => self.app(&registry, &lock, &components).await?,
            Layout::Index(_) => return Err(self.failure(Step::Manifest, manifest::INDEX_OF_INDEX)),
        };
        self.store.add_image(digest, &image).map_err(|error| self.failure(Step::Store, error))?;
        self.note(digest)?;
        let Progress { done, verify, .. } = progress;
        Ok(Pulled { digest, bytes: done, resolve, pull: began.elapsed(), verify })
    }

    /// Takes note of what the tag leads to: it is all here.
    fn note(&self, digest: Digest) -> Result<(), Failure> {
        if let Some(namespace) = &self.request.proof {
            let whose = Some(namespace).filter(|_| !self.source.is_everybodys);
            self.store.prove(digest, whose).map_err(|error| self.failure(Step::Store, error))?;
        }
        match self.request.reference.digest() {
            Some(_) => Ok(()),
            None => {
                self.store.set_tag(&self.request.reference, digest).map_err(|error| self.failure(Step::Store, error))
            }
        }
    }

    async fn component(
        &self,
        registry: &Remote,
        config: Option<&Blob>,
        layer: &Blob,
    ) -> Result<(Image, Progress), Failure> {
        let mut progress = Progress::default();
        self.expect(&mut progress, config.into_iter().chain([layer]))?;
        if let Some(config) = config {
            let document = self.document(registry, config, Step::Config, &mut progress).await?;
            manifest::check_config(&document, layer).map_err(|problem| self.failure(Step::Config, problem))?;
        }
        self.layer(registry, layer, &mut progress).await?;
        Ok((Image::Component(layer.digest), progress))
    }

    async fn app(
        &self,
        registry: &Remote,
        lock: &Blob,
        components: &BTreeMap<Digest, Blob>,
    ) -> Result<(Image, Progress), Failure> {
        let mut progress = Progress::default();
        self.expect(&mut progress, [lock])?;
        let document = self.document(registry, lock, Step::Application, &mut progress).await?;
        let wrong = |problem: String| self.failure(Step::Application, problem);
        let app = spin::App::read(&document).map_err(|error| wrong(error.to_string()))?;
        let layers = manifest::layers_of(&app, components).map_err(wrong)?;
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
        registry: &Remote,
        blob: &Blob,
        step: Step,
        progress: &mut Progress,
    ) -> Result<Vec<u8>, Failure> {
        let file = self.download(registry, blob, step.clone(), progress).await?;
        std::fs::read(file.path()).map_err(|error| self.failure(step, error))
    }

    /// A component, into the store.
    async fn layer(&self, registry: &Remote, blob: &Blob, progress: &mut Progress) -> Result<(), Failure> {
        if self.store.artifact(blob.digest).is_some() {
            return Ok(());
        }
        let file = self.download(registry, blob, Step::Layer(blob.digest), progress).await?;
        self.store.add_file(blob.digest, file).map_err(|error| self.failure(Step::Store, error))
    }

    /// Downloads a blob, and goes on where it broke off.
    async fn download(
        &self,
        registry: &Remote,
        blob: &Blob,
        step: Step,
        progress: &mut Progress,
    ) -> Result<NamedTempFile, Failure> {
        let file = self.store.new_file().map_err(|error| self.failure(Step::Store, error))?;
        let mut download = Download::new(file, blob);
        let before = progress.done;
        loop {
            let here = download.done();
            let get = async || {
                let incoming = registry.blob(&self.request.reference, blob, download.done()).await?;
                self.receive(incoming, &mut download, &mut |done| progress.tell(before.saturating_add(done))).await
            };
            match again(get).await {
                Ok(()) => break,
                // As long as more comes, it is asked for more.
                Err(problem) if problem.passes() && download.done() > here => {}
                Err(problem) => return Err(self.at(step)(problem)),
            }
        }
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
                // The connection's end may be none of its protocol's: what came is counted.
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
