//! One connection: HTTP/1.1 or HTTP/2 by prior knowledge, told apart by hyper, with every wait bounded.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpStream;

use super::{Endpoint, request, stall::StallGuard};

/// From the connection to its first whole head. hyper waits for the first bytes, which tell the version, without a limit.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// From an answer to the next head on the same connection.
const NEXT_HEAD: Duration = Duration::from_secs(60);

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

/// Serves a connection until either side ends it.
pub(super) async fn serve(endpoint: Arc<Endpoint>, stream: TcpStream) {
    _ = stream.set_nodelay(true);
    let builder = builder(endpoint.header_bytes());
    let begun = AtomicBool::new(false);
    let mut draining = endpoint.shared.draining.clone();
    let service = service_fn(|incoming: Request<Incoming>| {
        begun.store(true, Relaxed);
        let endpoint = Arc::clone(&endpoint);
        async move { Ok::<_, std::convert::Infallible>(request::serve(&endpoint, incoming).await) }
    });
    let io = StallGuard::new(TokioIo::new(stream), WRITE_STALL);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut first_head = pin!(tokio::time::sleep(FIRST_HEAD));
    let mut drain = pin!(draining.wait_for(|&draining| draining));
    let (mut waiting_for_head, mut serving) = (true, true);
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(binding = %endpoint.binding, error = error.to_string(), "a connection ended with an error");
                }
                return;
            }
            () = first_head.as_mut(), if waiting_for_head => {
                waiting_for_head = false;
                if !begun.load(Relaxed) {
                    return;
                }
            }
            _ = drain.as_mut(), if serving => {
                serving = false;
                if !begun.load(Relaxed) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
