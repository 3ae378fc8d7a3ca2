//! Who uses a store. Each process holds a shared lock; who removes what others may need is alone.

use std::{fs::File, os::fd::AsFd, path::Path};

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, failed};

/// A process's lock on a store, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes a shared lock.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(super) fn new(path: &Path) -> Result<Self, StoreError> {
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed("open", path))?;
        flock(file.as_fd(), FlockOperation::LockShared).map_err(|error| failed("lock", path)(error.into()))?;
        Ok(Self(file))
    }

    /// Whether nobody else uses the store; then nobody can begin to until [`Lock::shared`].
    pub(super) fn is_ours_alone(&self) -> bool {
        let alone = flock(self.0.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok();
        if !alone {
            // The kernel gives up the old lock before it tries for the new one.
            self.shared();
        }
        alone
    }

    /// Lets others in again.
    pub(super) fn shared(&self) {
        if let Err(error) = flock(self.0.as_fd(), FlockOperation::LockShared) {
            tracing::warn!(%error, "the store's lock cannot be taken");
        }
    }
}
