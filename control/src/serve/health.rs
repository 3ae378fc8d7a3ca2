//! How this replica is, for the kubelet. On a thread of its own, and with bounds of its own: anybody may reach this port, and a probe that is not
//! answered ends the process.

use std::{io, net::TcpListener, sync::Arc, thread, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::oneshot;

use super::crowd::{Bounds, Crowd};
use crate::control::Control;

/// Connections at once. The oldest makes room for a new one.
const CONNECTIONS: usize = 64;

/// How long a head may take, or the next one.
const HEAD: Duration = Duration::from_secs(5);

/// The most bytes of a head.
const HEAD_BYTES: usize = 8 << 10;

/// Serves the kubelet's probes, for as long as the process lives.
///
/// # Errors
///
/// An address that cannot be listened on, or a thread that cannot be started.
pub async fn serve_health(control: Arc<Control>) -> io::Result<()> {
    let listener = TcpListener::bind(control.settings.health_listen)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (end, ended) = oneshot::channel();
    thread::Builder::new()
        .name("health".into())
        .spawn(move || _ = end.send(runtime.block_on(serve(listener, control))))?;
    ended.await.unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))
}

async fn serve(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    let ready = |State(control): State<Arc<Control>>| async move {
        match control.is_listed() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the lists of components and pods are not complete yet\n"),
        }
    };
    let app = Router::new().route("/livez", get(async || "alive\n")).route("/readyz", get(ready)).with_state(control);
    let bounds = Bounds { strangers: CONNECTIONS, strange: HEAD * 2, idle: HEAD };
    let mut server =
        axum_server::from_tcp(listener)?.acceptor(Crowd::new(bounds)).first_request_timeout(HEAD).http1_only();
    server.http_builder().http1().header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    server.serve(app.into_make_service()).await
}
