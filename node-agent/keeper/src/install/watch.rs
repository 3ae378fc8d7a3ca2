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
    changes: OwnedFd,
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
        Ok(Self { changes: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?, signals })
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
        let added = inotify::add_watch(&self.changes, folder, events);
        added.map(|_| ()).map_err(|error| FolderError::new("watch the folder", folder, error))
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn wait(&self, time: Duration) -> io::Result<Woken> {
        let mut both = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.changes, PollFlags::IN)];
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        match poll(&mut both, Some(&time)) {
            Ok(0) => return Ok(Woken::Time),
            // A signal: it is in the pipe by now.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [signals, _] = both;
        if !signals.revents().is_empty() {
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
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.changes, &mut events) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
