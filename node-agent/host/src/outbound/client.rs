//! One outgoing call: allowed, resolved, allowed again, connected, sent.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use pillion_protocol::hosts::{AllowedHost, Scheme};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::{
    Call, Caller, Sent,
    caller::to,
    policy::{Host, Target, allowing, may_connect},
};
use crate::{endpoint::body::poll_filled, idle::Idle};

/// Bounds where the guest sets none. Its own head timeout ends it before.
const CONNECT: Duration = Duration::from_secs(10);
const FIRST_BYTE: Duration = Duration::from_secs(60);
const BETWEEN_BYTES: Duration = Duration::from_secs(60);

/// Names that are resolved at once.
static LOOKUPS: Semaphore = Semaphore::const_new(32);

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
});

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The outside world's body, as the guest reads it.
struct AnswerBody {
    body: Incoming,
    idle: Idle,
    /// Who is told of what breaks it off, and where it comes from.
    caller: Option<Arc<Caller>>,
    from: String,
    _call: Call,
}

pub(super) async fn send(
    allowed: &[AllowedHost],
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
    call: Call,
    caller: Option<Arc<Caller>>,
) -> Result<(Response<WasiBody>, Sent), Error> {
    let options = options.unwrap_or_default();
    let (target, from) = (target(request.uri())?, to(request.uri()));
    let entries = allowing(allowed, &target);
    if entries.is_empty() {
        return Err(Error::HttpRequestDenied);
    }
    let connect = connect(&entries, &target);
    let connected = tokio::time::timeout(options.connect_timeout.unwrap_or(CONNECT), connect).await;
    let stream = connected.map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection): (SendRequest<WasiBody>, _) = http1::handshake(TokioIo::new(stream)).await?;
    // Driven by a task that ends with the answer's body, or with the guest.
    let connection = wasmtime_wasi::runtime::spawn(async move { connection.await.map_err(Error::from) });

    *request.uri_mut() = Uri::from(origin_form(request.uri().path_and_query())?);
    let answered = tokio::time::timeout(options.first_byte_timeout.unwrap_or(FIRST_BYTE), sender.send_request(request));
    let answer = answered.await.map_err(|_| Error::ConnectionReadTimeout)??;
    let timeout = options.between_bytes_timeout.unwrap_or(BETWEEN_BYTES);
    let idle = Idle::new(timeout);
    let answer = answer.map(|body| AnswerBody { body, idle, caller, from, _call: call }.boxed_unsync());
    Ok((answer, Box::new(connection)))
}

/// What stands in the request line: an empty path is `/` (RFC 9112 §3.2.1).
fn origin_form(path: Option<&PathAndQuery>) -> Result<PathAndQuery, Error> {
    match path.map_or("/", PathAndQuery::as_str) {
        // What this type shows of an empty path, and does not write.
        "/" => Ok(PathAndQuery::from_static("/")),
        query if query.starts_with('?') => format!("/{query}").parse().map_err(|_| Error::HttpRequestUriInvalid),
        _ => path.cloned().ok_or(Error::HttpRequestUriInvalid),
    }
}

fn target(uri: &Uri) -> Result<Target, Error> {
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(Error::HttpProtocolError),
    };
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    // User information would end up nowhere, and could hide the host from a reader.
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let host = Host::parse(authority.host()).ok_or(Error::HttpRequestUriInvalid)?;
    Ok(Target { scheme, host, port: authority.port_u16().unwrap_or(scheme.port()) })
}

async fn connect(entries: &[&AllowedHost], target: &Target) -> Result<Box<dyn Stream>, Error> {
    let addresses = resolve(&target.host, target.port).await?;
    if addresses.is_empty() {
        return Err(Error::DestinationNotFound);
    }
    let mut last = Error::DestinationIpProhibited;
    for address in addresses.into_iter().filter(|address| may_connect(entries, address.ip())) {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                _ = stream.set_nodelay(true);
                return secure(target, stream).await;
            }
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, Error> {
    match host {
        Host::Address(address) => Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => {
            let turn = LOOKUPS.acquire().await.map_err(|_| Error::DnsTimeout)?;
            let name = name.clone();
            // The resolver blocks a thread, also after its caller has given up: its turn ends when the resolver does.
            let found = tokio::task::spawn_blocking(move || {
                let found = (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
                drop(turn);
                found
            });
            let failed = |error: std::io::Error| Error::DnsError { rcode: Some(error.to_string()), info_code: None };
            found.await.map_err(|error| failed(error.into()))?.map_err(failed)
        }
    }
}

async fn secure(target: &Target, stream: TcpStream) -> Result<Box<dyn Stream>, Error> {
    if target.scheme == Scheme::Http {
        return Ok(Box::new(stream));
    }
    let name = match &target.host {
        Host::Address(IpAddr::V4(address)) => ServerName::from(*address),
        Host::Address(IpAddr::V6(address)) => ServerName::from(*address),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| Error::HttpRequestUriInvalid)?,
    };
    let stream = TlsConnector::from(Arc::clone(&TLS)).connect(name, stream).await.map_err(Error::Tls)?;
    Ok(Box::new(stream))
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Self { body, idle, caller, from, .. } = &mut *self;
        let polled = match poll_filled(body, cx) {
            Poll::Ready(frame) => {
                idle.reset();
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => idle.poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout))),
        };
        // Once: it may be asked again.
        if let Poll::Ready(Some(Err(error))) = &polled
            && let Some(caller) = caller.take()
        {
            caller.tell_cut(from, error);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
