//! `--watch`: says when files of the catalog change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// A burst of events is one change: editors and linkers write a file in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// A burst that does not end is looked at after so long.
const BURST: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    files: BTreeSet<PathBuf>,
    /// Every `.yaml` and `.yml` in them.
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    /// Watches a file, or a folder of them.
    pub fn add(&mut self, path: &Path) {
        match path.canonicalize() {
            Ok(folder) if folder.is_dir() => _ = self.folders.insert(folder),
            _ => _ = self.files.insert(in_place(path)),
        }
    }

    fn holds(&self, path: &Path) -> bool {
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        self.files.contains(path) || yaml && path.parent().is_some_and(|folder| self.folders.contains(folder))
    }

    /// The folders that the kernel is asked to watch, since a file that is replaced by rename is another file.
    fn places(&self) -> BTreeSet<&Path> {
        let of_files = self.files.iter().filter_map(|file| file.parent());
        of_files.chain(self.folders.iter().map(PathBuf::as_path)).collect()
    }
}

/// Calls `changed` after anything of `watched` changed, until the process ends; it gives what is to be watched from then on.
/// A folder that cannot be watched is said so, and the others are watched.
///
/// # Errors
///
/// A kernel that watches nothing.
pub fn watch(
    mut watched: Watched,
    mut changed: impl FnMut() -> Option<Watched> + Send + 'static,
) -> anyhow::Result<()> {
    let (sender, events) = channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if let Ok(event) = event
            && !event.kind.is_access()
        {
            _ = sender.send(event.paths);
        }
    })?;
    follow(&mut watcher, &Watched::default(), &watched);
    thread::Builder::new().name("watch".into()).spawn(move || {
        while let Ok(paths) = events.recv() {
            if !paths.iter().any(|path| watched.holds(path) || !is_plain(path)) {
                continue;
            }
            settle(&events);
            if let Some(now) = changed() {
                follow(&mut watcher, &watched, &now);
                watched = now;
            }
        }
    })?;
    Ok(())
}

/// Whether `path` is a plain file: where it is not what is watched, it is somebody else's. A link that is switched, as mounted
/// ConfigMaps are, may lead to anything.
fn is_plain(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file())
}

/// `path` in the one form that the kernel's events have, too.
fn in_place(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn settle(events: &Receiver<Vec<PathBuf>>) {
    let end = Instant::now() + BURST;
    while Instant::now() < end
        && !matches!(events.recv_timeout(SETTLE), Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected))
    {}
}

fn follow(watcher: &mut RecommendedWatcher, before: &Watched, now: &Watched) {
    let (before, now) = (before.places(), now.places());
    for place in before.difference(&now) {
        _ = watcher.unwatch(place);
    }
    for place in now.difference(&before) {
        if let Err(error) = watcher.watch(place, RecursiveMode::NonRecursive) {
            tracing::warn!(folder = %place.display(), %error, "a folder cannot be watched: changes in it are not seen");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_named_counts() {
        let set = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        let watched = Watched { files: set(&["/a/x.wasm"]), folders: set(&["/b"]) };
        for (path, holds) in [
            ("/a/x.wasm", true),
            ("/a/x.wasm.tmp", false),
            ("/a/y.yaml", false),
            ("/b/y.yaml", true),
            ("/b/y.yml", true),
            ("/b/events.json", false),
            ("/b/c/y.yaml", false),
        ] {
            assert_eq!(watched.holds(Path::new(path)), holds, "{path}");
        }
    }
}
