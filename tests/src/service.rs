//! What a Service is to its clients: one address, behind which several servers take turns.

use std::net::Ipv4Addr;

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::background::Background;

/// A listener on 127.0.0.1 that hands connections on to ports there, one after the other. It ends when this is dropped, with all its
/// connections.
pub struct Service(Background);

impl Service {
    /// Starts one before these ports.
    ///
    /// # Errors
    ///
    /// No free port.
    pub fn start(ports: Vec<u16>) -> Result<Self> {
        Ok(Self(Background::start(|listener| serve(listener, ports))?))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }
}

async fn serve(listener: TcpListener, ports: Vec<u16>) {
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
