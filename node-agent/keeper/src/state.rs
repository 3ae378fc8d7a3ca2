//! The file that a restarted keeper finds its pods by. Written whole, renamed into place; what it says is believed only after a
//! look at the namespace itself.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use pillion_protocol::keeper::Add;
use serde::{Deserialize, Serialize};

use crate::netns::NetnsId;

/// The version of the file.
const VERSION: u32 = 1;

/// What is kept of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What was asked for.
    pub add: Add,
    /// The namespace.
    pub netns: NetnsId,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    /// Which boot it was written in: after another one nothing in it is there any more.
    boot: String,
    pods: Vec<Kept>,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    boot: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the state file {}: {error}", .path.display())]
pub struct StateError {
    path: PathBuf,
    error: io::Error,
}

impl StateFile {
    /// The file `pods.json` in `folder`, which is made if need be, for this user alone.
    ///
    /// # Errors
    ///
    /// A folder that cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let path = folder.join("pods.json");
        let made =
            if folder.exists() { Ok(()) } else { fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) };
        let boot = made.and_then(|()| fs::read_to_string("/proc/sys/kernel/random/boot_id"));
        match boot {
            Ok(boot) => Ok(Self { path, boot: boot.trim().to_owned() }),
            Err(error) => Err(StateError { path, error }),
        }
    }

    /// Reads what was kept in this boot; nothing if the file is missing. A file that cannot be understood is set aside and said
    /// so: pods are found again by the next ADD.
    ///
    /// # Errors
    ///
    /// A file that is there and cannot be read.
    pub fn read(&self) -> Result<Vec<Kept>, StateError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.error(error)),
        };
        let why = match serde_json::from_slice::<Written>(&text) {
            Ok(written) if written.version != VERSION => {
                format!("its version is {}, known is {VERSION}", written.version)
            }
            Ok(written) if written.boot != self.boot => return Ok(Vec::new()),
            Ok(written) => return Ok(written.pods),
            Err(error) => error.to_string(),
        };
        let aside = self.path.with_extension("broken");
        tracing::error!(path = %self.path.display(), aside = %aside.display(), why, "the state file is set aside");
        fs::rename(&self.path, aside).map_err(|error| self.error(error))?;
        Ok(Vec::new())
    }

    /// Writes all pods.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn write(&self, pods: Vec<Kept>) -> Result<(), StateError> {
        let written = Written { version: VERSION, boot: self.boot.clone(), pods };
        let write = || {
            let new = self.path.with_extension("new");
            // Not synced: what the machine's end would lose is of no use after it.
            fs::write(&new, serde_json::to_vec(&written)?)?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error| self.error(error))
    }

    fn error(&self, error: io::Error) -> StateError {
        StateError { path: self.path.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        let add = r#"{"pod":{"uid":"u","namespace":"n","name":"p"},"sandbox":"c","netns":"/x","sidecars":"a=8081"}"#;
        Kept { add: serde_json::from_str(add).unwrap(), netns: NetnsId { device: 4, inode: 5, cookie: 6 } }
    }

    #[test]
    fn what_was_written_is_read_in_the_same_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = StateFile::open(folder.path()).unwrap();
        assert_eq!(state.read().unwrap(), []);
        state.write(vec![kept()]).unwrap();
        assert_eq!(state.read().unwrap(), [kept()]);
        state.boot = "another".into();
        assert_eq!(state.read().unwrap(), []);
    }

    #[test]
    fn a_broken_file_is_set_aside_and_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFile::open(folder.path()).unwrap();
        for broken in ["", "{", r#"{"version":9,"boot":"","pods":[]}"#] {
            fs::write(folder.path().join("pods.json"), broken).unwrap();
            assert_eq!(state.read().unwrap(), []);
            assert_eq!(fs::read_to_string(folder.path().join("pods.broken")).unwrap(), broken);
        }
    }
}
