//! A proxy before an API server that makes faults.

use std::{
    future::pending,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::{
    client::{Body, full, streamed},
    cluster::ApiServer,
    locked,
    server::Server,
    tls,
};

/// A request to an API server.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path, without a query.
    pub path: String,
    /// Whether it is a watch.
    pub is_watch: bool,
}

impl Asked {
    /// Whether it watches resources of this name.
    pub fn watches(&self, resources: &str) -> bool {
        self.is_watch && self.path.ends_with(resources)
    }
}

/// What an API server may do to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFault {
    /// Answers 429, with `retry-after` of a second, and ends watches.
    Busy,
    /// Does not know the client's version any more: answers 410, or says so in place of what a watch would say next.
    Expired,
    /// Never answers again, on this connection.
    Silent,
}

/// A proxy on 127.0.0.1 that speaks plain HTTP/1.1, and passes on who asks. It ends when this is dropped, with all its connections.
pub struct ApiProxy {
    state: Arc<State>,
    server: Server,
}

struct State {
    port: u16,
    connector: TlsConnector,
    rule: Mutex<Option<Rule>>,
    made: Mutex<usize>,
}

struct Rule {
    when: Box<dyn Fn(&Asked) -> bool + Send>,
    fault: ApiFault,
    left: usize,
}

impl ApiProxy {
    /// Starts one before an API server.
    ///
    /// # Errors
    ///
    /// No free port.
    pub fn start(api: &ApiServer) -> Result<Self> {
        let connector = tls::connector(&api.authority())?;
        let (rule, made) = (Mutex::default(), Mutex::default());
        let state = Arc::new(State { port: api.port(), connector, rule, made });
        let answering = Arc::clone(&state);
        let server = Server::start(move |_, request| Arc::clone(&answering).answer(request))?;
        Ok(Self { state, server })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }

    /// From now on, makes this fault of requests that fit, and of what watches that fit would say, so many times.
    pub fn fault(&self, times: usize, fault: ApiFault, when: impl Fn(&Asked) -> bool + Send + 'static) {
        *locked(&self.state.rule) = Some(Rule { when: Box::new(when), fault, left: times });
    }

    /// From now on, makes no faults. Those begun go on.
    pub fn clear(&self) {
        *locked(&self.state.rule) = None;
    }

    /// How many faults were made.
    pub fn made(&self) -> usize {
        *locked(&self.state.made)
    }
}

impl State {
    /// The fault to be made now.
    fn fault(&self, asked: &Asked) -> Option<ApiFault> {
        let mut rule = locked(&self.rule);
        let rule = rule.as_mut().filter(|rule| rule.left > 0 && (rule.when)(asked))?;
        rule.left -= 1;
        *locked(&self.made) += 1;
        Some(rule.fault)
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let asked = Asked { path: request.uri().path().to_owned(), is_watch };
        match self.fault(&asked) {
            None => {}
            Some(ApiFault::Silent) => return pending().await,
            Some(ApiFault::Busy) => return said(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Some(ApiFault::Expired) => return said(StatusCode::GONE, "Expired"),
        }
        let (head, body) = self.forward(request).await?.into_parts();
        if !asked.is_watch {
            let body = body.into_data_stream().map(|bytes| bytes.map(Frame::data).map_err(io::Error::other));
            return Ok(Response::from_parts(head, streamed(body)));
        }
        let events = stream::unfold(Some(body.into_data_stream()), move |events| {
            let (state, asked) = (Arc::clone(&self), asked.clone());
            async move {
                let mut events = events?;
                let next = events.next().await;
                match state.fault(&asked) {
                    Some(ApiFault::Silent) => pending().await,
                    Some(ApiFault::Expired) => {
                        let event = json!({"type": "ERROR", "object": status(StatusCode::GONE, "Expired")});
                        Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), None))
                    }
                    Some(ApiFault::Busy) => None,
                    None => Some((next?.map(Frame::data).map_err(io::Error::other), Some(events))),
                }
            }
        });
        Ok(Response::from_parts(head, streamed(events)))
    }

    async fn forward(&self, request: Request<Incoming>) -> io::Result<Response<Incoming>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::from(Ipv4Addr::LOCALHOST), stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with the sender and the answer's body.
        tokio::spawn(async { _ = connection.await });
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

fn status(code: StatusCode, reason: &str) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "a fault of the test's",
        "reason": reason, "code": code.as_u16(),
    })
}

fn said(code: StatusCode, reason: &str) -> io::Result<Response<Body>> {
    let response = Response::builder().status(code).header(RETRY_AFTER, "1").header("content-type", "application/json");
    response.body(full(status(code, reason).to_string())).map_err(io::Error::other)
}
