//! Network namespaces: who they are, and the only thread that enters them.
//!
//! `/proc/PID/ns/net` shows the namespace of a process's first thread: entering on another one hides the keeper from whoever
//! looks for a pod's processes. A thread that cannot come back ends the whole process: it must never serve another pod.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    sync::mpsc::{Sender, channel},
    thread,
};

use pillion_sockets::sys;
use rustix::{
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

type Work = Box<dyn FnOnce() + Send>;

/// The thread that enters namespaces.
#[derive(Clone, Debug)]
pub struct Entrance {
    jobs: Sender<(File, Work, Sender<io::Result<()>>)>,
    own: NetnsId,
    /// The node's, by device and inode, where it can be seen.
    node: Option<(u64, u64)>,
}

impl Entrance {
    /// Starts the thread. `proc` is the node's `/proc`.
    ///
    /// # Errors
    ///
    /// A thread that cannot be started, a kernel without network namespaces or without their cookies.
    pub fn start(proc: &Path) -> io::Result<Self> {
        let (jobs, inbox) = channel::<(File, Work, Sender<io::Result<()>>)>();
        let own = identify(&own_namespace()?, own_cookie()?)?;
        thread::Builder::new().name("netns".into()).spawn(move || {
            let Ok(home) = own_namespace() else { std::process::abort() };
            for (netns, work, done) in inbox {
                _ = done.send(within(&netns, &home, work));
            }
        })?;
        let node = std::fs::metadata(proc.join("1/ns/net")).ok().map(|node| (node.dev(), node.ino()));
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
        self.identify(File::open(path)?)
    }

    /// Finds out who the namespace behind a descriptor is.
    ///
    /// # Errors
    ///
    /// See [`NetnsError`].
    pub fn identify(&self, file: File) -> Result<Netns, NetnsError> {
        let cookie = self.enter(&file, own_cookie).map_err(NetnsError::Enter)?;
        let id = identify(&file, cookie?)?;
        if id == self.own || self.node == Some((id.device, id.inode)) {
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
