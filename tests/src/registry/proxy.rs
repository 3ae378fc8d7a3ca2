//! A proxy in front of a registry that makes faults.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::{Result, ensure};
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming},
    client,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    Registry,
    fault::{Content, Fault, broken, length},
    remote::Remote,
};
use crate::{
    client::{Body, streamed},
    locked,
    server::Server,
};

/// A request that came to a proxy.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The path, without a query.
    pub path: String,
    /// The query, if there is one.
    pub query: Option<String>,
    /// The headers.
    pub headers: HeaderMap,
    /// The number of its connection, from 0.
    pub connection: usize,
    /// When its head had come.
    pub at: Instant,
}

impl Seen {
    /// Whether it had an `Authorization` header.
    pub fn authorized(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }

    /// Whether it gets a blob.
    pub fn gets_blob(&self) -> bool {
        self.method == Method::GET && self.path.contains("/blobs/")
    }

    /// Whether it gets a manifest.
    pub fn gets_manifest(&self) -> bool {
        self.method == Method::GET && self.path.contains("/manifests/")
    }

    /// The `Range` header, if there is one.
    pub fn range(&self) -> Option<&str> {
        self.headers.get(header::RANGE)?.to_str().ok()
    }
}

/// A proxy on 127.0.0.1 that speaks plain HTTP/1.1. It passes on everything as it is, `Host` too, so that the registry's locations
/// lead back to it. It has a thread of its own, and ends when this is dropped, with all its connections.
///
/// Where the registry does not answer, it closes the connection.
pub struct FaultProxy {
    remote: Remote,
    state: Arc<State>,
    _server: Server,
}

struct State {
    registry: u16,
    seen: Mutex<Vec<Seen>>,
    rules: Mutex<Vec<Rule>>,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    sent: AtomicU64,
}

struct Rule {
    when: Box<dyn Fn(&Seen) -> bool + Send + Sync>,
    fault: Fault,
    left: Option<usize>,
}

impl FaultProxy {
    /// Starts one in front of a registry that speaks plain HTTP.
    ///
    /// # Errors
    ///
    /// A registry that speaks HTTPS; no free port.
    pub fn start(registry: &Registry) -> Result<Self> {
        ensure!(registry.remote.tls.is_none(), "the proxy speaks plain HTTP, this registry HTTPS");
        let state = Arc::new(State {
            registry: registry.port(),
            seen: Mutex::default(),
            rules: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
        });
        let answering = Arc::clone(&state);
        let server = Server::start(move |connection, request| Arc::clone(&answering).answer(connection, request))?;
        let remote = Remote { port: server.port(), ..registry.remote.clone() };
        Ok(Self { remote, state, _server: server })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.remote.port
    }

    /// Its name in references: `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port())
    }

    /// Its name in references without a name to be resolved: `127.0.0.1:PORT`.
    pub fn numeric_host(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// From now on, makes a fault of each request that fits. The first fault that was added and fits is made, no other.
    pub fn fault(&self, when: impl Fn(&Seen) -> bool + Send + Sync + 'static, fault: Fault) {
        locked(&self.state.rules).push(Rule { when: Box::new(when), fault, left: None });
    }

    /// The same for so many requests; then they pass, or the next fault that fits is made.
    pub fn fault_times(&self, times: usize, when: impl Fn(&Seen) -> bool + Send + Sync + 'static, fault: Fault) {
        locked(&self.state.rules).push(Rule { when: Box::new(when), fault, left: Some(times) });
    }

    /// From now on, makes no faults. Those begun go on.
    pub fn clear(&self) {
        locked(&self.state.rules).clear();
    }

    /// What was asked so far, in the order in which the heads came.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state.seen).clone()
    }

    /// The most requests that were in flight at once: from the head until the last byte of the answer is about to be written.
    /// It may be less than the caller counts by those that end at that moment, never more, where answers have a length.
    pub fn requests_in_flight_max(&self) -> usize {
        self.state.in_flight_max.load(Relaxed)
    }

    /// Bytes of answers' bodies that connections took so far; they buffer some hundred KiB.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Relaxed)
    }

    pub(super) fn remote(&self) -> &Remote {
        &self.remote
    }
}

impl State {
    /// An error closes the connection.
    async fn answer(self: Arc<Self>, connection: usize, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let flight = Flight::begin(&self);
        let seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
            headers: request.headers().clone(),
            connection,
            at: Instant::now(),
        };
        locked(&self.seen).push(seen.clone());
        let fault = self.fault_of(&seen);
        if let Some(fault) = &fault
            && let Some(response) = fault.instead(request.uri().path_and_query()).await?
        {
            return Ok(self.tracked(&seen, response, flight));
        }
        let response =
            self.forward(request).await?.map(|body| body.into_data_stream().map(|frame| frame.map_err(broken)));
        let response = response.map(|content| content.boxed() as Content);
        let response = match fault {
            Some(fault) => fault.change(response)?,
            None => response,
        };
        Ok(self.tracked(&seen, response, flight))
    }

    fn fault_of(&self, seen: &Seen) -> Option<Fault> {
        let mut rules = locked(&self.rules);
        let rule = rules.iter_mut().find(|rule| rule.left != Some(0) && (rule.when)(seen))?;
        rule.left = rule.left.map(|left| left - 1);
        Some(rule.fault.clone())
    }

    async fn forward(&self, request: Request<Incoming>) -> io::Result<Response<Incoming>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.registry)).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the sender and the answer's body.
        tokio::spawn(async { _ = connection.await });
        sender.send_request(request).await.map_err(broken)
    }

    /// The answer, with its bytes and its end counted.
    fn tracked(self: &Arc<Self>, seen: &Seen, response: Response<Content>, flight: Flight) -> Response<Body> {
        let (head, content) = response.into_parts();
        let length = if seen.method == Method::HEAD { Some(0) } else { length(&head.headers) };
        let flight = (length != Some(0)).then_some(flight);
        let state = Arc::clone(self);
        let body = stream::unfold((content, flight, length), move |(mut content, mut flight, mut left)| {
            let state = Arc::clone(&state);
            async move {
                let bytes = content.next().await?;
                if let Ok(bytes) = &bytes {
                    state.sent.fetch_add(bytes.len() as u64, Relaxed);
                    left = left.map(|left| left.saturating_sub(bytes.len() as u64));
                }
                if left == Some(0) {
                    flight = None;
                }
                Some((bytes.map(Frame::data), (content, flight, left)))
            }
        });
        Response::from_parts(head, streamed(body))
    }
}

/// A request in flight.
struct Flight(Arc<State>);

impl Flight {
    fn begin(state: &Arc<State>) -> Self {
        let now = state.in_flight.fetch_add(1, Relaxed) + 1;
        state.in_flight_max.fetch_max(now, Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
