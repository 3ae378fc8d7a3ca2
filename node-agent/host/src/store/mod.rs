//! What a node keeps on disk: components by their digest, and the native code that its own compiler made of them.
//!
//! ```text
//! DIR/artifacts/<sha256>                    a component
//! DIR/native/<compatibility>/<sha256>.json  what is known of the component with that digest, and its native code's digest
//! DIR/native/<compatibility>/<sha256>.code  that native code, by its own digest
//! DIR/images/<sha256>.json                  what the artifact of a registry holds, by its manifest's digest
//! DIR/tags/<sha256>.json                    what a tag led to when it was last looked at, by the digest of the reference
//! DIR/tmp/                                  files that are being written
//! DIR/lock                                  locked by each process that uses the store
//! ```
//!
//! Files appear by rename and go by unlink, never by change: native code that is mapped stays what it is. Every write can be
//! killed at any point; what is not renamed is swept away at the next start.

mod images;
mod library;
mod lock;
mod native;
mod proofs;
mod quota;

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use pillion_protocol::digest::Digest;
use sha2::{Digest as _, Sha256};

use self::lock::Lock;
pub use self::{
    images::Image,
    library::{Job, Library, Stored},
    native::{Native, NativeCode, NativeError, OpenNative},
    quota::Held,
};
use crate::compiler::MAX_COMPONENT;

/// A store in one directory that only this user can write.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// `None` where another process holds it for this one.
    lock: Option<Lock>,
}

/// A component on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Artifact {
    /// Its content's digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    path: PathBuf,
}

/// Why something could not be stored or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is not only ours.
    #[error("{path}: {problem}; native code is loaded only from a directory that nobody else can write")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A component that is too large.
    #[error("{path} has {size} bytes: at most {MAX_COMPONENT} are allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, as far as it was read.
        size: u64,
    },
    /// The file system said no.
    #[error("{path}: {step}: {error}")]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the file system said.
        error: io::Error,
    },
}

impl StoreError {
    /// Whether a file that should be there is not.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// For `map_err`: adds what was tried, on what.
fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io { path, step, error }
}

impl Store {
    /// Opens or makes the store in `root`.
    ///
    /// # Errors
    ///
    /// A directory that others can write, or that cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for dir in ["", "artifacts", "images", "native", "tags", "tmp"].map(|name| root.join(name)) {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed("create the directory", &dir))?;
            only_ours(&dir)?;
        }
        Ok(Self { root: root.to_owned(), lock: Some(Lock::new(root)?) })
    }

    /// Removes what interrupted writes left behind, unless somebody else uses the store, who may be writing. For who has no child yet.
    pub fn sweep(&self) {
        if let Some(lock) = self.lock.as_ref().filter(|lock| lock.is_ours_alone()) {
            self.sweep_older_than(Duration::ZERO);
            lock.shared();
        }
    }

    /// Opens the store in `root` for a child of whoever uses it: that one knows what the child does, and may remove other things
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// A directory that others can write, or that cannot be made.
    pub fn open_as_child(root: &Path) -> Result<Self, StoreError> {
        if !root.join("tmp").is_dir() {
            return Self::open(root);
        }
        only_ours(root)?;
        Ok(Self { root: root.to_owned(), lock: None })
    }

    /// The part of this store that holds native code of one kind, named by [`crate::engine::settings::compatibility`].
    ///
    /// # Errors
    ///
    /// A directory that others can write, or that cannot be made.
    pub fn native(&self, compatibility: &str) -> Result<Native, StoreError> {
        let dir = self.root.join("native").join(compatibility);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed("create the directory", &dir))?;
        only_ours(&dir)?;
        Ok(Native::new(dir))
    }

    /// Takes in the component at `path`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, that is too large, or a full disk. Nothing partial stays.
    pub fn add(&self, path: &Path) -> Result<Artifact, StoreError> {
        let source = File::open(path).map_err(failed("open", path))?;
        if !source.metadata().map_err(failed("read", path))?.is_file() {
            return Err(failed("read", path)(io::Error::other("it is not a file")));
        }
        let mut copy = self.new_file()?;
        let (digest, size) = copy_hashing(source.take(MAX_COMPONENT + 1), copy.as_file_mut())
            .map_err(failed("copy into the store", path))?;
        if size > MAX_COMPONENT {
            let size = fs::metadata(path).map_or(size, |m| m.len());
            return Err(StoreError::TooLarge { path: path.to_owned(), size });
        }
        let stored = self.artifacts().join(digest.to_hex());
        // Also where one is there already: after a power cut that one may be empty.
        copy.persist(&stored).map_err(|e| failed("rename into the store", &stored)(e.error))?;
        Ok(Artifact { digest, size, path: stored })
    }

    /// Takes in a component that was written to a [`Store::new_file`], and whose digest was checked.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn add_file(&self, digest: Digest, file: tempfile::NamedTempFile) -> Result<(), StoreError> {
        let stored = self.artifacts().join(digest.to_hex());
        file.persist(&stored).map_err(|e| failed("rename into the store", &stored)(e.error))?;
        Ok(())
    }

    /// The component with this digest, if it was taken in.
    pub fn artifact(&self, digest: Digest) -> Option<Artifact> {
        let path = self.artifacts().join(digest.to_hex());
        let found = fs::metadata(&path).ok().filter(|found| found.is_file() && found.len() > 0)?;
        Some(Artifact { digest, size: found.len(), path })
    }

    /// An empty file that vanishes unless it is renamed to where it belongs.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn new_file(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        tempfile::NamedTempFile::new_in(self.tmp()).map_err(failed("create a file", &self.tmp()))
    }

    fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn tags(&self) -> PathBuf {
        self.root.join("tags")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes unfinished files that nobody has written to for so long.
    fn sweep_older_than(&self, age: Duration) {
        for entry in fs::read_dir(self.tmp()).into_iter().flatten().flatten() {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            if written.is_ok_and(|written| written.elapsed().is_ok_and(|ago| ago >= age)) {
                _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Artifact {
    /// Takes note that it is used: it leaves the store later.
    pub fn used(&self) {
        quota::used(&self.path);
    }

    /// Opens it for reading.
    ///
    /// # Errors
    ///
    /// A file that has gone.
    pub fn open(&self) -> Result<File, StoreError> {
        File::open(&self.path).map_err(failed("open", &self.path))
    }
}

/// Copies everything and hashes it on the way; gives the digest and the number of bytes.
fn copy_hashing(mut from: impl Read, to: &mut impl Write) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut size = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(read);
        to.write_all(read)?;
        size += read.len() as u64;
    }
    Ok((Digest::from_sha256(hasher.finalize().into()), size))
}

fn only_ours(dir: &Path) -> Result<(), StoreError> {
    let metadata = fs::symlink_metadata(dir).map_err(failed("read", dir))?;
    let unsafe_because = |problem: String| Err(StoreError::Unsafe { path: dir.to_owned(), problem });
    if !metadata.is_dir() {
        return unsafe_because("it is not a directory".into());
    }
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return unsafe_because(format!("it belongs to user {}, this process runs as {us}", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return unsafe_because(format!("its mode {:o} lets others write", metadata.mode() & 0o777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_component_is_found_again_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let path = dir.path().join("x.wasm");
        fs::write(&path, b"abc").unwrap();
        let artifact = store.add(&path).unwrap();
        assert_eq!(
            artifact.digest.to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let mut text = String::new();
        artifact.open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), artifact.size), ("abc", 3));
        store.add(&path).unwrap();
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0, "nothing partial stays");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let missing = store.add(&dir.path().join("gone.wasm")).unwrap_err().to_string();
        assert!(missing.contains("gone.wasm: open:"), "{missing}");
        let folder = store.add(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("it is not a file"), "{folder}");
        let large = dir.path().join("large.wasm");
        File::create(&large).unwrap().set_len(200 << 20).unwrap();
        let error = store.add(&large).unwrap_err().to_string();
        assert!(error.contains("large.wasm has 209715200 bytes: at most 104857600 are allowed"), "{error}");
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Store::open(&root).unwrap_err().to_string();
        assert!(error.contains("its mode 777 lets others write"), "{error}");
    }
}
