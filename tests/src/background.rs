//! A listener that is served on a thread of its own: also while a test holds up its own runtime.

use std::{
    net::{Ipv4Addr, TcpListener as Socket},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use tokio::{net::TcpListener, runtime, sync::oneshot};

/// A port on 127.0.0.1, and who serves it. That ends when this is dropped, with all that it has started.
pub(crate) struct Background {
    port: u16,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Has a listener served.
    pub(crate) fn start<F: Future<Output = ()>>(serve: impl FnOnce(TcpListener) -> F + Send + 'static) -> Result<Self> {
        let socket = Socket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(socket) else { return };
                tokio::select! {
                    () = serve(listener) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self { port, end: Some(end), thread: Some(thread) })
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
