//! Files in the node's folders: read with a limit, replaced whole, never half written.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::conflist::{self, Found, Trouble};

/// No configuration is larger, in bytes.
const LIMIT: u64 = 1 << 20;

/// How the names of temporary files begin and end: no runtime reads them.
const TEMPORARY: (&str, &str) = (".pillion-", ".tmp");

/// What cannot be done to a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {error}{}", .path.display(), hint(.error))]
pub struct FolderError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; it must exist: mount the node's folder there",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; the node's folder must be mounted there, not read-only, and this process must be root"
        }
        _ => "",
    }
}

impl FolderError {
    pub(super) fn new(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self { doing, path: path.to_owned(), error: error.into() }
    }

    pub(super) fn is_missing(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
}

/// Keeps other installers out of a folder, until it is dropped: they would take each other's files for the CNI's.
///
/// # Errors
///
/// A folder that cannot be opened.
pub fn lock(folder: &Path) -> Result<File, FolderError> {
    let open = || -> io::Result<File> {
        let file = File::open(folder)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    open().map_err(|error| FolderError::new("open the folder", folder, error))
}

/// The names of all files in a folder, but not of folders.
///
/// # Errors
///
/// A folder that cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>, FolderError> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    };
    read().map_err(|error| FolderError::new("read the folder", folder, error))
}

/// Reads those of these files that a runtime reads.
pub fn configurations(folder: &Path, names: &[String]) -> Vec<Found> {
    names.iter().filter(|name| conflist::is_read(name)).map(|name| find(folder, name)).collect()
}

/// Reads a file.
#[must_use]
pub fn find(folder: &Path, name: &str) -> Found {
    let path = folder.join(name);
    let linked = path.is_symlink();
    let read = || -> io::Result<Result<String, Trouble>> {
        if !fs::metadata(&path)?.is_file() {
            return Ok(Err(Trouble::Broken("it is no regular file".into())));
        }
        let mut bytes = Vec::new();
        File::open(&path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Ok(Err(Trouble::Refused("it is larger than 1 MiB, which no CNI configuration is".into())));
        }
        Ok(String::from_utf8(bytes).map_err(|_| Trouble::Broken("it is not UTF-8".into())))
    };
    let text = read().unwrap_or_else(|error| {
        let gone = error.kind() == io::ErrorKind::NotFound;
        let why = format!("it cannot be read: {error}");
        Err(if gone { Trouble::Broken(why) } else { Trouble::Refused(why) })
    });
    Found { name: name.to_owned(), linked, text }
}

/// Removes a file; one that is gone is no error.
///
/// # Errors
///
/// What the file system says.
pub fn remove(path: &Path) -> Result<bool, FolderError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FolderError::new("remove", path, error)),
    }
}

/// Removes the temporary files of an installer that was killed.
///
/// # Errors
///
/// What the file system says.
pub fn sweep(folder: &Path) -> Result<(), FolderError> {
    let (begin, end) = TEMPORARY;
    for name in names(folder)?.iter().filter(|name| name.starts_with(begin) && name.ends_with(end)) {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// The mode of a file.
///
/// # Errors
///
/// What the file system says.
pub fn mode(path: &Path) -> Result<u32, FolderError> {
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o7777);
    mode.map_err(|error| FolderError::new("read", path, error))
}

/// A file that is complete on disk under a temporary name in its folder. It is removed again unless it is committed.
#[derive(Debug)]
pub struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Writes what will be `path`.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn write(path: PathBuf, bytes: &[u8], mode: u32) -> Result<Self, FolderError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!("{}{name}-{}{}", TEMPORARY.0, std::process::id(), TEMPORARY.1));
        let prepared = Self { temporary, path };
        let write = || {
            // Of an installer that was killed.
            _ = fs::remove_file(&prepared.temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&prepared.temporary)?;
            file.write_all(bytes)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        };
        write().map_err(|error| FolderError::new("write", &prepared.temporary, error))?;
        Ok(prepared)
    }

    /// Puts it in place.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn commit(self) -> Result<(), FolderError> {
        let rename = || {
            fs::rename(&self.temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        rename().map_err(|error| FolderError::new("replace", &self.path, error))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.temporary);
    }
}
