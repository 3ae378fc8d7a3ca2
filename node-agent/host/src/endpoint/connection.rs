//! One connection: HTTP/1.1 or HTTP/2 by prior knowledge, told apart by hyper, with every wait bounded.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderValue, Version, header};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{net::TcpStream, time::Instant};

use super::{Endpoint, flushes::Flushes, request, stall::StallGuard};
use crate::{log::tell, sys};

/// From the connection to its first whole head. hyper waits for the first bytes, which tell the version, without a limit.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// From an answer to the next head on the same connection.
const NEXT_HEAD: Duration = Duration::from_secs(60);

/// How long a connection that was in use just now may take to ask once more when it is to end: its next answer says so. To close it
/// at once would lose a request that is on its way.
const LAST_HEAD: Duration = Duration::from_millis(500);

/// How long a caller may take nothing of what is written to it.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// HTTP/2: how often a silent connection is asked whether it lives, and for how long it may not answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// HTTP/2 streams of one connection at once.
const STREAMS: u32 = 200;

/// HTTP/2: bytes that a stream, and a connection, may send before they are read; and bytes of a body that wait to be written.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 64 << 10;

/// HTTP/2: streams that the caller reset before they were accepted, and that we reset for errors, before the connection is
/// closed (CVE-2023-44487).
const RESETS: usize = 100;

fn builder(header_bytes: u64) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(NEXT_HEAD)
        .max_buf_size(usize::try_from(header_bytes).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// What a connection does, for deciding whether it is of use to anybody.
struct Activity {
    opened: Instant,
    /// Requests that have no answer's head yet.
    waiting: AtomicUsize,
    /// When the last request came or got its head, in milliseconds after `opened`, and one; 0 before the first.
    last: AtomicU64,
    /// It is to end: the next answer is its last.
    ending: AtomicBool,
    /// It is HTTP/2, whose own farewell lets streams that are on their way begin.
    multiplexed: AtomicBool,
}

impl Activity {
    fn note(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last.store(millis + 1, Relaxed);
    }

    fn begun(&self) -> bool {
        self.last.load(Relaxed) > 0
    }

    /// When the connection will have been silent for too long, if nothing happens.
    fn silent_at(&self) -> Instant {
        let ending = self.ending.load(Relaxed);
        if ending && self.multiplexed.load(Relaxed) {
            return self.opened;
        }
        let next_head = if ending { LAST_HEAD } else { NEXT_HEAD };
        match self.last.load(Relaxed).checked_sub(1) {
            None => self.opened + if ending { LAST_HEAD } else { FIRST_HEAD },
            Some(_) if self.waiting.load(Relaxed) > 0 => Instant::now() + next_head,
            Some(last) => self.opened + Duration::from_millis(last) + next_head,
        }
    }
}

/// A request that has no answer's head yet.
struct Waiting(Arc<Activity>);

impl Waiting {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.waiting.fetch_add(1, Relaxed);
        activity.note();
        Self(Arc::clone(activity))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.note();
    }
}

/// Who asks. hyper notices a caller that goes away only while it reads: not behind a body that the guest does not take, nor behind
/// the next request of a pipeline.
#[derive(Clone)]
pub(super) struct Caller {
    socket: RawFd,
    address: SocketAddr,
    flushes: Arc<Flushes>,
}

impl Caller {
    /// Whether the caller has closed its side. To be asked only while its connection lives.
    pub(super) fn is_gone(&self) -> bool {
        sys::is_closed_by_peer(self.socket)
    }

    /// Where it calls from.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is written to it.
    pub(super) fn flushes(&self) -> &Arc<Flushes> {
        &self.flushes
    }

    /// Whether its connection ends by a reset, whoever ends it: where only the connection's end says that an answer is whole. To be
    /// called only while it lives.
    pub(super) fn reset_on_close(&self, reset: bool) {
        sys::reset_on_close(self.socket, reset);
    }
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(endpoint: Arc<Endpoint>, stream: TcpStream, address: SocketAddr) {
    _ = stream.set_nodelay(true);
    let flushes = Arc::new(Flushes::default());
    let caller = Caller { socket: stream.as_raw_fd(), address, flushes: Arc::clone(&flushes) };
    let builder = builder(endpoint.header_bytes());
    let (waiting, last) = (AtomicUsize::new(0), AtomicU64::new(0));
    let (ending, multiplexed) = (AtomicBool::new(false), AtomicBool::new(false));
    let activity = Arc::new(Activity { opened: Instant::now(), waiting, last, ending, multiplexed });
    let mut draining = endpoint.shared.draining.clone();
    let service = service_fn(|incoming: Request<Incoming>| {
        let (endpoint, activity, caller) = (Arc::clone(&endpoint), Arc::clone(&activity), caller.clone());
        let waiting = Waiting::new(&activity);
        let one_by_one = incoming.version() < Version::HTTP_2;
        activity.multiplexed.store(!one_by_one, Relaxed);
        async move {
            // An error ends the connection, with all that is pipelined.
            let mut answer = request::serve(&endpoint, incoming, caller).await?;
            drop(waiting);
            if one_by_one && activity.ending.load(Relaxed) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // Answers that are ready together leave together: a write that finds its caller awake costs half.
            endpoint.shared.scheduler.after_others().await;
            Ok::<_, request::CallerGone>(answer)
        }
    });
    let io = StallGuard::new(TokioIo::new(stream), WRITE_STALL, flushes);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut silence = pin!(tokio::time::sleep_until(activity.silent_at()));
    let mut drain = pin!(async {
        tokio::select! {
            _ = draining.wait_for(|&draining| draining) => {}
            () = endpoint.closing.wait() => {}
        }
    });
    let mut serving = true;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    let error = error.to_string();
                    tell!(DEBUG, &endpoint.origin, error, "a connection ended with an error");
                }
                return;
            }
            () = silence.as_mut(), if serving => {}
            () = drain.as_mut(), if serving && !activity.ending.load(Relaxed) => activity.ending.store(true, Relaxed),
        }
        let silent_at = activity.silent_at();
        if silent_at > Instant::now() {
            silence.as_mut().reset(silent_at);
            continue;
        }
        // It was silent for too long: answers that are on their way are finished, and nothing more begins.
        if !activity.begun() {
            return;
        }
        serving = false;
        connection.as_mut().graceful_shutdown();
    }
}
