//! A server in this process, on a thread of its own: it also answers while a test holds up its own runtime.

use std::{
    io,
    net::{Ipv4Addr, TcpListener as Socket},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime, sync::oneshot, task::JoinSet};

use crate::client::Body;

/// A server on 127.0.0.1 that speaks plain HTTP/1.1. It ends when this is dropped, with all its connections.
pub(super) struct Server {
    pub(super) port: u16,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one. It gives requests with the number of their connection, from 0; an error closes the connection.
    pub(super) fn start<A, F>(answer: A) -> Result<Self>
    where
        A: Fn(usize, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
    {
        let socket = Socket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(socket, answer) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self { port, end: Some(end), thread: Some(thread) })
    }
}

async fn serve<A, F>(socket: Socket, answer: A)
where
    A: Fn(usize, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
{
    let Ok(listener) = TcpListener::from_std(socket) else { return };
    let mut connections = JoinSet::new();
    for connection in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        _ = stream.set_nodelay(true);
        let answer = answer.clone();
        let service = service_fn(move |request| answer(connection, request));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
