//! Load in a network namespace: requests by wrk, and connections that are opened all the time.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{netns::Netns, process};

/// wrk, running in a namespace until it is asked for what it saw.
pub struct Load(Option<Child>);

/// What wrk saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers.
    pub answers: u64,
    /// Answers that were errors.
    pub bad: u64,
    /// Connections that ended in the middle of a request or were refused, and requests without an answer in 10 s.
    pub lost: u64,
}

/// Between two connections that are opened.
const PAUSE: Duration = Duration::from_millis(10);

/// Longer than a connection on localhost ever takes.
const CONNECT: Duration = Duration::from_secs(10);

/// Somebody who opens connections in a namespace, one after the other, and counts those that are refused. wrk does not tell them
/// from others that fail.
pub struct Knocking {
    end: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Connections that were tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knocks {
    /// Those that were opened.
    pub opened: u64,
    /// Those that were refused, or not opened in time.
    pub refused: u64,
}

impl Knocking {
    /// Starts at `127.0.0.1:port` in `netns`.
    pub fn start(netns: &Netns, port: u16) -> Self {
        let (end, opened, refused) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (over, yes, no) = (Arc::clone(&end), Arc::clone(&opened), Arc::clone(&refused));
        let path = netns.path().to_owned();
        let knock = move || {
            crate::netns::enter(&path)?;
            while !over.load(Relaxed) {
                match TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT) {
                    Ok(_) => yes.fetch_add(1, Relaxed),
                    // Opened, and gone with who had it before this side looked.
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => yes.fetch_add(1, Relaxed),
                    Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::TimedOut) => {
                        no.fetch_add(1, Relaxed)
                    }
                    Err(error) => return Err(error),
                };
                thread::sleep(PAUSE);
            }
            Ok(())
        };
        Self { end, opened, refused, thread: Some(thread::spawn(knock)) }
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or connections fail in another way.
    pub fn end(mut self) -> Result<Knocks> {
        self.end.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        }
        Ok(Knocks { opened: self.opened.load(Relaxed), refused: self.refused.load(Relaxed) })
    }
}

impl Drop for Knocking {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl std::iter::Sum for Knocks {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self { opened: a.opened + b.opened, refused: a.refused + b.refused })
    }
}

impl Load {
    /// Starts to call `http://127.0.0.1:port/path` in `netns` with so many connections, a request after the other on each, for
    /// ten minutes at most.
    ///
    /// # Errors
    ///
    /// No wrk.
    pub fn start(netns: &Netns, port: u16, path: &str, connections: usize) -> Result<Self> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.path().display())).args(["wrk", "-t1", "-d600s", "--timeout", "10s"]);
        command.arg(format!("-c{connections}")).arg(format!("http://127.0.0.1:{port}{path}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(Some(command.spawn().context("nsenter and wrk")?)))
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// It saw nothing.
    pub fn end(mut self) -> Result<Seen> {
        let child = self.0.take().context("it has ended")?;
        process::signal(child.id(), Signal::INT)?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.contains(" requests in "), "wrk said {text:?}");
        Ok(Seen::read(&text))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl Seen {
    /// Reads what wrk prints: `1234 requests in 2.00s, 1MB read`, `Socket errors: connect 0, read 1, write 0, timeout 0`,
    /// `Non-2xx or 3xx responses: 5`. Lines of errors are there only if there are some.
    fn read(text: &str) -> Self {
        let before = |what: &str| text.split(what).next()?.split_whitespace().last()?.parse().ok();
        let after = |what: &str| {
            let number: String =
                text.split(what).nth(1)?.trim_start().chars().take_while(char::is_ascii_digit).collect();
            number.parse().ok()
        };
        let error = |what: &str| after(what).unwrap_or(0);
        Self {
            answers: before(" requests in ").unwrap_or(0),
            bad: error("Non-2xx or 3xx responses:"),
            lost: error("connect ") + error(", read ") + error("write ") + error("timeout "),
        }
    }
}

impl std::iter::Sum for Seen {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            answers: a.answers + b.answers,
            bad: a.bad + b.bad,
            lost: a.lost + b.lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "  2 threads\n  1234 requests in 2.00s, 1.00MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\nRequests/sec: 617\n";
        assert_eq!(Seen::read(text), Seen { answers: 1234, bad: 5, lost: 10 });
        let text = "  7 requests in 2.00s, 1.00MB read\nRequests/sec: 3\n";
        assert_eq!(Seen::read(text), Seen { answers: 7, ..Seen::default() });
    }
}
