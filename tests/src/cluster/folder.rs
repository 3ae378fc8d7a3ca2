//! A temporary folder that is removed also if its test is killed: by the next test that makes one.
//!
//! There may be many at a time. Whose test lives is told by a lock on a file in it.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::Result;
use tempfile::TempDir;

use super::machine;

/// How its name begins.
const PREFIX: &str = "pillion-api-";

/// The file in it that is locked while its test lives.
const OWNER: &str = "owner";

/// A folder with what runs in it. It is removed when this is dropped.
pub(super) struct Folder {
    folder: TempDir,
    _owner: File,
}

impl Folder {
    /// Makes one, and removes those of tests that were killed.
    pub(super) fn make() -> Result<Self> {
        sweep();
        let folder = TempDir::with_prefix(PREFIX)?;
        open(folder.path())?;
        // Locked before it has its name: nobody finds it unlocked.
        let unlocked = folder.path().join("new");
        let owner = File::create(&unlocked)?;
        owner.lock()?;
        fs::rename(unlocked, folder.path().join(OWNER))?;
        Ok(Self { folder, _owner: owner })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Lets other users look into a folder, as hosts that do not run as root. What is not for them has a mode of its own.
pub(super) fn open(folder: &Path) -> Result<()> {
    Ok(fs::set_permissions(folder, Permissions::from_mode(0o755))?)
}

fn sweep() {
    for folder in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        if !folder.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let owner = File::open(folder.path().join(OWNER));
        if owner.is_ok_and(|owner| owner.try_lock().is_ok()) {
            machine::end_processes(&folder.path());
            _ = fs::remove_dir_all(folder.path());
        }
    }
}
