//! The nodes' side: their streams and reports, by HTTPS; and, for the kubelet, how this replica is.
//!
//! A request is asked in this order: does this replica lead, are its lists complete, who is it.

mod identity;
mod report;
pub mod session;
mod stream;

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use kube::Client;
use pillion_protocol::stream::{MAX_MESSAGE, REPORT, STREAM};
use serde_json::json;
use tokio::time::timeout;

use self::identity::IdentityError;
use crate::control::{Control, Leading};

/// How long a caller may take to say who it is; then, what it wants.
const FIRST: Duration = Duration::from_secs(10);

/// What a request is served with.
#[derive(Clone)]
struct Served {
    control: Arc<Control>,
    client: Client,
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
    let app = Router::new()
        .route(STREAM, post(stream::open))
        .route(REPORT, post(report::take))
        .with_state(Served { control, client });
    axum_server::from_tcp_rustls(listener, certificate)?
        .handle(handle)
        .first_request_timeout(FIRST)
        .serve(app.into_make_service())
        .await
}

/// Serves the kubelet's probes.
///
/// # Errors
///
/// An address that cannot be listened on.
pub async fn serve_health(control: Arc<Control>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind(control.settings.health_listen).await?;
    let ready = |State(control): State<Arc<Control>>| async move {
        match control.is_listed() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the lists of components and pods are not complete yet\n"),
        }
    };
    let app = Router::new().route("/livez", get(async || "alive\n")).route("/readyz", get(ready)).with_state(control);
    axum::serve(listener, app).await
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
            Self::Identity(IdentityError::Unasked(_)) => StatusCode::SERVICE_UNAVAILABLE,
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
