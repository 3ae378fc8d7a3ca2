//! An open loop: requests are due at fixed times, whatever became of those before, and latency counts from when a request was
//! due. A server that stalls cannot hide it by slowing down who asks it.

use std::{
    io::Write,
    net::TcpStream,
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
    io::Errno,
};

use crate::client::{Answer, address, receive, request};

/// Connections at once. Each holds one request, so more than this many unanswered ones stop the bench.
const CONNECTIONS: usize = 1_000;

/// How long the last answers are waited for.
const GRACE: Duration = Duration::from_secs(10);

/// What is asked, how often, how long.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop<'a> {
    /// Where the server listens.
    pub port: u16,
    /// What is asked for.
    pub path: &'a str,
    /// Requests per second.
    pub rate: u32,
    /// From the first request to the last.
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of each request that was answered with 200: seconds from when it was due to the whole answer.
    pub latencies: Vec<f64>,
    /// Of each request: seconds from when it was due to when it was written. High values are this client's fault.
    pub delays: Vec<f64>,
    /// Requests that got anything else.
    pub failures: Vec<String>,
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    /// When the request that it waits for was due.
    due: Instant,
}

impl OpenLoop<'_> {
    /// Asks on a thread of its own, which gets as exact a timer as there is.
    ///
    /// # Errors
    ///
    /// More unanswered requests than connections are allowed.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let joined = thread::scope(|scope| scope.spawn(|| self.run_here()).join());
        joined.map_err(|_| anyhow::anyhow!("the client's thread has panicked"))?
    }

    fn run_here(&self) -> anyhow::Result<Outcome> {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("the timer cannot be made exact")?;
        let request = request(self.port, self.path);
        let total = (self.duration.as_secs_f64() * f64::from(self.rate)) as u32;
        let interval = Duration::from_secs(1) / self.rate.max(1);
        let start = Instant::now() + Duration::from_millis(5);
        let last = start + interval * total + GRACE;
        let (mut idle, mut waiting) = (Vec::new(), Vec::<Connection>::new());
        let mut outcome = Outcome::default();
        let mut sent = 0;
        while sent < total || !waiting.is_empty() {
            let now = Instant::now();
            let due = start + interval * sent;
            if sent < total && due <= now {
                sent += 1;
                ensure!(waiting.len() < CONNECTIONS, "{CONNECTIONS} requests at once are not answered");
                outcome.delays.push(now.duration_since(due).as_secs_f64());
                match self.send(&mut idle, &request, due) {
                    Ok(connection) => waiting.push(connection),
                    Err(error) => outcome.failures.push(format!("{error:#}")),
                }
                continue;
            }
            if now > last {
                outcome.failures.extend(waiting.iter().map(|_| "no answer".to_owned()));
                break;
            }
            wait(&waiting, if sent < total { due - now } else { last - now })?;
            outcome.receive(&mut waiting, &mut idle);
        }
        Ok(outcome)
    }

    fn send(&self, idle: &mut Vec<Connection>, request: &[u8], due: Instant) -> anyhow::Result<Connection> {
        let mut connection = match idle.pop() {
            Some(connection) => connection,
            None => Connection::open(self.port, due)?,
        };
        connection.due = due;
        connection.stream.write_all(request)?;
        Ok(connection)
    }
}

impl Connection {
    fn open(port: u16, due: Instant) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address(port), GRACE)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, read: Vec::new(), due })
    }

    /// The whole answer, if it is there.
    fn receive(&mut self) -> anyhow::Result<Option<Answer>> {
        match receive(&mut self.stream, &mut self.read) {
            Ok(true) => Answer::parse(&self.read),
            Ok(false) => anyhow::bail!("the connection was closed after {} bytes", self.read.len()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Outcome {
    fn receive(&mut self, waiting: &mut Vec<Connection>, idle: &mut Vec<Connection>) {
        let mut still = Vec::with_capacity(waiting.len());
        for mut connection in waiting.drain(..) {
            match connection.receive() {
                Ok(None) => still.push(connection),
                Ok(Some(answer)) if answer.status == 200 => {
                    self.latencies.push(connection.due.elapsed().as_secs_f64());
                    connection.read.clear();
                    idle.push(connection);
                }
                Ok(Some(answer)) => self.failures.push(answer.to_string()),
                Err(error) => self.failures.push(format!("{error:#}")),
            }
        }
        *waiting = still;
    }

    /// That every request was answered with 200.
    ///
    /// # Errors
    ///
    /// The first one that was not.
    pub fn check(&self) -> anyhow::Result<()> {
        let (failed, total) = (self.failures.len(), self.failures.len() + self.latencies.len());
        let first = self.failures.first().map_or("", String::as_str);
        ensure!(failed == 0, "{failed} of {total} requests failed; the first: {first}");
        ensure!(total > 0, "nothing was asked");
        Ok(())
    }
}

/// Until something has arrived, or for `time`.
fn wait(waiting: &[Connection], time: Duration) -> anyhow::Result<()> {
    let mut sockets: Vec<PollFd<'_>> =
        waiting.iter().map(|connection| PollFd::new(&connection.stream, PollFlags::IN)).collect();
    let time = Timespec::try_from(time).context("too long")?;
    match poll(&mut sockets, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener};

    use super::*;

    /// Answers each request after a pause of `first` for the first one and none for the others.
    fn server(first: Duration) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    if number == 0 {
                        thread::sleep(first);
                    }
                    while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n").unwrap();
                    }
                });
            }
        });
        port
    }

    #[test]
    fn requests_go_out_in_time_although_one_is_not_answered() {
        let port = server(Duration::from_millis(200));
        let open_loop = OpenLoop { port, path: "/", rate: 100, duration: Duration::from_millis(500) };
        let outcome = open_loop.run().unwrap();
        outcome.check().unwrap();
        assert_eq!(outcome.latencies.len(), 50);
        let slow = outcome.latencies.iter().filter(|latency| **latency > 0.15).count();
        assert_eq!(slow, 1, "{:?}", outcome.latencies);
    }

    #[test]
    fn a_server_that_is_not_there_is_a_failure() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let open_loop = OpenLoop { port, path: "/", rate: 100, duration: Duration::from_millis(50) };
        let error = open_loop.run().unwrap().check().unwrap_err().to_string();
        assert!(error.starts_with("5 of 5 requests failed"), "{error}");
    }
}
