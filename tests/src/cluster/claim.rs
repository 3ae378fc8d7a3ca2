//! The claim to the machine: there can be one cluster on it at a time.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{api::Kind, folder, machine};

/// Locked by whoever has the machine's one cluster, and names its folder.
const LOCK: &str = "/run/pillion-test-cluster.lock";

/// How the folder's name begins.
const FOLDER: &str = "pillion-cluster-";

/// A machine that is made ready for a cluster. When this is dropped everything is put back, and whatever runs in the folder ends.
pub(super) struct Claim {
    folder: PathBuf,
    _lock: File,
}

impl Claim {
    /// Waits until no other cluster runs. One whose test was killed is ended first.
    pub(super) fn make(kind: Kind) -> Result<Self> {
        let lock = File::options().create(true).truncate(false).read(true).write(true).open(LOCK);
        let mut lock = lock.with_context(|| format!("{LOCK}: a cluster needs root"))?;
        lock.lock()?;
        let mut before = String::new();
        lock.read_to_string(&mut before)?;
        if before.contains(FOLDER) {
            machine::end(Path::new(&before));
        }
        let made = TempDir::with_prefix(FOLDER)?.keep();
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(made.to_string_lossy().as_bytes())?;
        let claim = Self { folder: made, _lock: lock };
        folder::open(claim.folder())?;
        machine::prepare(claim.folder(), kind)?;
        Ok(claim)
    }

    /// The cluster's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        machine::end(&self.folder);
    }
}
