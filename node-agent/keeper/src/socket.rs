//! Unix sockets that only known users are served at.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    thread,
    time::Duration,
};

use pillion_protocol::keeper::{Call, MAX_MESSAGE, Request, VERSION};
use pillion_sockets::link::Link;

/// How long to wait when no client can be taken in, for example without a descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// Opens a socket at `path`. Whoever listened there before is not disturbed, and found no more.
///
/// Its folder is this user's alone if it has to be made. `mode` is the socket's: who may not write cannot connect.
///
/// # Errors
///
/// What the file system says.
pub fn open(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    // Bound beside, renamed into place: nobody ever finds a name without a listener, nor a socket that is open to others.
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(mode))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Asks the keeper that listens at `path`; each side may be silent for so long. The answer is to be read from the link.
///
/// # Errors
///
/// Nobody listens there.
pub fn ask(path: &Path, call: Call, silence: Duration) -> io::Result<Link> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(silence))?;
    stream.set_write_timeout(Some(silence))?;
    let link = Link::bounded(stream, MAX_MESSAGE);
    link.send(&Request { version: VERSION, call }, &[])?;
    Ok(link)
}

/// Hands each client that root, this user, or `also` has started to `serve`, until the listener is [closed](close).
pub fn accept(listener: &UnixListener, also: Option<u32>, mut serve: impl FnMut(UnixStream) -> io::Result<()>) {
    for client in listener.incoming() {
        let served = match client {
            // Closed.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => Err(error),
            Ok(client) => match stranger(&client, also) {
                Ok(None) => serve(client),
                Ok(Some(stranger)) => {
                    tracing::warn!(
                        uid = stranger,
                        "another user's client is not served: a host's is named by --host-uid"
                    );
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = served {
            tracing::warn!(%error, "a client is not served");
            thread::sleep(AGAIN);
        }
    }
}

/// Ends [`accept`]: from now on clients are refused.
pub fn close(listener: impl AsFd) {
    _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}

/// The user at the other end, if it is none that is served.
fn stranger(socket: impl AsFd, also: Option<u32>) -> io::Result<Option<u32>> {
    let peer = pillion_sockets::sys::peer_uid(socket)?;
    let served = peer == 0 || peer == rustix::process::geteuid().as_raw() || also == Some(peer);
    Ok((!served).then_some(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_moves_to_the_next_one_and_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/it.sock");
        let first = open(&path, 0o600).unwrap();
        let second = open(&path, 0o600).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let served = thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                let mut served = 0;
                accept(&second, None, |_| {
                    served += 1;
                    Ok(())
                });
                served
            });
            UnixStream::connect(&path).unwrap();
            while first.set_nonblocking(true).is_err() || first.accept().is_ok() {}
            thread::sleep(Duration::from_millis(20));
            close(&second);
            accepting.join().unwrap()
        });
        assert_eq!(served, 1);
        assert!(UnixStream::connect(&path).is_err());
    }
}
