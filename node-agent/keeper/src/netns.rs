//! Network namespaces: who they are, and the only thread that enters them.
//!
//! `/proc/PID/ns/net` shows the namespace of a process's first thread: entering on another one hides the keeper from whoever
//! looks for a pod's processes. A thread that cannot come back ends the whole process: it must never serve another pod.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::mpsc::{Sender, channel},
    thread,
};

use pillion_sockets::sys;
use rustix::{
    fs::{OFlags, fstatfs},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde::{Deserialize, Serialize};

/// Who a namespace is. An inode is used again when its namespace is gone, a cookie is not while the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsId {
    /// The device of its file.
    pub device: u64,
    /// The inode of its file.
    pub inode: u64,
    /// Its cookie.
    pub cookie: u64,
}

/// A namespace that is held open.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// Who it is.
    pub id: NetnsId,
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The descriptor is none of a network namespace, or the namespace is gone.
    #[error("the descriptor that came with the request is no network namespace that can be entered: {0}")]
    Enter(#[source] io::Error),
    /// It is the node's own.
    #[error("the pod uses the node's network (hostNetwork): sidecars need a network namespace of the pod's own")]
    HostNetwork,
    /// Something else that the kernel says.
    #[error("the network namespace cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

/// Why the keeper does not start: without knowing it would bind sidecars of pods on the node's network at the node's own localhost.
#[derive(Debug, thiserror::Error)]
#[error(
    "the node's own network namespace, {}, cannot be told from pods': {error}. The keeper needs CAP_SYS_PTRACE, the node's /proc \
     (--proc) and no AppArmor profile that hides it; or name a file of that namespace by --node-netns",
    .path.display()
)]
pub struct UnknownNode {
    path: PathBuf,
    error: io::Error,
}

/// The type of the file system that namespaces' files are of: `NSFS_MAGIC` in linux/magic.h.
const NSFS: u64 = 0x6e73_6673;

type Work = Box<dyn FnOnce() + Send>;

/// The thread that enters namespaces.
#[derive(Clone, Debug)]
pub struct Entrance {
    jobs: Sender<(File, Work, Sender<io::Result<()>>)>,
    own: NetnsId,
    /// The node's, by device and inode.
    node: (u64, u64),
}

impl Entrance {
    /// Starts the thread. `node` leads to the node's own namespace, which is never used.
    ///
    /// # Errors
    ///
    /// A node's namespace that cannot be looked at, a thread that cannot be started, a kernel without network namespaces or without their cookies.
    pub fn start(node: &Path) -> anyhow::Result<Self> {
        let found = std::fs::metadata(node).and_then(|found| {
            open(node)?;
            Ok((found.dev(), found.ino()))
        });
        let node = found.map_err(|error| UnknownNode { path: node.to_owned(), error })?;
        let (jobs, inbox) = channel::<(File, Work, Sender<io::Result<()>>)>();
        let own = identify(&own_namespace()?, own_cookie()?)?;
        thread::Builder::new().name("netns".into()).spawn(move || {
            let Ok(home) = own_namespace() else { std::process::abort() };
            for (netns, work, done) in inbox {
                _ = done.send(within(&netns, &home, work));
            }
        })?;
        Ok(Self { jobs, own, node })
    }

    /// Does `work` in `netns` and gives what it gives.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn within<T: Send + 'static>(&self, netns: &Netns, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.enter(&netns.file, work)
    }

    fn enter<T: Send + 'static>(&self, netns: &File, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (results, result) = channel();
        let (done, ended) = channel();
        let gone = |_| io::Error::other("the thread that enters namespaces is gone");
        let work: Work = Box::new(move || _ = results.send(work()));
        self.jobs.send((netns.try_clone()?, work, done)).map_err(|_| gone(()))?;
        ended.recv().map_err(|_| gone(()))??;
        result.recv().map_err(|_| gone(()))
    }

    /// Opens the namespace at `path` and finds out who it is.
    ///
    /// # Errors
    ///
    /// See [`NetnsError`].
    pub fn open(&self, path: &Path) -> Result<Netns, NetnsError> {
        self.identify(open(path)?)
    }

    /// Whether what was found is the node's own namespace.
    pub fn is_node(&self, found: &Metadata) -> bool {
        self.node == (found.dev(), found.ino())
    }

    /// Finds out who the namespace behind a descriptor is.
    ///
    /// # Errors
    ///
    /// See [`NetnsError`].
    pub fn identify(&self, file: File) -> Result<Netns, NetnsError> {
        let cookie = self.enter(&file, own_cookie).map_err(NetnsError::Enter)?;
        let id = identify(&file, cookie?)?;
        if id == self.own || self.node == (id.device, id.inode) {
            return Err(NetnsError::HostNetwork);
        }
        Ok(Netns { file, id })
    }

    /// Whether the namespace's loopback device may have IPv6: then `::1` comes yet, if it is not there.
    pub fn has_ipv6(&self, netns: &Netns) -> bool {
        // What /proc/sys/net shows is the reading thread's namespace.
        let read = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        self.within(netns, read).flatten().is_ok_and(|text| text.trim() == "0")
    }
}

impl Netns {
    /// Whether `path` leads to this namespace.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| self.is(&found))
    }

    /// Whether `path` leads nowhere or to another namespace. That it cannot be looked at is no proof.
    pub fn is_gone_from(&self, path: &Path) -> bool {
        match std::fs::metadata(path) {
            Ok(found) => !self.is(&found),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn is(&self, found: &std::fs::Metadata) -> bool {
        (found.dev(), found.ino()) == (self.id.device, self.id.inode)
    }
}

/// Opens a namespace's file, and nothing else: a pipe would keep the caller waiting for somebody to write.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)?;
    if u64::try_from(fstatfs(&file)?.f_type) != Ok(NSFS) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not a file of a namespace", path.display()),
        ));
    }
    Ok(file)
}

fn own_namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// The cookie of the namespace that this thread is in.
fn own_cookie() -> io::Result<u64> {
    sys::netns_cookie(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn identify(file: &File, cookie: u64) -> io::Result<NetnsId> {
    let found = file.metadata()?;
    Ok(NetnsId { device: found.dev(), inode: found.ino(), cookie })
}

/// Enters, works, and comes back, whatever happens in between.
fn within(netns: &File, home: &File, work: Work) -> io::Result<()> {
    struct WayBack<'a>(&'a File);
    impl Drop for WayBack<'_> {
        fn drop(&mut self) {
            if let Err(error) = enter(self.0) {
                tracing::error!(%error, "the way back from a network namespace is closed: the keeper ends, to start anew");
                std::process::abort();
            }
        }
    }
    enter(netns)?;
    let _way_back = WayBack(home);
    work();
    Ok(())
}

fn enter(netns: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_not_a_namespace_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let entrance = Entrance::start(Path::new("/proc/self/ns/net")).unwrap();
        for path in [&pipe, Path::new("/dev/null")] {
            let error = entrance.open(path).unwrap_err();
            assert!(error.to_string().contains("is not a file of a namespace"), "{error}");
        }
        assert!(matches!(Entrance::start(&pipe), Err(error) if error.to_string().contains("--node-netns")));
    }
}
