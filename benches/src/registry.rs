//! Registries: from an artifact's reference to its first answer, part by part. The registry is docker-registry on loopback without
//! TLS: no time goes into a network, and what is measured is the node's own.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pillion_tests::{
    process,
    registry::{Artifact, Registry},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    child::Running,
    figures::{Unit, median},
    host::free_port,
    report::{Row, Section, Series},
    setup::Setup,
    start::{Expected, Start},
};

/// No guest has a middle size. So it is the first one with the second in it, so many times: nobody calls those, but their code is
/// pulled, checked and compiled as any other.
const OUTER: &str = "hello-wasip2";
const INNER: &str = "hello-wstd";
const INNERS: usize = 13;

/// How long a baseline's program may take to end once its output has.
const END: Duration = Duration::from_secs(10);

/// A registry, and a place on disk for what is measured.
struct Site {
    runtime: Runtime,
    registry: Registry,
    folder: TempDir,
}

/// A component: a file, and an artifact.
struct Case {
    /// Its size, for people.
    label: String,
    /// What it is.
    what: String,
    /// Its name, and that of its repository.
    name: &'static str,
    file: PathBuf,
    bytes: u64,
    /// The digest of the file, which is the artifact's layer.
    digest: String,
    runs: usize,
}

/// One run: each kind of start, and the baselines.
struct Sample {
    file: Start,
    file_again: Start,
    pillion_compile: f64,
    curl: f64,
    image: Start,
    image_again: Start,
    image_away: Start,
}

/// Runs it.
///
/// # Errors
///
/// No docker-registry, no curl, a guest that is not built, an answer that is not 200.
pub fn run(setup: &Setup) -> anyhow::Result<Section> {
    let mut site = Site::open(setup)?;
    let cases = site.cases(setup)?;
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for run in 0..setup.runs {
        for (case, samples) in cases.iter().zip(&mut samples).filter(|(case, _)| run < case.runs) {
            eprintln!("registry: run {} of {}, {}", run + 1, case.runs, case.label);
            samples.push(site.measure(setup, case).with_context(|| case.name)?);
        }
    }
    let before: Vec<f64> = samples.iter().flatten().map(|sample| sample.image.before).collect();
    let before = Unit::Seconds.show(median(&before));
    let mut notes = vec![
        "docker-registry on loopback without TLS, its files in the page cache; the store is on disk, and synced".into(),
        "reference to answer: from the event pulling to a 200, asked for at the event ready; a file: from when it is looked for".into(),
        format!("not in it: the start of the program and its worker, {before}"),
        "resolve and pull: from pulling to pulled, with the start of the puller; curl and pillion compile with their starts, too".into(),
        "again: with the store that the first start has left, its native code in it".into(),
    ];
    notes.extend(cases.iter().map(|Case { label, what, runs, .. }| format!("{label}: {what}; runs: {runs}")));
    let rows = cases.iter().zip(&samples).flat_map(|(case, samples)| rows(setup, case, samples)).collect();
    Ok(Section { title: "registry: from an artifact's reference to its first answer".into(), notes, rows })
}

impl Site {
    fn open(setup: &Setup) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let registry = runtime.block_on(Registry::start())?;
        let folder = own(&setup.directory("registry")?)?;
        Ok(Self { runtime, registry, folder })
    }

    /// A new folder of its own.
    fn folder(&self) -> anyhow::Result<TempDir> {
        tempfile::tempdir_in(&self.folder).with_context(|| self.folder.path().display().to_string())
    }

    /// Makes and pushes what is measured.
    fn cases(&self, setup: &Setup) -> anyhow::Result<[Case; 3]> {
        let runs = setup.runs;
        let made = self.folder.path().join("made.wasm");
        let (outer, inner) = (read(&setup.guest(OUTER)?)?, read(&setup.guest(INNER)?)?);
        fs::write(&made, nest(outer, &inner, INNERS)).with_context(|| made.display().to_string())?;
        let of_made = format!("{OUTER} with {INNERS} times {INNER} in it, which nobody calls");
        Ok([
            self.case("faults-p2", setup.guest("faults-p2")?, "faults-p2, Rust".into(), runs)?,
            self.case("made", made, of_made, setup.either(runs, 1))?,
            self.case(
                "hello-python",
                setup.guest("hello-python")?,
                "hello-python, with its interpreter".into(),
                runs.min(setup.either(3, 1)),
            )?,
        ])
    }

    fn case(&self, name: &'static str, file: PathBuf, what: String, runs: usize) -> anyhow::Result<Case> {
        let component = read(&file)?;
        let bytes = component.len() as u64;
        let artifact = Artifact::wasm(component);
        self.runtime.block_on(artifact.push(&self.registry, &format!("{name}:1")))?;
        let (label, digest) = (Unit::Bytes.show(bytes as f64), artifact.layer_digest(0)?);
        Ok(Case { label, what, name, file, bytes, digest, runs })
    }

    fn measure(&mut self, setup: &Setup, case: &Case) -> anyhow::Result<Sample> {
        let [by_file, by_command, by_image] = [self.folder()?, self.folder()?, self.folder()?];
        let file = self.start(setup, by_file.path(), case, &Expected::File { compiled: true })?;
        let file_again = self.start(setup, by_file.path(), case, &Expected::File { compiled: false })?;
        let mut command = Command::new(&setup.pillion);
        let pillion_compile = took(command.args(["compile", "--store"]).arg(by_command.path()).arg(&case.file))?;
        let curl = self.curl(case)?;
        let image = self.start(setup, by_image.path(), case, &Expected::Pulled { least: case.bytes })?;
        let image_again = self.start(setup, by_image.path(), case, &Expected::Known { stale: false })?;
        self.registry.stop();
        let image_away = self.start(setup, by_image.path(), case, &Expected::Known { stale: true })?;
        self.runtime.block_on(self.registry.restart())?;
        Ok(Sample { file, file_again, pillion_compile, curl, image, image_again, image_away })
    }

    fn start(&self, setup: &Setup, store: &Path, case: &Case, expected: &Expected) -> anyhow::Result<Start> {
        let (port, host) = (free_port()?, self.registry.numeric_host());
        let arguments = match expected {
            Expected::File { .. } => vec![format!("{}={port}", case.file.display())],
            Expected::Pulled { .. } | Expected::Known { .. } => {
                vec!["--image".into(), format!("{host}/{}:1={port}", case.name), "--plain-http".into(), host]
            }
        };
        Start::take(setup, store, port, &arguments, expected)
    }

    /// The layer, into a file.
    fn curl(&self, case: &Case) -> anyhow::Result<f64> {
        let folder = self.folder()?;
        let file = folder.path().join("blob");
        let url = format!("http://{}/v2/{}/blobs/{}", self.registry.numeric_host(), case.name, case.digest);
        let took = took(
            Command::new("curl")
                .args(["-sS", "--fail", "--max-time", "60", "--noproxy", "*", "-o"])
                .arg(&file)
                .arg(url),
        )?;
        ensure!(read(&file)?.len() as u64 == case.bytes, "{}: not the whole layer", file.display());
        Ok(took)
    }
}

fn rows(setup: &Setup, case: &Case, samples: &[Sample]) -> Vec<Row> {
    let series = |name: &str, of: fn(&Sample) -> f64| Series::new(name, samples.iter().map(of).collect());
    let row = |what: &str, of: fn(&Sample) -> f64, baseline: &Series| {
        let what = format!("{}, {what}", case.label);
        Row::new(what, Unit::Seconds, &series("pillion run", of), baseline, setup.command("registry"))
    };
    let pulled = series("resolve and pull", |sample| sample.image.pulled);
    let again = series("its file again", |sample| sample.file_again.whole);
    vec![
        row("reference to answer", |sample| sample.image.whole, &series("its file", |sample| sample.file.whole)),
        row("resolve and pull", |sample| sample.image.pulled, &series("curl of its layer", |sample| sample.curl)),
        row("of that, to resolve", |sample| sample.image.resolve, &pulled),
        row("of that, to pull", |sample| sample.image.pull, &pulled),
        row("of the pull, to verify", |sample| sample.image.verify, &pulled),
        row("compile", |sample| sample.image.compile, &series("pillion compile", |sample| sample.pillion_compile)),
        row("first answer", |sample| sample.image.answer, &series("of its file", |sample| sample.file.answer)),
        row("again, reference to answer", |sample| sample.image_again.whole, &again),
        row("again, the registry down", |sample| sample.image_away.whole, &again),
    ]
}

/// A folder in this one that goes with the value. One of a bench that was interrupted is still there, and goes now.
fn own(folder: &Path) -> anyhow::Result<TempDir> {
    let at = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(at)?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.split_once('-').and_then(|(pid, _)| pid.parse().ok());
        if owner.is_some_and(|pid| !process::runs(pid)) {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    tempfile::Builder::new().prefix(&format!("{}-", std::process::id())).tempdir_in(folder).with_context(at)
}

/// How long a command takes from its start to the end of its output, in seconds.
fn took(command: &mut Command) -> anyhow::Result<f64> {
    let name = command.get_program().display().to_string();
    let began = Instant::now();
    let mut running = Running::start(&name, command)?;
    running.stdout().context("no standard output")?.read_to_end(&mut Vec::new())?;
    let took = began.elapsed();
    let status = running.wait(END)?;
    ensure!(status.success(), "{name} failed ({status}): {}", running.last_errors());
    Ok(took.as_secs_f64())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}

/// A component with another one in it, so many times, each a component section.
/// <https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md>
fn nest(mut outer: Vec<u8>, inner: &[u8], times: usize) -> Vec<u8> {
    let mut section = vec![4];
    let mut length = inner.len();
    while length >= 0x80 {
        section.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    section.extend(inner);
    outer.extend(section.repeat(times));
    outer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_bench_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // No process has so high a number: PID_MAX_LIMIT is 2^22.
        let [left, other] = ["4194305-x", "other"].map(|name| folder.path().join(name));
        fs::create_dir(&left).unwrap();
        fs::create_dir(&other).unwrap();
        let own = [own(folder.path()).unwrap(), own(folder.path()).unwrap()];
        assert!(own.iter().all(|own| own.path().is_dir()));
        assert!(!left.exists() && other.is_dir());
    }

    #[test]
    fn a_component_holds_others_as_sections() {
        assert_eq!(nest(vec![0], &[7; 3], 2), [0, 4, 3, 7, 7, 7, 4, 3, 7, 7, 7]);
        let nested = nest(Vec::new(), &[7; 300], 1);
        assert_eq!((nested.get(..4), nested.len()), (Some([4, 0xac, 0x02, 7].as_slice()), 303));
    }
}
