//! How much the store holds: what was not used for longest leaves first, and nothing that is in use.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use pillion_protocol::digest::Digest;

use super::Store;

/// What was used just now does not leave: it may be on its way to be bound.
const FRESH: Duration = Duration::from_secs(10);

/// What was not written to for so long nobody finishes.
const UNFINISHED: Duration = Duration::from_secs(1_800);

/// A file that may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// What the store holds after room was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes that it holds now.
    pub bytes: u64,
    /// Bytes that left.
    pub freed: u64,
}

/// Which files leave so that no more than `quota` bytes are held: the longest unused first.
fn leaving(mut files: Vec<Kept>, held: u64, quota: u64) -> Vec<Kept> {
    files.sort_by_key(|file| file.used);
    let mut over = held.saturating_sub(quota);
    let leaves = |file: &Kept| {
        let leaves = over > 0;
        over = over.saturating_sub(file.size);
        leaves
    };
    files.into_iter().take_while(leaves).collect()
}

impl Store {
    /// Removes what was not used for longest until no more than `quota` bytes are held, but nothing of `bound`: components, native
    /// code and artifacts by their digests. Nothing leaves, and this is `None`, while another process uses the store: what that one needs is not known here.
    pub fn make_room(&self, quota: u64, bound: &HashSet<Digest>) -> Option<Held> {
        // A worker that dies leaves what it was writing; a child writes for less long than this.
        self.sweep_older_than(UNFINISHED);
        let files = self.files();
        let mut held = files.iter().map(|(_, file)| file.size).sum();
        if held <= quota {
            return Some(Held { bytes: held, freed: 0 });
        }
        let lock = self.lock.as_ref().filter(|lock| lock.is_ours_alone())?;
        let is_fresh = |file: &Kept| file.used.elapsed().is_ok_and(|ago| ago < FRESH);
        let is_free = |(digest, file): &(Digest, Kept)| !bound.contains(digest) && !is_fresh(file);
        let free = files.into_iter().filter(is_free).map(|(_, file)| file).collect();
        let mut freed = 0;
        for file in leaving(free, held, quota) {
            match fs::remove_file(&file.path) {
                Ok(()) => freed += file.size,
                Err(error) => {
                    tracing::warn!(path = %file.path.display(), %error, "a file cannot be removed to make room")
                }
            }
        }
        held -= freed;
        self.forget_images();
        lock.shared();
        Some(Held { bytes: held, freed })
    }

    /// Everything of a size that counts, each with the digest in its name.
    fn files(&self) -> Vec<(Digest, Kept)> {
        let kinds = fs::read_dir(self.root.join("native")).into_iter().flatten().flatten().map(|entry| entry.path());
        let folders = kinds.chain([self.artifacts(), self.images()]);
        let entries = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        let kept = |entry: fs::DirEntry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let path = entry.path();
            let digest = Digest::from_hex(path.file_stem()?.to_str()?).ok()?;
            let size = metadata.blocks().saturating_mul(512);
            Some((digest, Kept { path, size, used: metadata.modified().ok()? }))
        };
        entries.filter_map(kept).collect()
    }
}

/// Takes note that a file is used: it leaves later. Once an hour is enough, since a change of the file has what was checked of it
/// checked again.
pub(super) fn used(path: &Path) {
    const LATELY: Duration = Duration::from_secs(3_600);
    let when = fs::metadata(path).and_then(|metadata| metadata.modified());
    if when.is_ok_and(|when| when.elapsed().is_ok_and(|ago| ago < LATELY)) {
        return;
    }
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
    };
    _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, size: u64, age: u64) -> Kept {
        Kept { path: name.into(), size, used: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 - age) }
    }

    #[test]
    fn the_longest_unused_leave_until_it_is_enough() {
        let files = vec![kept("new", 10, 1), kept("old", 10, 100), kept("older", 5, 200)];
        let names = |held, quota| {
            leaving(files.clone(), held, quota)
                .into_iter()
                .map(|file| file.path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(25, 25), [""; 0]);
        assert_eq!(names(25, 24), ["older"]);
        assert_eq!(names(25, 19), ["older", "old"]);
        assert_eq!(names(1_000, 0), ["older", "old", "new"]);
    }

    #[test]
    fn what_is_bound_stays_and_so_does_everything_while_somebody_else_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Store::open(&root).unwrap();
        let add = |text: &str| {
            let path = dir.path().join("x.wasm");
            fs::write(&path, text).unwrap();
            let artifact = store.add(&path).unwrap();
            let long_ago = SystemTime::now() - Duration::from_secs(60);
            fs::File::options().write(true).open(&artifact.path).unwrap().set_modified(long_ago).unwrap();
            artifact.digest
        };
        let (bound, free) = (add("bound"), add("free"));
        let other = Store::open(&root).unwrap();
        assert_eq!(store.make_room(0, &HashSet::from([bound])), None);
        drop(other);
        let room = store.make_room(0, &HashSet::from([bound])).unwrap();
        assert!(room.freed > 0 && room.bytes > 0, "{room:?}");
        assert!(store.artifact(bound).is_some() && store.artifact(free).is_none());
        assert!(Store::open(&root).unwrap().artifact(bound).is_some(), "others may come again");
    }
}
