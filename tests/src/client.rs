//! Callers: HTTP/1.1 and HTTP/2 by prior knowledge, from hyper.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinHandle};

/// No test waits longer for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    H1,
    /// HTTP/2 by prior knowledge
    H2,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::H1, Self::H2];
}

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A whole body, with its length known.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body of unknown length.
pub fn streamed(frames: impl futures::Stream<Item = std::io::Result<Frame<Bytes>>> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

/// A request; its `Host` or authority is added when it is sent.
///
/// # Errors
///
/// A path that is none.
pub fn request(method: &str, path: &str, body: Body) -> Result<Request<Body>> {
    Ok(Request::builder().method(method).uri(path).body(body)?)
}

/// A whole answer, or as much of one as came.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body's bytes, also of a body that was cut.
    pub body: Bytes,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
    /// What ended a body that did not come to its end.
    pub cut: Option<hyper::Error>,
}

impl Answer {
    /// Reads an answer to its end, whatever that is.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (head, mut incoming) = response.into_parts();
        let (mut body, mut trailers, mut cut) = (BytesMut::new(), None, None);
        while let Some(frame) = incoming.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => body.extend_from_slice(&data),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(error) => {
                    cut = Some(error);
                    break;
                }
            }
        }
        Self { status: head.status, headers: head.headers, body: body.freeze(), trailers, cut }
    }

    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

/// A connection of a caller. It closes when this is dropped.
pub struct Connection {
    sender: Sender,
    port: u16,
    address: SocketAddr,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub async fn open(protocol: Protocol, port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let address = stream.local_addr()?;
        let io = TokioIo::new(stream);
        let (sender, driver) = match protocol {
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(io).await?;
                (Sender::H1(sender), tokio::spawn(async { _ = connection.await }))
            }
            Protocol::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                (Sender::H2(sender), tokio::spawn(async { _ = connection.await }))
            }
        };
        Ok(Self { sender, port, address, driver })
    }

    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        let authority = format!("localhost:{}", self.port);
        let answered = async {
            match &mut self.sender {
                Sender::H1(sender) => {
                    request.headers_mut().insert(hyper::header::HOST, authority.parse()?);
                    sender.ready().await?;
                    anyhow::Ok(sender.send_request(request).await?)
                }
                Sender::H2(sender) => {
                    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                    *request.uri_mut() = format!("http://{authority}{path}").parse()?;
                    sender.ready().await?;
                    Ok(sender.send_request(request).await?)
                }
            }
        };
        tokio::time::timeout(ANSWER, answered).await.with_context(|| format!("no answer within {ANSWER:?}"))?
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// No answer, or one that is cut.
    pub async fn fetch(&mut self, request: Request<Body>) -> Result<Answer> {
        let mut answer = self.fetch_cut(request).await?;
        match answer.cut.take() {
            Some(cut) => Err(cut.into()),
            None => Ok(answer),
        }
    }

    /// Sends a request and reads an answer that may be cut.
    ///
    /// # Errors
    ///
    /// No answer's head.
    pub async fn fetch_cut(&mut self, request: Request<Body>) -> Result<Answer> {
        let response = self.send(request).await?;
        tokio::time::timeout(ANSWER, Answer::read(response)).await.with_context(|| format!("no end within {ANSWER:?}"))
    }

    /// Fetches a path.
    ///
    /// # Errors
    ///
    /// No answer, or one that is cut.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.fetch(request("GET", path, empty())?).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Fetches a path over a new connection.
///
/// # Errors
///
/// No answer, or one that is cut.
pub async fn get(protocol: Protocol, port: u16, path: &str) -> Result<Answer> {
    fetch(protocol, port, request("GET", path, empty())?).await
}

/// Sends a request over a new connection.
///
/// # Errors
///
/// No answer, or one that is cut.
pub async fn fetch(protocol: Protocol, port: u16, request: Request<Body>) -> Result<Answer> {
    let mut connection = Connection::open(protocol, port).await?;
    connection.fetch(request).await.with_context(|| format!("{protocol:?} at port {port}"))
}
