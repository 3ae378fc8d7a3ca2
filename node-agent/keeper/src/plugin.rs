//! The socket of the CNI plugin: one request and one answer for each connection, every wait bounded.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::keeper::{Answer, MAX_MESSAGE, Request, VERSION};
use pillion_sockets::link::Link;

use crate::keeper::{Input, Outcome};

/// How long a client may take to say what it wants, and to hear the answer.
const TALK: Duration = Duration::from_secs(2);

/// How long a pod's start waits for `::1`, whose `lo` the runtime sets up at the same time.
const LOOPBACK: Duration = Duration::from_secs(1);

/// How often it is tried.
const AGAIN: Duration = Duration::from_millis(20);

/// Clients at once; the kernel queues the others.
const CLIENTS: usize = 64;

/// Opens a socket that only this user can connect to, in a folder that only this user can enter.
///
/// # Errors
///
/// What the file system says.
pub fn open(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
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
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Whether the process at the other end is this user's, or root's.
///
/// # Errors
///
/// The kernel does not say.
pub fn is_trusted(socket: impl AsFd) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// Serves the plugin for as long as the process lives.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn serve(listener: UnixListener, inputs: Sender<Input>) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("plugin".into()).spawn(move || {
        for client in listener.incoming() {
            while clients.load(Relaxed) >= CLIENTS {
                thread::sleep(AGAIN);
            }
            let (inputs, leaving) = (inputs.clone(), Arc::clone(&clients));
            clients.fetch_add(1, Relaxed);
            let talk = move || {
                if let Err(error) = client.and_then(|client| talk(client, &inputs)) {
                    tracing::warn!(%error, "a client of the plugin's socket was not understood");
                }
                leaving.fetch_sub(1, Relaxed);
            };
            if let Err(error) = thread::Builder::new().name("client".into()).spawn(talk) {
                clients.fetch_sub(1, Relaxed);
                tracing::error!(%error, "a client of the plugin's socket cannot be served");
                thread::sleep(AGAIN);
            }
        }
    })?;
    Ok(())
}

fn talk(client: UnixStream, inputs: &Sender<Input>) -> io::Result<()> {
    if !is_trusted(&client)? {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"));
    }
    client.set_read_timeout(Some(TALK))?;
    client.set_write_timeout(Some(TALK))?;
    let mut link = Link::bounded(client, MAX_MESSAGE);
    let incoming = link.receive::<Request>()?;
    let Request { version, call } = incoming.message;
    if version != VERSION {
        let text = format!(
            "the plugin speaks version {version}, the keeper {VERSION}: one of them is being replaced, try again"
        );
        return link.send(&Answer::Refused(text), &[]);
    }
    let netns = incoming.descriptors.into_iter().next().map(File::from);
    let deadline = Instant::now() + LOOPBACK;
    loop {
        let (answer, outcome) = channel();
        let netns = netns.as_ref().map(File::try_clone).transpose()?;
        let gone = |_| io::Error::other("the keeper ends");
        inputs.send(Input::Plugin { call: call.clone(), netns, answer }).map_err(|_| gone(()))?;
        let Outcome { answer, settled } = outcome.recv().map_err(|_| gone(()))?;
        if settled || Instant::now() >= deadline {
            return link.send(&answer, &[]);
        }
        thread::sleep(AGAIN);
    }
}
