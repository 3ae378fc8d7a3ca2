//! A server that guests call, in this process.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::locked;
use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

/// A server on loopback that gives every caller the same answer.
pub struct Upstream {
    port: u16,
    calls: Arc<AtomicUsize>,
    lines: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Upstream {
    /// Starts one that answers these bytes to every head, and closes.
    ///
    /// # Errors
    ///
    /// No free port.
    pub async fn answering(answer: impl Into<String>) -> Result<Self> {
        let answer: Arc<str> = answer.into().into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let said = Arc::clone(&lines);
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                let (answer, said) = (Arc::clone(&answer), Arc::clone(&said));
                tokio::spawn(async move {
                    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
                    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                        match stream.read(&mut buffer).await {
                            Ok(read @ 1..) => head.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                            _ => return,
                        }
                    }
                    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                    locked(&said).push(line);
                    _ = stream.write_all(answer.as_bytes()).await;
                    _ = stream.shutdown().await;
                });
            }
        });
        Ok(Self { port, calls, lines, server })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The first lines of all requests so far.
    pub fn request_lines(&self) -> Vec<String> {
        locked(&self.lines).clone()
    }

    /// How many connections there were.
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}
