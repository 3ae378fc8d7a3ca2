//! The socket of the host: it connects, hands back what it still holds, and is then told of every endpoint.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use pillion_protocol::keeper::{FromHost, MAX_MESSAGE};
use pillion_sockets::link::Link;

use crate::{keeper::Input, plugin::is_trusted};

/// How long the host may read nothing.
const STALL: Duration = Duration::from_secs(5);

/// Serves the host for as long as the process lives. The newest connection is the host.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn serve(listener: UnixListener, inputs: Sender<Input>) -> io::Result<()> {
    thread::Builder::new().name("host".into()).spawn(move || {
        for (id, client) in (1..).zip(listener.incoming()) {
            if let Err(error) = client.and_then(|client| connect(id, client, &inputs)) {
                tracing::warn!(%error, "a client of the host's socket is not served");
            }
        }
    })?;
    Ok(())
}

fn connect(id: u64, client: UnixStream, inputs: &Sender<Input>) -> io::Result<()> {
    if !is_trusted(&client)? {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"));
    }
    client.set_write_timeout(Some(STALL))?;
    let mut link = Link::bounded(client, MAX_MESSAGE);
    let ends = |_| io::Error::other("the keeper ends");
    inputs.send(Input::HostConnected(id, link.try_clone()?)).map_err(|_| ends(()))?;
    let inputs = inputs.clone();
    thread::Builder::new().name("from-host".into()).spawn(move || {
        while let Ok(incoming) = link.receive::<FromHost>() {
            if inputs.send(Input::Host(id, incoming.message, incoming.descriptors)).is_err() {
                return;
            }
        }
        _ = inputs.send(Input::HostGone(id));
    })?;
    Ok(())
}
