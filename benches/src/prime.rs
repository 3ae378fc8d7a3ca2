//! Thousands of distinct components, with native code for each: made once, kept in the cache, and counted in no figure.
//!
//! Each is the smallest guest with another text of six bytes in its data segment, which it answers with. So all take the same
//! time, the native code of each is a file of its own, and an answer shows which component it came from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{child, host::Component, setup::Setup};

/// The guest that all are made from, and what it answers.
const GUEST: &str = "hello-wasip2";
const ANSWER: &[u8] = b"hello\n";

/// Components that are compiled by one command.
const BATCH: usize = 100;

/// How long that may take.
const BATCH_TIME: Duration = Duration::from_secs(600);

/// Components and the store with their native code.
pub struct Primed {
    /// Their files, in order.
    pub files: Vec<PathBuf>,
    /// The store.
    pub store: PathBuf,
}

/// What the component `number` answers.
pub fn answer(number: usize) -> Vec<u8> {
    format!("{number:05}\n").into_bytes()
}

/// Makes `count` components and their native code, or finds them made.
///
/// # Errors
///
/// A guest that is not what it was, a component that cannot be compiled.
pub fn prepare(setup: &Setup, count: usize) -> anyhow::Result<Primed> {
    ensure!((1..=50_000).contains(&count), "{count} components: allowed are 1 to 50000");
    let directory = setup.directory(&format!("cold-{count}"))?;
    let (components, store) = (directory.join("components"), directory.join("store"));
    let files: Vec<_> = (0..count).map(|number| components.join(format!("c{number:05}.wasm"))).collect();
    write_components(setup, &components, &files)?;
    compile(setup, &store, &files)?;
    let found = native_code_files(&store)?;
    ensure!(found >= count, "{}: {count} components have {found} files of native code", store.display());
    Ok(Primed { files, store })
}

impl Primed {
    /// The first `count` components, bound under their files' names.
    pub fn components(&self, count: usize) -> Vec<Component> {
        self.files
            .iter()
            .take(count)
            .enumerate()
            .map(|(number, file)| Component::new(&name(number), file.clone()))
            .collect()
    }

    /// Reads all native code once, so that it is in the page cache.
    ///
    /// # Errors
    ///
    /// What cannot be read.
    pub fn read_all(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for file in code_files(&self.store)? {
            bytes += fs::read(&file).with_context(|| file.display().to_string())?.len() as u64;
        }
        Ok(bytes)
    }
}

/// The binding of the component `number`.
pub fn name(number: usize) -> String {
    format!("c{number:05}")
}

/// So many components, of which each answers something else.
///
/// # Errors
///
/// A guest that is not what it was.
pub fn distinct(setup: &Setup, count: usize) -> anyhow::Result<impl Iterator<Item = Vec<u8>> + use<>> {
    let (guest, at) = guest(setup)?;
    let patched = move |number| {
        let mut component = guest.clone();
        if let Some(place) = component.get_mut(at..at + ANSWER.len()) {
            place.copy_from_slice(&answer(number));
        }
        component
    };
    Ok((0..count).map(patched))
}

/// The guest, and where its answer is.
fn guest(setup: &Setup) -> anyhow::Result<(Vec<u8>, usize)> {
    let path = setup.guest(GUEST)?;
    let guest = fs::read(&path).with_context(|| path.display().to_string())?;
    let mut places = guest.windows(ANSWER.len()).enumerate().filter(|(_, bytes)| *bytes == ANSWER).map(|(at, _)| at);
    let (Some(at), None) = (places.next(), places.next()) else {
        bail!("{}: its answer {:?} is not in it exactly once", path.display(), String::from_utf8_lossy(ANSWER));
    };
    Ok((guest, at))
}

fn write_components(setup: &Setup, directory: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (component, file) in distinct(setup, files.len())?.zip(files) {
        if fs::read(file).is_ok_and(|there| there == component) {
            continue;
        }
        let unfinished = file.with_extension("unfinished");
        fs::write(&unfinished, &component)
            .and_then(|()| fs::rename(&unfinished, file))
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// What is compiled already is only looked at, so this can be interrupted.
fn compile(setup: &Setup, store: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut said = began;
    let before = native_code_files(store)?;
    for (batch, files) in files.chunks(BATCH).enumerate() {
        let mut command = Command::new(&setup.pillion);
        command.args(["compile", "--store"]).arg(store).args(files);
        child::output("pillion compile", &mut command, BATCH_TIME)?;
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            eprintln!("compiled {} components in {:.0} s", (batch + 1) * BATCH, began.elapsed().as_secs_f64());
        }
    }
    let made = native_code_files(store)?.saturating_sub(before);
    if made > 0 {
        eprintln!("made native code of {made} components in {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn native_code_files(store: &Path) -> anyhow::Result<usize> {
    Ok(code_files(store)?.len())
}

/// The files with native code, of the kind that was written last: an older `pillion` may have left another kind.
fn code_files(store: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Ok(kinds) = fs::read_dir(store.join("native")) else { return Ok(Vec::new()) };
    let newest = |directory: &PathBuf| fs::metadata(directory).and_then(|metadata| metadata.modified()).ok();
    let kind = kinds.flatten().map(|kind| kind.path()).filter(|kind| holds_code(kind)).max_by_key(newest);
    let Some(kind) = kind else { return Ok(Vec::new()) };
    let files = fs::read_dir(&kind).with_context(|| kind.display().to_string())?;
    Ok(files.flatten().map(|file| file.path()).filter(|file| is_code(file)).collect())
}

fn holds_code(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|files| files.flatten().any(|file| is_code(&file.path())))
}

fn is_code(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "code")
}
