//! Native code on disk: written by this node's compiler, checked before it is mapped.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use pillion_protocol::digest::Digest;
use serde::{Deserialize, Serialize};

use super::{StoreError, copy_hashing, failed, quota::used};
use crate::{compiler::facts::Facts, engine::settings::World};

/// Native code of one kind.
#[derive(Debug)]
pub struct Native {
    dir: PathBuf,
}

/// What is known of one component's native code.
#[derive(Debug)]
pub struct NativeCode {
    /// The engine it is for.
    pub world: World,
    /// The least memory of one instance, in bytes.
    pub memory_minimum: u64,
    /// The native code's size in bytes.
    pub size: u64,
    digest: Digest,
    path: PathBuf,
    /// The file whose bytes were last checked against `digest`.
    checked: Mutex<Option<Identity>>,
}

/// Native code that was checked and can be mapped.
#[derive(Debug)]
pub struct OpenNative(File);

/// Why native code cannot be used. The component is compiled again.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The bytes are not those that the compiler wrote.
    #[error("{path}: native code has the digest {found}, its compiler wrote {expected}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The digest of its bytes.
        found: Digest,
        /// The digest it should have.
        expected: Digest,
    },
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file with a component's facts, which is written last: what has one is whole.
#[derive(Serialize, Deserialize)]
struct Manifest {
    native: Digest,
    size: u64,
    facts: Facts,
}

/// A file whose content cannot have changed as long as this is the same: a write changes the change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self { device: m.dev(), inode: m.ino(), size: m.size(), changed: (m.ctime(), m.ctime_nsec()) })
    }
}

impl Native {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The native code of the component with this digest, if it was compiled before. A manifest that cannot be read is
    /// removed: the component is compiled again.
    pub fn find(&self, component: Digest) -> Option<NativeCode> {
        let path = self.manifest(component);
        let text = fs::read(&path).ok()?;
        match serde_json::from_slice(&text) {
            Ok(manifest) => {
                let code = self.code(manifest);
                used(&path);
                used(&code.path);
                // It may have left to make room.
                code.path.exists().then_some(code)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a manifest is broken: the component is compiled again");
                _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Takes in what the compiler wrote to `file` for the component with this digest.
    ///
    /// # Errors
    ///
    /// A full disk. What was there before stays.
    pub fn add(&self, component: Digest, facts: Facts, file: tempfile::NamedTempFile) -> Result<(), StoreError> {
        let path = file.path().to_owned();
        let (native, size) = digest_of(file.reopen().map_err(failed("read", &path))?).map_err(failed("read", &path))?;
        let manifest = Manifest { native, size, facts };
        let code = self.code_path(native);
        let mut text = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(&self.dir))
            .map_err(failed("create a file", &self.dir))?;
        serde_json::to_writer(&mut text, &manifest).map_err(|e| failed("write the manifest", &code)(e.into()))?;
        text.flush().map_err(failed("write the manifest", &code))?;
        file.persist(&code).map_err(|e| failed("rename into the store", &code)(e.error))?;
        let manifest_path = self.manifest(component);
        text.persist(&manifest_path).map_err(|e| failed("rename into the store", &manifest_path)(e.error))?;
        Ok(())
    }

    /// Forgets the native code of the component with this digest. Where it is mapped it stays until it is dropped.
    pub fn remove(&self, component: Digest, code: &NativeCode) {
        _ = fs::remove_file(self.manifest(component));
        _ = fs::remove_file(&code.path);
    }

    fn code(&self, manifest: Manifest) -> NativeCode {
        let Manifest { native, size, facts } = manifest;
        // The names of imports and exports are for people who inspect: ten thousand components have too many to keep.
        let Facts { world, memory_minimum, .. } = facts;
        NativeCode {
            world,
            memory_minimum,
            size,
            digest: native,
            path: self.code_path(native),
            checked: Mutex::new(None),
        }
    }

    fn manifest(&self, component: Digest) -> PathBuf {
        self.dir.join(format!("{}.json", component.to_hex()))
    }

    fn code_path(&self, native: Digest) -> PathBuf {
        self.dir.join(format!("{}.code", native.to_hex()))
    }
}

impl NativeCode {
    /// The digest of the native code itself.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Opens it for mapping. Its bytes are read and hashed only if this very file was not checked before.
    ///
    /// # Errors
    ///
    /// See [`NativeError`].
    pub fn open(&self) -> Result<OpenNative, NativeError> {
        let path: &Path = &self.path;
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(failed("open native code", path))?;
        let identity = Identity::of(&file).map_err(failed("read", path))?;
        let mut checked = self.checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *checked != Some(identity) {
            let again = file.try_clone().map_err(failed("read", path))?;
            let (found, _) = digest_of(again).map_err(failed("read native code", path))?;
            if found != self.digest {
                return Err(NativeError::Corrupt { path: self.path.clone(), found, expected: self.digest });
            }
            *checked = Some(identity);
        }
        drop(checked);
        Ok(OpenNative(file))
    }
}

impl OpenNative {
    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

fn digest_of(file: File) -> io::Result<(Digest, u64)> {
    copy_hashing(file, &mut io::sink())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn facts() -> Facts {
        Facts { world: World::P2, imports: Vec::new(), exports: Vec::new(), memory_minimum: 0 }
    }

    fn native_with(bytes: &[u8]) -> (tempfile::TempDir, Native, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let native = store.native("p2-test").unwrap();
        let component = Digest::from_sha256([7; 32]);
        let mut file = store.new_file().unwrap();
        file.write_all(bytes).unwrap();
        native.add(component, facts(), file).unwrap();
        (dir, native, component)
    }

    #[test]
    fn native_code_is_found_again() {
        let (_dir, native, component) = native_with(b"code");
        let code = native.find(component).unwrap();
        assert_eq!((code.size, code.world, code.memory_minimum), (4, World::P2, 0));
        code.open().unwrap();
        assert!(native.find(Digest::from_sha256([8; 32])).is_none());
    }

    #[test]
    fn changed_bytes_are_never_handed_out() {
        let (_dir, native, component) = native_with(b"code");
        let code = native.find(component).unwrap();
        code.open().unwrap();
        fs::write(&code.path, b"evil").unwrap();
        assert!(matches!(code.open(), Err(NativeError::Corrupt { .. })), "after a check of what was there before");
        assert!(matches!(native.find(component).unwrap().open(), Err(NativeError::Corrupt { .. })));
    }

    #[test]
    fn a_broken_manifest_is_as_good_as_none() {
        let (_dir, native, component) = native_with(b"code");
        fs::write(native.manifest(component), b"{").unwrap();
        assert!(native.find(component).is_none());
        assert!(!native.manifest(component).exists());
    }
}
