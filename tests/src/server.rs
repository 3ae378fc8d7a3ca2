//! A server in this process, on a thread of its own: it also answers while a test holds up its own runtime.

use std::{io, sync::Arc};

use anyhow::Result;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{background::Background, client::Body, tls::Authority};

/// A server on 127.0.0.1 that speaks HTTP/1.1. It ends when this is dropped, with all its connections.
pub struct Server(Background);

impl Server {
    /// Starts one without TLS. It gives requests with the number of their connection, from 0; an error closes the connection.
    pub(crate) fn start<A, F>(answer: A) -> Result<Self>
    where
        A: Fn(usize, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
    {
        Self::serving(None, answer)
    }

    /// Starts one with TLS, whose certificate is of this authority. An error closes the connection.
    ///
    /// # Errors
    ///
    /// No free port.
    pub fn with_tls<A, F>(authority: &Authority, answer: A) -> Result<Self>
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
    {
        Self::serving(Some(authority.acceptor(&["127.0.0.1"])?), move |_, request| answer(request))
    }

    fn serving<A, F>(tls: Option<TlsAcceptor>, answer: A) -> Result<Self>
    where
        A: Fn(usize, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
    {
        let tls = tls.map(Arc::new);
        Ok(Self(Background::start(|listener| serve(listener, tls, answer))?))
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.0.port()
    }

    /// The URL of one with TLS.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port())
    }
}

async fn serve<A, F>(listener: TcpListener, tls: Option<Arc<TlsAcceptor>>, answer: A)
where
    A: Fn(usize, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    for connection in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        _ = stream.set_nodelay(true);
        let (answer, tls) = (answer.clone(), tls.clone());
        let service = service_fn(move |request| answer(connection, request));
        connections.spawn(async move {
            let http = http1::Builder::new();
            match tls {
                None => _ = http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
