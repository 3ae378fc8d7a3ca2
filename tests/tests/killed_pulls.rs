//! `kill -9` at any moment of a pull or a compilation leaves a store that the next start accepts, and no process. A short form runs with
//! all tests, the whole with `make soak`, which prints its figures.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use pillion_tests::{
    Component, Host, Protocol, get,
    host::Builder,
    is_soak, place, process,
    registry::{Artifact, Fault, FaultProxy, Registry, Seen, digest, spin_lock},
    wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Moments at which somebody is killed, in the short form and in the whole.
const MOMENTS: (usize, usize) = (12, 100);

/// In the whole, one of so many rounds has to make the native code of the large component, too, which takes a quarter of a minute.
const LONG: usize = 25;

/// Nothing outlives its supervisor for longer.
const GONE: Duration = Duration::from_secs(2);

/// A variable by which everything that a host starts is known; not compilers, which get no environment.
const MARK: &str = "PILLION_TEST_MARK";

/// A number from 0 to 1 that nobody knows before.
fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0) >> 32;
    bits as f64 / f64::from(u32::MAX)
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The supervisor; the others are to follow by themselves.
    Supervisor,
    /// Every process at once.
    Everyone,
    /// The worker.
    Worker,
    /// A puller or a compiler.
    Helper,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Supervisor, Self::Everyone, Self::Worker, Self::Helper];
}

/// What was going on at a moment.
#[derive(Debug, Default)]
struct Fell {
    kills: usize,
    pull: usize,
    compilation: usize,
    both: usize,
    ready: usize,
}

/// Artifacts of several sizes, slowly if so wished.
struct Shelf {
    proxy: FaultProxy,
    _registry: Registry,
    digests: BTreeMap<&'static str, String>,
}

impl Shelf {
    async fn new() -> Result<Self> {
        let registry = Registry::start().await?;
        let guests = ["hello-wasip2", "faults-p2", "hello-js", "spin-echo"];
        let read = |guest| anyhow::Ok((guest, Bytes::from(fs::read(place::guest(guest)?)?)));
        let bytes = guests.into_iter().map(read).collect::<Result<BTreeMap<_, _>>>()?;
        for guest in ["hello-wasip2", "faults-p2", "hello-js"] {
            Artifact::wasm(bytes[guest].clone()).push(&registry, &format!("{guest}:1")).await?;
        }
        let digests: BTreeMap<_, _> = bytes.iter().map(|(guest, bytes)| (*guest, digest(bytes))).collect();
        // Two pullers may write the same component at once.
        let components =
            [("echo", &*digests["spin-echo"], &[][..], &[][..]), ("hello", &digests["hello-wasip2"], &[], &[])];
        let lock = spin_lock("shop", &components, &[("/...", "echo"), ("/hello", "hello")]);
        let layers = ["spin-echo", "hello-wasip2"].map(|guest| (Artifact::SPIN_WASM, bytes[guest].clone()));
        Artifact::spin(&lock, layers.into()).push(&registry, "shop:1").await?;
        Ok(Self { proxy: FaultProxy::start(&registry)?, _registry: registry, digests })
    }

    /// From now on pulls take about a second.
    fn slow(&self) {
        for (guest, bytes_per_second) in [("hello-js", 16_000_000), ("spin-echo", 600_000), ("faults-p2", 400_000)] {
            let path = format!("/blobs/{}", self.digests[guest]);
            self.proxy.fault(move |seen| seen.path.ends_with(&path), Fault::Trickle { bytes_per_second });
        }
        self.proxy.fault(Seen::gets_manifest, Fault::Delay(Duration::from_millis(60)));
    }

    fn host(&self, store: &Path, mark: &str) -> Builder {
        let image = |(name, artifact): (&str, &str)| {
            Component::image(name, &format!("{}/{artifact}:1", self.proxy.numeric_host()))
        };
        let components =
            [("js", "hello-js"), ("shop", "shop"), ("faults", "faults-p2"), ("hello", "hello-wasip2")].map(image);
        Host::of(components).args(["--plain-http", &self.proxy.numeric_host()]).store(store).variable(MARK, mark)
    }
}

/// Checks that everything is served, and right.
async fn serves(host: &Host) -> Result<()> {
    let serving = host.events_of("serving").pop().context("no event `serving`")?;
    ensure!(serving["ready"] == 4 && serving["failed"] == 0, "{:?}", host.events());
    for protocol in Protocol::ALL {
        for (name, path, expected) in [
            ("hello", "/", "hello\n"),
            ("faults", "/hello", "hello\n"),
            ("js", "/", "hello from JavaScript\n"),
            ("shop", "/hello", "hello\n"),
        ] {
            let answer = get(protocol, host.port(name)?, path).await?;
            ensure!(answer.status == 200 && answer.text() == expected, "{name}: {} {}", answer.status, answer.text());
        }
        let answer = get(protocol, host.port("shop")?, "/a/b").await?;
        ensure!(answer.json()["headers"]["spin-path-info"] == "/a/b", "{}", answer.text());
    }
    Ok(())
}

/// The files in a folder; none if it is not there.
fn files(folder: PathBuf) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Checks that what is in a store is whole, whatever is in its `tmp/`.
fn is_sound(store: &Path) -> Result<()> {
    let code = files(store.join("native")).into_iter().flat_map(files);
    let code = code.filter(|path| path.extension().is_some_and(|extension| extension == "code"));
    for path in files(store.join("artifacts")).into_iter().chain(code) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(digest(&fs::read(&path)?) == format!("sha256:{name}"), "{} is not what it is named", path.display());
    }
    let native = files(store.join("native")).into_iter().flat_map(files);
    let records = files(store.join("images")).into_iter().chain(files(store.join("tags"))).chain(native);
    for path in records.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let record = serde_json::from_slice::<Value>(&fs::read(&path)?);
        record.with_context(|| format!("{} is no whole record", path.display()))?;
    }
    Ok(())
}

/// A process and all that it started, each with its arguments.
fn tree(pid: u32) -> Vec<(u32, String)> {
    let mut all = vec![(pid, process::arguments(pid))];
    all.extend(process::children(pid).into_iter().flat_map(tree));
    all
}

/// Processes that have this mark, or hold files of this store.
fn left(store: &Path, mark: &str) -> Vec<(u32, String)> {
    let marked = format!("{MARK}={mark}");
    let is_ours = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let holds = |folder: PathBuf| {
            files(folder).iter().any(|file| fs::read_link(file).is_ok_and(|to| to.starts_with(store)))
        };
        environment.split(|byte| *byte == 0).any(|variable| variable == marked.as_bytes())
            || holds(format!("/proc/{pid}/fd").into())
    };
    let pids = files("/proc".into()).into_iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != std::process::id() && process::runs(*pid));
    others.filter(is_ours).map(|pid| (pid, process::arguments(pid))).collect()
}

/// Waits until no process is left.
async fn gone(store: &Path, mark: &str) -> Result<()> {
    let nobody = || left(store, mark).is_empty().then_some(());
    wait_until("the end of every process", GONE, nobody).await.with_context(|| format!("{:?}", left(store, mark)))
}

/// Kills whom there is of the victims, and says what was going on.
fn kill(host: &Host, victim: Victim, fell: &mut Fell) -> Victim {
    let tree = tree(host.supervisor());
    let of =
        |kind: &str| tree.iter().filter(|(_, said)| said.starts_with(kind)).map(|(pid, _)| *pid).collect::<Vec<_>>();
    let [workers, pullers, compilers] = ["pillion worker", "pillion puller", "pillion compiler"].map(of);
    let helpers = [pullers.as_slice(), &compilers].concat();
    // Where there is nobody of its kind yet, or any more, the supervisor is killed.
    let victim = match victim {
        Victim::Worker if workers.is_empty() => Victim::Supervisor,
        Victim::Helper if helpers.is_empty() => Victim::Supervisor,
        victim => victim,
    };
    let victims = match victim {
        Victim::Supervisor => vec![host.supervisor()],
        Victim::Everyone => tree.iter().map(|(pid, _)| *pid).collect(),
        Victim::Worker => workers,
        Victim::Helper => {
            let at = (chance() * helpers.len() as f64) as usize;
            helpers.get(at).or(helpers.last()).copied().into_iter().collect()
        }
    };
    for pid in victims {
        // One that has just ended is as good as killed.
        _ = process::signal(pid, Signal::KILL);
    }
    let (pulling, compiling) = (!pullers.is_empty(), !compilers.is_empty());
    fell.kills += 1;
    fell.pull += usize::from(pulling);
    fell.compilation += usize::from(compiling);
    fell.both += usize::from(pulling && compiling);
    fell.ready += usize::from(host.event("serving").is_some());
    victim
}

/// Kills somebody at a moment, and starts again.
async fn round(shelf: &Shelf, store: &Path, moment: Duration, victim: Victim, fell: &mut Fell) -> Result<()> {
    let mark = format!("{}-{}", std::process::id(), fell.kills);
    shelf.proxy.clear();
    shelf.slow();
    let began = Instant::now();
    let mut host = shelf.host(store, &mark).spawn()?;
    tokio::time::sleep(moment.saturating_sub(began.elapsed())).await;
    match kill(&host, victim, fell) {
        Victim::Supervisor | Victim::Everyone => {
            host.end(GONE).await?;
        }
        Victim::Worker => {
            shelf.proxy.clear();
            let again = || {
                let events = host.events();
                let worker = events.iter().rposition(|event| event["event"] == "worker" && event["restarts"] == 1)?;
                events.iter().skip(worker).any(|event| event["event"] == "serving").then_some(())
            };
            wait_until("an event `serving` of the next worker", Duration::from_secs(60), again).await?;
            serves(&host).await.context("the next worker")?;
        }
        Victim::Helper => {
            shelf.proxy.clear();
            host.wait_for("an event `serving`", Duration::from_secs(60), |event| event["event"] == "serving").await?;
            let failed = host.events_of("failed");
            ensure!(failed.len() <= 2, "what does not wait for it is served: {failed:?}");
        }
    }
    drop(host);
    gone(store, &mark).await?;
    is_sound(store).context("before the next start")?;
    shelf.proxy.clear();
    let host = shelf.host(store, &mark).start().await?;
    serves(&host).await.context("the next start")?;
    let tmp = files(store.join("tmp"));
    ensure!(tmp.is_empty(), "something stays: {tmp:?}");
    is_sound(store).context("after the next start")?;
    drop(host);
    gone(store, &mark).await
}

/// Puts the native code of a component into a store, from one that has it.
fn seed(store: &Path, from: &Path, component: &str) -> Result<()> {
    let component = component.trim_start_matches("sha256:");
    for kind in files(from.join("native")) {
        let manifest = kind.join(format!("{component}.json"));
        let Ok(text) = fs::read(&manifest) else { continue };
        let text: Value = serde_json::from_slice(&text)?;
        let code = text["native"].as_str().context("a manifest names native code")?.trim_start_matches("sha256:");
        let to = store.join("native").join(kind.file_name().context("a folder has a name")?);
        fs::create_dir_all(&to)?;
        for name in [format!("{component}.json"), format!("{code}.code")] {
            // Files of a store are never changed.
            let (from, to) = (kind.join(&name), to.join(&name));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(|_| ()))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_at_any_moment_leaves_a_store_that_the_next_start_accepts() -> Result<()> {
    let shelf = Shelf::new().await?;
    let js = shelf.digests["hello-js"].clone();
    // Its native code takes a quarter of a minute: it is there from the beginning.
    drop(Host::of([Component::guest("js", "hello-js")?]).start().await?);
    let shared = place::shared_store()?;
    let seeded = || {
        let store = tempfile::tempdir()?;
        seed(store.path(), &shared, &js)?;
        anyhow::Ok(store)
    };
    let whole_run = async |store: &Path| {
        shelf.proxy.clear();
        shelf.slow();
        let began = Instant::now();
        let host = shelf.host(store, "whole").start().await?;
        let took = began.elapsed();
        serves(&host).await?;
        anyhow::Ok(took)
    };
    let took = whole_run(seeded()?.path()).await?;
    let took_long = if is_soak() { whole_run(tempfile::tempdir()?.path()).await? } else { took };
    let moments = if is_soak() { MOMENTS.1 } else { MOMENTS.0 };
    let (began, mut fell) = (Instant::now(), Fell::default());
    for number in 0..moments {
        let victim = Victim::ALL[number % Victim::ALL.len()];
        let long = is_soak() && number % LONG == LONG - 1;
        let (store, whole) = if long { (tempfile::tempdir()?, took_long) } else { (seeded()?, took) };
        // Each of as many parts of the time has its moment.
        let part = (number * 7 % moments) as f64;
        let moment = whole.mul_f64(1.2 * (part + chance()) / moments as f64);
        let round = round(&shelf, store.path(), moment, victim, &mut fell).await;
        round.with_context(|| format!("round {number}: {victim:?} killed after {moment:?} of {whole:?}"))?;
    }
    let took_all = began.elapsed();
    println!("{fell:?} in {took_all:.1?}; a whole run takes {took:.1?}, {took_long:.1?} where hello-js is compiled");
    ensure!(fell.pull > moments / 4, "too few kills fell into a pull: {fell:?}");
    Ok(())
}

/// The first child of a process whose arguments begin so, as soon as it can be seen.
fn first_child(pid: u32, kind: &str) -> Result<u32> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        for task in files(format!("/proc/{pid}/task").into()) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            let mut children = children.split_whitespace().filter_map(|child| child.parse().ok());
            if let Some(child) = children.find(|&child| process::arguments(child).starts_with(kind)) {
                return Ok(child);
            }
        }
    }
    bail!("not within 10 s: {kind}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_has_just_started_does_not_outlive_its_supervisor() -> Result<()> {
    let shelf = Shelf::new().await?;
    // Whom nobody ends waits for half a minute.
    shelf.proxy.fault(|_| true, Fault::Hang);
    let image = format!("{}/hello-wasip2:1", shelf.proxy.numeric_host());
    let rounds = if is_soak() { 100 } else { 8 };
    let mut outlived = Vec::new();
    for round in 0..rounds {
        let store = tempfile::tempdir()?;
        let (component, kind) = match round % 2 {
            0 => (Component::image("x", &image), "pillion puller"),
            _ => (Component::guest("x", "hello-js")?, "pillion compiler"),
        };
        let host = Host::of([component]).args(["--plain-http", &shelf.proxy.numeric_host()]).store(store.path());
        let host = host.spawn()?;
        let child = first_child(host.supervisor(), kind)?;
        // Between its first instruction and its first few thousand.
        std::thread::sleep(Duration::from_micros(round as u64 / 2 % 8 * 500));
        host.signal(Signal::KILL)?;
        let ended = wait_until("its end", GONE, || (!process::runs(child)).then_some(())).await;
        if ended.is_err() {
            outlived.push((round, process::arguments(child)));
            process::signal(child, Signal::KILL)?;
        }
    }
    ensure!(outlived.is_empty(), "{} of {rounds} outlived their supervisors: {outlived:?}", outlived.len());
    Ok(())
}
