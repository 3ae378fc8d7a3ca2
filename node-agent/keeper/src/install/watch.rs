//! Waits until something changes in a folder, a signal comes, or it is time to compare again anyway.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level::pipe,
};

use super::folder::FolderError;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something changed in a folder.
    Changed,
    /// The time is over.
    Time,
    /// SIGTERM or SIGINT.
    Terminate,
}

/// The watch.
#[derive(Debug)]
pub struct Watch {
    /// `None` where the kernel has no room for it: then the time alone wakes.
    changes: Option<OwnedFd>,
    signals: UnixStream,
}

impl Watch {
    /// Takes over SIGTERM and SIGINT, and watches nothing yet.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let (signals, raised) = UnixStream::pair()?;
        pipe::register(SIGINT, raised.try_clone()?)?;
        pipe::register(SIGTERM, raised)?;
        let changes = match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, "inotify cannot be used, so changes are seen at the next look only: is fs.inotify.max_user_instances too low?");
                None
            }
        };
        Ok(Self { changes, signals })
    }

    /// Watches a folder. To be called again before every look at it: a folder that was replaced is another one.
    ///
    /// # Errors
    ///
    /// A folder that cannot be watched.
    pub fn arm(&self, folder: &Path) -> Result<(), FolderError> {
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ONLYDIR;
        let Some(changes) = &self.changes else { return Ok(()) };
        match inotify::add_watch(changes, folder, events) {
            Err(Errno::NOSPC) => {
                let folder = folder.display();
                tracing::warn!(%folder, "a folder cannot be watched, so changes are seen at the next look only: is fs.inotify.max_user_watches too low?");
                Ok(())
            }
            added => added.map(drop).map_err(|error| FolderError::new("watch the folder", folder, error)),
        }
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn wait(&self, time: Duration) -> io::Result<Woken> {
        let mut both = vec![PollFd::new(&self.signals, PollFlags::IN)];
        both.extend(self.changes.as_ref().map(|changes| PollFd::new(changes, PollFlags::IN)));
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        match poll(&mut both, Some(&time)) {
            Ok(0) => return Ok(Woken::Time),
            // A signal: it is in the pipe by now.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if both.first().is_some_and(|signals| !signals.revents().is_empty()) {
            return Ok(Woken::Terminate);
        }
        self.drain()?;
        Ok(Woken::Changed)
    }

    /// Forgets what changed so far: the folders are read after it.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn drain(&self) -> io::Result<()> {
        let Some(changes) = &self.changes else { return Ok(()) };
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(changes, &mut events) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
