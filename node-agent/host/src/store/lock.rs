//! Who uses a store. Each process holds a shared lock; who removes what others may need is alone.

use std::{fs::File, os::fd::AsFd, path::Path};

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, failed};

/// A process's lock on a store, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    users: File,
    /// Held by who tries to be alone: the kernel gives up a shared lock before it tries for the exclusive one, and two who tried at
    /// once could each take the other for gone.
    turn: File,
}

impl Lock {
    /// Takes a shared lock on the store in `root`.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(super) fn new(root: &Path) -> Result<Self, StoreError> {
        let open = |name: &str| {
            let path = root.join(name);
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))
        };
        let (users, turn) = (open("lock")?, open("turn")?);
        flock(users.as_fd(), FlockOperation::LockShared).map_err(|error| failed("lock", root)(error.into()))?;
        Ok(Self { users, turn })
    }

    /// Whether nobody else uses the store; then nobody can begin to until [`Lock::shared`].
    pub(super) fn is_ours_alone(&self) -> bool {
        if flock(self.turn.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
        let alone = flock(self.users.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok();
        if !alone {
            self.shared();
        }
        alone
    }

    /// Lets others in again.
    pub(super) fn shared(&self) {
        for (file, operation) in [(&self.users, FlockOperation::LockShared), (&self.turn, FlockOperation::Unlock)] {
            if let Err(error) = flock(file.as_fd(), operation) {
                tracing::warn!(%error, "the store's lock cannot be taken");
            }
        }
    }
}
