//! Who is connected: strangers are so many at most and each for so long, so that they cost a bounded amount and keep nobody out.
//!
//! Whoever reaches a port may connect to it. Where too many have, the one that has been there for longest goes: who has something to say says it at
//! once. A connection that a node has shown itself on counts no more, but ends, too, when nothing moves on it.

use std::{
    collections::{BTreeMap, HashMap},
    future::{Future, Ready, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum_server::accept::Accept;
use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// How many connections of strangers there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// So many.
    pub(super) strangers: usize,
    /// How long one may be a stranger's.
    pub(super) strange: Duration,
    /// How long nothing may move on one.
    pub(super) idle: Duration,
}

/// The connections of a port.
#[derive(Clone)]
pub(super) struct Crowd(Arc<Shared>);

struct Shared {
    bounds: Bounds,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    next: u64,
    /// Those of strangers, the oldest first.
    strangers: BTreeMap<u64, Arc<Place>>,
    by_peer: HashMap<SocketAddr, Arc<Place>>,
}

/// A connection's place among them.
struct Place {
    number: u64,
    peer: SocketAddr,
    is_known: AtomicBool,
    has_to_go: AtomicBool,
    waker: AtomicWaker,
}

impl Crowd {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Shared { bounds, places: Mutex::default() }))
    }

    /// A node has shown itself on the connection from this address.
    pub(super) fn know(&self, peer: &SocketAddr) {
        let mut places = self.0.places();
        if let Some(place) = places.by_peer.get(peer).map(Arc::clone) {
            place.is_known.store(true, Relaxed);
            places.strangers.remove(&place.number);
        }
    }

    fn enter(&self, peer: SocketAddr) -> Arc<Place> {
        let mut places = self.0.places();
        let number = places.next;
        places.next = number.wrapping_add(1);
        let (is_known, has_to_go, waker) = (AtomicBool::default(), AtomicBool::default(), AtomicWaker::new());
        let place = Arc::new(Place { number, peer, is_known, has_to_go, waker });
        places.by_peer.insert(peer, Arc::clone(&place));
        places.strangers.insert(number, Arc::clone(&place));
        if places.strangers.len() > self.0.bounds.strangers
            && let Some((_, oldest)) = places.strangers.pop_first()
        {
            oldest.has_to_go.store(true, Relaxed);
            oldest.waker.wake();
        }
        place
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Accept<TcpStream, S> for Crowd {
    type Stream = Guarded;
    type Service = S;
    type Future = Ready<io::Result<(Guarded, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(stream.peer_addr().map(|peer| {
            let (place, bounds) = (self.enter(peer), self.0.bounds);
            let (opened, timer) = (Instant::now(), Box::pin(sleep(bounds.strange.min(bounds.idle))));
            (Guarded { stream, crowd: self.clone(), place, opened, moved: opened, timer }, service)
        }))
    }
}

/// A connection that ends when it has to.
pub(super) struct Guarded {
    stream: TcpStream,
    crowd: Crowd,
    place: Arc<Place>,
    opened: Instant,
    /// When something moved on it last.
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Guarded {
    /// An error when it has to end; else whoever polls it is woken then.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.place.waker.register(context.waker());
        if self.place.has_to_go.load(Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "others wait for its place"));
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let Bounds { strange, idle, .. } = self.crowd.0.bounds;
            let idle = self.moved + idle;
            let until = if self.place.is_known.load(Relaxed) { idle } else { idle.min(self.opened + strange) };
            if until <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(until);
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut places = self.crowd.0.places();
        places.strangers.remove(&self.place.number);
        // The next one from the same address may be there already.
        if places.by_peer.get(&self.place.peer).is_some_and(|place| Arc::ptr_eq(place, &self.place)) {
            places.by_peer.remove(&self.place.peer);
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, into);
        if into.filled().len() > before {
            this.moved = Instant::now();
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            this.moved = Instant::now();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        net::TcpListener,
        time::{timeout, timeout_at},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A caller's end of a connection, and ours.
    async fn connected(crowd: &Crowd, listener: &TcpListener) -> (TcpStream, Guarded) {
        let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (guarded, ()) = crowd.accept(stream, ()).await.unwrap();
        (caller, guarded)
    }

    async fn end(guarded: &mut Guarded) -> io::ErrorKind {
        timeout(LONG, guarded.read_u8()).await.unwrap().unwrap_err().kind()
    }

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_a_node_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let crowd = Crowd::new(Bounds { strangers: 2, strange: LONG, idle: LONG });
        let (caller, mut node) = connected(&crowd, &listener).await;
        crowd.know(&caller.local_addr().unwrap());
        let (_first, mut first) = connected(&crowd, &listener).await;
        let (_second, mut second) = connected(&crowd, &listener).await;
        let waits = tokio::spawn(async move { end(&mut first).await });
        let (_third, third) = connected(&crowd, &listener).await;
        assert_eq!(waits.await.unwrap(), io::ErrorKind::ConnectionAborted, "it is woken");
        // One that goes by itself leaves its place to the next.
        drop(third);
        let (_fourth, _at) = connected(&crowd, &listener).await;
        let soon = Instant::now() + Duration::from_millis(200);
        assert!(timeout_at(soon, second.read_u8()).await.is_err() && timeout_at(soon, node.read_u8()).await.is_err());
    }

    #[tokio::test]
    async fn a_stranger_stays_for_so_long_and_a_node_as_long_as_something_moves() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (strange, idle) = (Duration::from_millis(300), Duration::from_millis(4_000));
        let crowd = Crowd::new(Bounds { strangers: 9, strange, idle });
        let (caller, mut node) = connected(&crowd, &listener).await;
        let (_other, mut stranger) = connected(&crowd, &listener).await;
        crowd.know(&caller.local_addr().unwrap());
        let began = Instant::now();
        assert_eq!(end(&mut stranger).await, io::ErrorKind::TimedOut);
        assert!(began.elapsed() < idle, "it is no node's");
        assert_eq!(end(&mut node).await, io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= idle - strange, "{:?}", began.elapsed());
    }
}
