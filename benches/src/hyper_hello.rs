//! The plain server: hyper, one thread, the same answer as the hello guests. What it takes, a request takes without a guest.

use std::{convert::Infallible, io::Write, net::SocketAddr};

use anyhow::Context;
use clap::Args;
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Its options.
#[derive(Args)]
pub struct Arguments {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
}

/// Serves until the process is ended. The first line on standard output is the port.
///
/// # Errors
///
/// An address that cannot be listened on.
pub fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(arguments.address).await.with_context(|| arguments.address.to_string())?;
        writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(hello)));
        }
    })
}

/// hyper adds the content-length and the date.
async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello\n"))))
}
