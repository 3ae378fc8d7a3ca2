//! Many requests at once, on one thread: held for as long as the crowd lives, or sent again whenever they end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::{ErrorKind, Write},
    net::TcpStream,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    fs::Timespec,
    io::Errno,
};

use crate::client::{Answer, address, receive, request};

/// How often the crowd looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Some of the same request.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where the server listens.
    pub port: u16,
    /// What is asked for.
    pub path: String,
    /// How many at once.
    pub count: usize,
}

/// How requests in the crowd ended: how often, by path and by what came.
pub type Tally = BTreeMap<String, usize>;

/// Requests that are under way until this is dropped.
pub struct Crowd {
    state: Arc<State>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Default)]
struct State {
    end: AtomicBool,
    /// Requests that were sent for the first time.
    sent: AtomicUsize,
    tally: Mutex<Tally>,
}

struct Member {
    port: u16,
    path: String,
    stream: Option<TcpStream>,
    read: Vec<u8>,
    sent: Instant,
}

impl Crowd {
    /// Sends all requests. With `again`, one that has ended is sent again, at the earliest so long after it was sent before.
    ///
    /// # Errors
    ///
    /// A connection that cannot be made.
    pub fn start(groups: &[Group], again: Option<Duration>) -> anyhow::Result<Self> {
        let state = Arc::new(State::default());
        let member = |group: &Group| {
            let Group { port, path, .. } = group.clone();
            Member { port, path, stream: None, read: Vec::new(), sent: Instant::now() }
        };
        let members: Vec<_> = groups.iter().flat_map(|group| (0..group.count).map(|_| member(group))).collect();
        let count = members.len();
        let shared = Arc::clone(&state);
        let thread =
            thread::Builder::new().name("crowd".into()).spawn(move || Gathering::new(members, again, shared)?.run())?;
        let mut crowd = Self { state, thread: Some(thread) };
        while crowd.state.sent.load(Relaxed) < count {
            if crowd.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                crowd.join()?;
                anyhow::bail!("the crowd has dispersed");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(crowd)
    }

    /// How requests have ended so far.
    pub fn tally(&self) -> Tally {
        self.state.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// That every request is still held.
    ///
    /// # Errors
    ///
    /// How the others ended.
    pub fn check_held(&self) -> anyhow::Result<()> {
        let tally = self.tally();
        ensure!(tally.is_empty(), "requests that should have been held have ended: {tally:?}");
        Ok(())
    }

    /// Closes every connection.
    ///
    /// # Errors
    ///
    /// What went wrong on the way.
    pub fn end(mut self) -> anyhow::Result<Tally> {
        self.join()?;
        Ok(self.tally())
    }

    fn join(&mut self) -> anyhow::Result<()> {
        self.state.end.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the crowd's thread has panicked"))?
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        _ = self.join();
    }
}

/// What the thread works on.
struct Gathering {
    members: Vec<Member>,
    again: Option<Duration>,
    state: Arc<State>,
    epoll: OwnedFd,
    /// Who is to be sent next, and when.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Gathering {
    fn new(members: Vec<Member>, again: Option<Duration>, state: Arc<State>) -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let now = Instant::now();
        let due = (0..members.len()).map(|index| Reverse((now, index))).collect();
        Ok(Self { members, again, state, epoll, due })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let mut first = self.members.len();
        while !self.state.end.load(Relaxed) {
            let now = Instant::now();
            let mut pause = LOOK;
            while let Some(Reverse((due, index))) = self.due.peek().copied() {
                if due > now {
                    pause = LOOK.min(due - now);
                    break;
                }
                self.due.pop();
                self.send(index)?;
                if first > 0 {
                    first -= 1;
                    self.state.sent.fetch_add(1, Relaxed);
                }
            }
            let time = Timespec::try_from(pause).context("too long")?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&time)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.receive(usize::try_from(event.data.u64())?);
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(member) = self.members.get_mut(index) else { return Ok(()) };
        member.sent = Instant::now();
        member.read.clear();
        let request = request(member.port, &member.path);
        // A connection that was kept may have been closed in the meantime.
        if member.stream.as_mut().is_some_and(|stream| stream.write_all(&request).is_ok()) {
            return Ok(());
        }
        let mut stream = TcpStream::connect_timeout(&address(member.port), CONNECT)
            .with_context(|| format!("a connection to port {} for {}", member.port, member.path))?;
        stream.set_nodelay(true)?;
        stream.write_all(&request)?;
        stream.set_nonblocking(true)?;
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), EventFlags::IN)?;
        member.stream = Some(stream);
        Ok(())
    }

    fn receive(&mut self, index: usize) {
        let Some(member) = self.members.get_mut(index) else { return };
        let Some(stream) = &mut member.stream else { return };
        let received = receive(stream, &mut member.read);
        let ended = match &received {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // An idle connection that the server closes: the next request opens another.
            Ok(false) if member.read.is_empty() && self.due.iter().any(|Reverse((_, due))| *due == index) => None,
            Ok(false) => Some("connection closed".to_owned()),
            Err(error) => Some(error.kind().to_string()),
            Ok(true) => match Answer::parse(&member.read) {
                Ok(None) => return,
                Ok(Some(answer)) => Some(answer.to_string()),
                Err(error) => Some(error.to_string()),
            },
        };
        if !matches!(received, Ok(true)) {
            member.stream = None;
        }
        let Some(how) = ended else { return };
        let mut tally = self.state.tally.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.entry(format!("{}: {how}", member.path)).or_default() += 1;
        drop(tally);
        if let Some(again) = self.again {
            self.due.push(Reverse((member.sent + again, index)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener};

    use super::*;

    fn server(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) && stream.write_all(answer).is_ok() {
                    }
                });
            }
        });
        port
    }

    fn group(port: u16) -> [Group; 1] {
        [Group { port, path: "/trap".into(), count: 20 }]
    }

    #[test]
    fn requests_that_get_no_answer_are_held() {
        let crowd = Crowd::start(&group(server(b"")), None).unwrap();
        thread::sleep(Duration::from_millis(100));
        crowd.check_held().unwrap();
        assert_eq!(crowd.end().unwrap(), Tally::new());
    }

    #[test]
    fn requests_that_end_are_sent_again_but_not_too_often() {
        let answer = b"HTTP/1.1 502 Bad Gateway\r\npillion-error: trap\r\ncontent-length: 2\r\n\r\n{}";
        let crowd = Crowd::start(&group(server(answer)), Some(Duration::from_millis(50))).unwrap();
        thread::sleep(Duration::from_millis(275));
        assert!(crowd.check_held().is_err());
        let tally = crowd.end().unwrap();
        let ended = tally.get("/trap: status 502 (trap)").copied().unwrap_or_default();
        assert!((60..=120).contains(&ended) && tally.len() == 1, "{tally:?}");
    }
}
