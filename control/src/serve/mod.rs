//! The nodes' side: their streams and reports, by HTTPS; and, for the kubelet, how this replica is.
//!
//! A request is asked in this order: does this replica lead, are its lists complete, who is it.

mod crowd;
mod health;
pub(crate) mod identity;
mod report;
pub mod session;
mod stream;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use kube::Client;
use pillion_protocol::stream::{MAX_MESSAGE, REPORT, STREAM};
use serde_json::json;
use tokio::time::timeout;

pub use self::health::serve_health;
use self::{
    crowd::{Bounds, Crowd},
    identity::IdentityError,
};
use crate::control::{Control, Leading};

/// How long a caller may take to say who it is; then, what it wants.
const FIRST: Duration = Duration::from_secs(10);

/// Connections of callers that have not shown to be nodes: more than a large cluster has nodes, which all come at once when another replica leads.
const STRANGERS: usize = 6_144;

/// How long a connection may be without anybody on it who has shown to be a node.
const STRANGE: Duration = Duration::from_secs(30);

/// How long nothing may move on a connection: on one with a stream something does every 10 s.
const IDLE: Duration = Duration::from_secs(60);

/// The most bytes of a head, of a body that was not asked for yet, and the requests of one connection at once.
const HEAD_BYTES: u16 = 16 << 10;
const AHEAD: u32 = 32 << 10;
const REQUESTS: u32 = 4;

/// What a request is served with.
#[derive(Clone)]
struct Served {
    control: Arc<Control>,
    client: Client,
    crowd: Crowd,
}

/// Serves nodes at `listener` until `handle` is told to end.
///
/// # Errors
///
/// A listener that is none.
pub async fn serve(
    listener: TcpListener,
    control: Arc<Control>,
    client: Client,
    certificate: RustlsConfig,
    handle: Handle<std::net::SocketAddr>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let crowd = Crowd::new(Bounds { strangers: STRANGERS.min(descriptors() / 2), strange: STRANGE, idle: IDLE });
    let app = Router::new().route(STREAM, post(stream::open)).route(REPORT, post(report::take)).with_state(Served {
        control,
        client,
        crowd: crowd.clone(),
    });
    let acceptor = RustlsAcceptor::new(certificate).handshake_timeout(FIRST).acceptor(crowd);
    let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle).first_request_timeout(FIRST);
    server.http_builder().http1().header_read_timeout(FIRST).max_buf_size(HEAD_BYTES.into());
    let mut http2 = server.http_builder().http2();
    http2.max_header_list_size(HEAD_BYTES.into()).max_concurrent_streams(REQUESTS);
    http2.initial_stream_window_size(AHEAD).initial_connection_window_size(AHEAD);
    server.serve(app.into_make_service_with_connect_info::<SocketAddr>()).await
}

/// How many descriptors this process may have: as many as it is let.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let current =
        if rustix::process::setrlimit(rustix::process::Resource::Nofile, most).is_ok() { most } else { limit }.current;
    current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

/// Why a node is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("another replica serves nodes: {0}")]
    OtherLeads(String),
    #[error("no replica serves nodes yet")]
    NobodyLeads,
    #[error("the lists of components and pods are not complete yet")]
    Unlisted,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "none of the versions {theirs:?} of the stream is understood: there are {:?}",
        pillion_protocol::stream::VERSIONS
    )]
    Version { theirs: Vec<u32> },
    #[error("what the node says cannot be read: {0}")]
    Unread(String),
    #[error("this node has no stream: a report is taken from who has one")]
    NoSession,
}

/// The most that is taken of what a caller says who is refused, in bytes, and for how long.
const UNHEARD: usize = 64 << 10;
const UNHEARD_FOR: Duration = Duration::from_secs(1);

impl Refused {
    /// The same, once the caller has said what it wanted: who is still speaking may not hear the answer.
    async fn after(self, body: Body) -> Self {
        _ = timeout(UNHEARD_FOR, axum::body::to_bytes(body, UNHEARD)).await;
        self
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::OtherLeads(_) | Self::NobodyLeads | Self::Unlisted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Identity(IdentityError::Unasked(_) | IdentityError::Late) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Identity(IdentityError::Nobody(_)) => StatusCode::UNAUTHORIZED,
            Self::Identity(IdentityError::Other(_)) => StatusCode::FORBIDDEN,
            Self::Version { .. } | Self::Unread(_) => StatusCode::BAD_REQUEST,
            Self::NoSession => StatusCode::CONFLICT,
        };
        let leader = match &self {
            Self::OtherLeads(leader) => Some(leader.as_str()),
            _ => None,
        };
        let body = json!({"title": self.to_string(), "status": status.as_u16(), "leader": leader});
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

/// What a node says, once it is known to be one.
async fn read<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let unread = |error: String| Refused::Unread(error);
    let bytes = timeout(FIRST, axum::body::to_bytes(body, MAX_MESSAGE)).await;
    let bytes = bytes.map_err(|_| unread("it comes too slowly".into()))?.map_err(|error| unread(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| unread(error.to_string()))
}

/// Whether this replica serves nodes now.
fn leads(control: &Control) -> Result<(), Refused> {
    match &*control.leading.borrow() {
        Leading::Yes if control.is_listed() => Ok(()),
        Leading::Yes => Err(Refused::Unlisted),
        Leading::Other(leader) => Err(Refused::OtherLeads(leader.clone())),
        Leading::Nobody => Err(Refused::NobodyLeads),
    }
}
