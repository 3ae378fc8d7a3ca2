//! What a Service is to its clients: one address, behind which several servers take turns.

use std::{
    net::{Ipv4Addr, TcpListener as Socket},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::JoinSet,
};

/// A listener on 127.0.0.1 that hands connections on to ports there, one after the other. It ends when this is dropped, with all its
/// connections.
pub struct Service {
    port: u16,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts one before these ports.
    ///
    /// # Errors
    ///
    /// No free port.
    pub fn start(ports: Vec<u16>) -> Result<Self> {
        let socket = Socket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(socket, ports) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self { port, end: Some(end), thread: Some(thread) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(socket: Socket, ports: Vec<u16>) {
    let Ok(listener) = TcpListener::from_std(socket) else { return };
    let mut connections = JoinSet::new();
    for port in ports.into_iter().cycle() {
        let Ok((mut client, _)) = listener.accept().await else { return };
        connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
