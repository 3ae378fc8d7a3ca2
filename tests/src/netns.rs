//! Network namespaces, as runtimes make them for pods: kept alive by a file, entered by threads that then end.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Longer than an answer ever takes, a compilation of a small component included.
const ANSWER: Duration = Duration::from_secs(20);

/// Longer than a connection on localhost ever takes.
const CONNECT: Duration = Duration::from_secs(5);

/// A namespace; it is gone when this is dropped, unless something in it is held open.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// A namespace at `folder/name`, with its loopback device down.
    ///
    /// # Errors
    ///
    /// No root, or no `unshare`.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        File::create(&path)?;
        let mut command = Command::new("unshare");
        run(command.arg(format!("--net={}", path.display())).arg("true"))?;
        Ok(Self { path })
    }

    /// A namespace whose loopback device is up.
    ///
    /// # Errors
    ///
    /// See [`Netns::new`].
    pub fn with_loopback(folder: &Path, name: &str) -> Result<Self> {
        let netns = Self::new(folder, name)?;
        netns.set_loopback_up()?;
        Ok(netns)
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets its loopback device up.
    ///
    /// # Errors
    ///
    /// No `ip`.
    pub fn set_loopback_up(&self) -> Result<()> {
        let enter = format!("--net={}", self.path.display());
        run(Command::new("nsenter").args([&enter, "ip", "link", "set", "lo", "up"]))
    }

    /// Does something inside, on a thread of its own.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or what `work` says.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let inside = || {
            enter(&self.path)?;
            work()
        };
        let ended = thread::scope(|scope| scope.spawn(inside).join());
        Ok(ended.map_err(|_| anyhow::anyhow!("a thread inside the namespace panicked"))??)
    }

    /// Connects to `localhost:port` inside.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub fn connect(&self, address: IpAddr, port: u16) -> Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT))
    }

    /// Fetches `http://localhost:port/path` inside; gives the whole answer, head and body.
    ///
    /// # Errors
    ///
    /// Nobody listens, or the connection ends before an answer.
    pub fn get(&self, address: IpAddr, port: u16, path: &str) -> Result<String> {
        let mut stream = self.connect(address, port)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 "), "the connection ended: {answer:?}");
        Ok(answer)
    }

    /// Whether the component `hello` answers at a port inside.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn says_hello(&self, port: u16) -> Result<()> {
        let answer = self.get(Ipv4Addr::LOCALHOST.into(), port, "/")?;
        ensure!(answer.ends_with("hello\n"), "{answer}");
        Ok(())
    }

    /// Listens at a port inside, as a pod's own container does.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
    }

    /// Whether a port of localhost accepts connections inside: over IPv4, over IPv6.
    pub fn accepts(&self, port: u16) -> (bool, bool) {
        let at = |address| self.connect(address, port).is_ok();
        (at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        _ = run(Command::new("umount").arg("--lazy").arg(&self.path));
        _ = std::fs::remove_file(&self.path);
    }
}

/// Moves the calling thread into the namespace at `path`.
///
/// # Errors
///
/// No root, no namespace.
pub fn enter(path: &Path) -> io::Result<()> {
    Ok(move_into_link_name_space(File::open(path)?.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
