//! What control has told, kept for the next start: what is no secret in the store, the rest in memory that outlives the process.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::statfs;
use serde::{Serialize, de::DeserializeOwned};

use super::told::Told;

/// In each of the folders.
const FILE: &str = "control.json";

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h: file systems in memory.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Where what control has told is kept.
#[derive(Debug)]
pub struct Kept {
    open: PathBuf,
    /// `None` where there is no memory for it: then control has to tell it anew.
    secret: Option<PathBuf>,
}

impl Kept {
    /// Keeps it in the folder `store`, and what has values of Secrets in the folder `secrets`, if that is in memory.
    pub fn new(store: &Path, secrets: &Path) -> Self {
        let secret = match is_in_memory(secrets) {
            Ok(true) => Some(secrets.join(FILE)),
            Ok(false) => {
                tracing::warn!(folder = %secrets.display(), "values of Secrets are not kept for the next start: the folder is no tmpfs");
                None
            }
            Err(error) => {
                tracing::warn!(folder = %secrets.display(), %error, "values of Secrets are not kept for the next start");
                None
            }
        };
        Self { open: store.join(FILE), secret }
    }

    /// What was known when this host ended, or nothing.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn read(&self) -> anyhow::Result<Told> {
        let told: Told = read(&self.open)?;
        let secret = self.secret.as_deref().map(read).transpose().unwrap_or_else(|error| {
            tracing::error!(
                error = format!("{error:#}"),
                "what control had told of Secrets cannot be read: it is asked for anew"
            );
            None
        });
        Ok(told.with(secret.unwrap_or_default()))
    }

    /// Keeps it.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn write(&self, told: &Told) -> anyhow::Result<()> {
        let (open, secret) = told.parts();
        let secret = self.secret.as_deref().map_or(Ok(()), |file| write(file, &secret));
        write(&self.open, &open).and(secret)
    }
}

fn is_in_memory(folder: &Path) -> io::Result<bool> {
    Ok(IN_MEMORY.contains(&statfs(folder)?.f_type))
}

fn read<T: DeserializeOwned + Default>(file: &Path) -> anyhow::Result<T> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
            // Its words could quote a value.
            tracing::error!(file = %file.display(), line = error.line(), column = error.column(), "what control had told cannot be read: it is asked for anew");
            T::default()
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

/// Whole, by rename, and for this user's eyes only. What an end in between leaves, the next time takes the place of.
fn write(file: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    let written = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        io::Result::Ok(())
    };
    written().and_then(|()| fs::rename(&new, file)).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{super::told::tests::told_a_secret, *};

    #[test]
    fn values_of_secrets_are_kept_in_memory_or_not_at_all() {
        let (disk, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let told = told_a_secret("hunter2");
        let kept = Kept::new(disk.path(), memory.path());
        kept.write(&told).unwrap();
        assert!(!fs::read_to_string(disk.path().join(FILE)).unwrap().contains("hunter2"));
        let secret = memory.path().join(FILE);
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&secret).unwrap().contains("hunter2"));
        assert_eq!(kept.read().unwrap(), told);
        fs::remove_file(&secret).unwrap();
        let after_a_reboot = kept.read().unwrap();
        assert_eq!(after_a_reboot.components().count(), 0);
        assert!(!after_a_reboot.complete, "there is more than is known");
    }

    #[test]
    fn a_folder_on_a_disk_is_none_for_secrets() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let kept = Kept::new(disk.path(), disk.path());
        assert!(kept.secret.is_none());
        kept.write(&told_a_secret("hunter2")).unwrap();
        assert!(!fs::read_to_string(disk.path().join(FILE)).unwrap().contains("hunter2"));
    }
}
