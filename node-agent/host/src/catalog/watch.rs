//! `--watch`: says when files of the catalog change. The kernel tells, and where it does not it is looked every few seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::folder::is_yaml;

/// A burst of events is one change: editors and linkers write a file in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// A burst that does not end is looked at after so long.
const BURST: Duration = Duration::from_secs(1);

/// How often it is looked where the kernel does not tell of every change.
const LOOK: Duration = Duration::from_secs(2);

/// What tells a file from the one that was there before: device, number, size, and when it was changed.
type Stamp = (u64, u64, u64, i64, i64);

/// The files there are.
type Stamps = BTreeMap<PathBuf, Stamp>;

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
        let in_folder = || path.parent().is_some_and(|folder| self.folders.contains(folder));
        self.files.contains(path) || is_yaml(path) && in_folder()
    }

    /// What is there now. Links are followed: what they lead to is what is read.
    fn stamps(&self) -> Stamps {
        let entries = self.folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| is_yaml(path));
        let stamp = |path: PathBuf| {
            let file = path.metadata().ok()?;
            Some((path, (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec())))
        };
        files.chain(self.files.iter().cloned()).filter_map(stamp).collect()
    }

    /// The folders that the kernel is asked to watch, since a file that is replaced by rename is another file.
    fn places(&self) -> BTreeSet<&Path> {
        let of_files = self.files.iter().filter_map(|file| file.parent());
        of_files.chain(self.folders.iter().map(PathBuf::as_path)).collect()
    }
}

/// How changes are noticed.
struct Eyes {
    /// None where the kernel gives no inotify instance.
    kernel: Option<RecommendedWatcher>,
    /// The kernel does not tell of everything.
    looks: bool,
    events: Receiver<Vec<PathBuf>>,
    /// Held so that waiting for events lasts, also where none comes.
    _sender: Sender<Vec<PathBuf>>,
}

impl Eyes {
    fn open() -> Self {
        let (sender, events) = channel();
        let tell = sender.clone();
        let kernel = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && !event.kind.is_access()
            {
                _ = tell.send(event.paths);
            }
        });
        let kernel = kernel.inspect_err(|error| {
            tracing::warn!(
                %error,
                "files cannot be watched by inotify, and are looked at every {} s: see the sysctl fs.inotify.max_user_instances",
                LOOK.as_secs()
            );
        });
        Self { looks: kernel.is_err(), kernel: kernel.ok(), events, _sender: sender }
    }

    /// Watches the places of `now` in place of those of `before`.
    fn follow(&mut self, before: &Watched, now: &Watched) {
        let Some(kernel) = &mut self.kernel else { return };
        let (before, now) = (before.places(), now.places());
        for place in before.difference(&now) {
            _ = kernel.unwatch(place);
        }
        for place in now.difference(&before) {
            if let Err(error) = kernel.watch(place, RecursiveMode::NonRecursive) {
                self.looks = true;
                tracing::warn!(
                    folder = %place.display(), %error,
                    "a folder cannot be watched by inotify, and is looked at every {} s: see the sysctl fs.inotify.max_user_watches",
                    LOOK.as_secs()
                );
            }
        }
    }

    /// Waits until something of `watched` may be otherwise than `seen`; gives what is there then.
    fn wait(&self, watched: &Watched, seen: &Stamps) -> Option<Stamps> {
        loop {
            let event = match self.looks {
                true => self.events.recv_timeout(LOOK),
                false => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(paths) if paths.iter().any(|path| watched.holds(path) || !is_plain(path)) => {
                    settle(&self.events);
                    return Some(watched.stamps());
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if watched.stamps() != *seen => return Some(settled(watched)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Calls `changed` after anything of `watched` changed, until the process ends; it gives what is to be watched from then on.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn watch(
    mut watched: Watched,
    mut changed: impl FnMut() -> Option<Watched> + Send + 'static,
) -> anyhow::Result<()> {
    let (mut eyes, mut seen) = (Eyes::open(), watched.stamps());
    eyes.follow(&Watched::default(), &watched);
    thread::Builder::new().name("watch".into()).spawn(move || {
        while let Some(now) = eyes.wait(&watched, &seen) {
            // What changes while it is read is seen by the next look.
            seen = now;
            if let Some(now) = changed() {
                eyes.follow(&watched, &now);
                watched = now;
                for (path, stamp) in watched.stamps() {
                    seen.entry(path).or_insert(stamp);
                }
                seen.retain(|path, _| watched.holds(path));
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

/// What is there when it has not changed for a while: a file is written in several steps.
fn settled(watched: &Watched) -> Stamps {
    let (mut stamps, end) = (watched.stamps(), Instant::now() + BURST);
    loop {
        thread::sleep(SETTLE);
        let now = watched.stamps();
        if now == stamps || Instant::now() >= end {
            return now;
        }
        stamps = now;
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

    #[test]
    fn each_way_of_changing_a_file_is_seen_by_looking() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut watched = Watched::default();
        watched.add(folder.path());
        watched.add(&path("x.wasm"));
        let mut seen = watched.stamps();
        assert!(seen.is_empty());
        let mut is_seen = || {
            // Clocks of files turn every few milliseconds.
            thread::sleep(Duration::from_millis(20));
            let now = watched.stamps();
            std::mem::replace(&mut seen, now.clone()) != now
        };
        fs::write(path("x.wasm"), "one").unwrap();
        assert!(is_seen(), "a new file");
        fs::write(path("x.wasm"), "two").unwrap();
        assert!(is_seen(), "the same length, in place");
        fs::write(path("new"), "two").unwrap();
        assert!(!is_seen(), "a file that is not watched");
        fs::rename(path("new"), path("x.wasm")).unwrap();
        assert!(is_seen(), "the same content, renamed over");
        std::os::unix::fs::symlink("x.wasm", path("a.yaml")).unwrap();
        assert!(is_seen(), "a link in the folder");
        fs::write(path("x.wasm"), "three").unwrap();
        assert!(is_seen(), "what it leads to");
        fs::remove_file(path("a.yaml")).unwrap();
        assert!(is_seen() && !is_seen(), "a file that is gone");
    }
}
