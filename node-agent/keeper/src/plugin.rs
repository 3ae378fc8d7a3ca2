//! The socket of the CNI plugin: one request and one answer for each connection, every wait bounded. A newer keeper and people
//! ask here too.

use std::{
    fs::File,
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::keeper::{Answer, Call, MAX_MESSAGE, VERSION};
use pillion_sockets::{heard::Heard, link::Link};
use serde::Deserialize;

use crate::{
    keeper::{Input, Outcome, Pending},
    socket,
};

/// How long a client may take to say what it wants, and to hear the answer.
const TALK: Duration = Duration::from_secs(2);

/// How long a pod's start waits for `::1`, whose `lo` the runtime sets up at the same time.
const LOOPBACK: Duration = Duration::from_secs(1);

/// How long a pod's start waits for its components, if it asks for that. The plugin waits a little longer.
const READY: Duration = Duration::from_secs(4);

/// How often it is tried.
const AGAIN: Duration = Duration::from_millis(20);

/// How often components that are not ready are asked for again.
const READY_AGAIN: Duration = Duration::from_millis(100);

/// Clients at once, more than a node has pods by default; the kernel queues the others.
const CLIENTS: usize = 128;

/// Serves the plugin until the listener is closed.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn serve(listener: UnixListener, inputs: Sender<Input>) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("plugin".into()).spawn(move || {
        socket::accept(&listener, None, |client| {
            while clients.load(Relaxed) >= CLIENTS {
                thread::sleep(AGAIN);
            }
            let (inputs, leaving) = (inputs.clone(), Arc::clone(&clients));
            clients.fetch_add(1, Relaxed);
            let talk = move || {
                if let Err(error) = talk(client, &inputs) {
                    tracing::warn!(%error, "a client of the plugin's socket was not understood");
                }
                leaving.fetch_sub(1, Relaxed);
            };
            let started = thread::Builder::new().name("client".into()).spawn(talk);
            if started.is_err() {
                clients.fetch_sub(1, Relaxed);
            }
            started.map(drop)
        });
    })?;
    Ok(())
}

/// A [`Request`](pillion_protocol::keeper::Request), of whatever version.
#[derive(Deserialize)]
struct Asked {
    version: u32,
    call: Heard<Call>,
}

fn talk(client: UnixStream, inputs: &Sender<Input>) -> io::Result<()> {
    client.set_read_timeout(Some(TALK))?;
    client.set_write_timeout(Some(TALK))?;
    let mut link = Link::bounded(client, MAX_MESSAGE);
    let incoming = link.receive::<Asked>()?;
    let Asked { version, call } = incoming.message;
    if version != VERSION {
        let text = format!(
            "who asks speaks version {version}, the keeper {VERSION}: one of them is being replaced, try again"
        );
        return link.send(&Answer::Refused(text), &[]);
    }
    let call = match call {
        Heard::Known(call) => call,
        Heard::Unknown { kind, why } => {
            let text =
                format!("the keeper does not understand {kind:?}: {why}. If one of them is being replaced, try again");
            return link.send(&Answer::Refused(text), &[]);
        }
    };
    if let Call::Handover { generation } = call {
        return inputs.send(Input::Successor { generation, link }).map_err(|_| io::Error::other("the keeper ends"));
    }
    let netns = incoming.descriptors.into_iter().next().map(File::from);
    let (began, mut again) = (Instant::now(), false);
    loop {
        let Outcome { answer, pending } = ask(inputs, call.clone(), netns.as_ref(), again)?;
        let answer = match pending {
            None => answer,
            Some(Pending::Loopback) if began.elapsed() >= LOOPBACK => answer,
            Some(Pending::Components(why)) if began.elapsed() >= READY => Answer::Refused(why),
            Some(pending) => {
                thread::sleep(if pending == Pending::Loopback { AGAIN } else { READY_AGAIN });
                again = true;
                continue;
            }
        };
        return link.send(&answer, &[]);
    }
}

/// Asks the keeper's thread. When that stops being the keeper, the client's connection ends: it asks the next one.
fn ask(inputs: &Sender<Input>, call: Call, netns: Option<&File>, again: bool) -> io::Result<Outcome> {
    let gone = || io::Error::other("the keeper ends");
    let (answer, outcome) = channel();
    let netns = netns.map(File::try_clone).transpose()?;
    inputs.send(Input::Plugin { call, netns, again, answer }).map_err(|_| gone())?;
    outcome.recv().map_err(|_| gone())
}
