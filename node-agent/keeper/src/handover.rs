//! One keeper takes another's place: every listener, the hosts' connections and the lock travel as descriptors. Until the successor
//! has said that it holds everything, the old one stays the keeper.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use pillion_protocol::keeper::{Call, Endpoint, Taken, ToHost, ToSuccessor};
use pillion_sockets::{heard::Heard, link::Link};
use serde::de::IgnoredAny;

use crate::{
    host::{Origin, Reconnected},
    keeper::Keeper,
    socket,
};

/// How long each side may be silent.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection to a host, and where it comes from.
pub type HandedHost = (UnixStream, Origin);

/// Everything that a keeper gave.
pub struct Handed {
    link: Link,
    /// The endpoints with their listeners.
    pub endpoints: Vec<(Endpoint, Vec<OwnedFd>)>,
    /// Connections to hosts.
    pub hosts: Vec<HandedHost>,
    /// The lock.
    pub lock: File,
}

/// Asks the keeper at `path` for everything.
///
/// # Errors
///
/// It refuses, or goes away.
pub fn ask(path: &Path, generation: u64) -> io::Result<Handed> {
    let mut link = socket::ask(path, Call::Handover { generation }, SILENCE)?;
    let (mut endpoints, mut hosts) = (Vec::new(), Vec::new());
    loop {
        let incoming = link.receive::<Heard<ToSuccessor>>()?;
        let mut descriptors = incoming.descriptors;
        let message = match incoming.message {
            Heard::Known(message) => message,
            // Without one of these not everything would be held.
            Heard::Unknown { kind, why } if ["held", "host", "complete"].contains(&kind.as_str()) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{kind:?} of the keeper before is not understood: {why}"),
                ));
            }
            Heard::Unknown { kind, why } => {
                tracing::warn!(kind, why, "the keeper before says what this one does not know: it is passed over");
                continue;
            }
        };
        match message {
            ToSuccessor::Held(endpoint) => endpoints.push((endpoint, descriptors)),
            ToSuccessor::Host { introduced } => {
                let connection = descriptors.pop().map(UnixStream::from);
                hosts.extend(connection.map(|connection| (connection, Origin::Handed { introduced })));
            }
            ToSuccessor::Complete => {
                let lock = descriptors.pop().ok_or_else(|| io::Error::other("the lock did not come with the rest"))?;
                return Ok(Handed { link, endpoints, hosts, lock: lock.into() });
            }
            ToSuccessor::Refused(why) => return Err(io::Error::other(why)),
        }
    }
}

impl Handed {
    /// Says that everything is held: from now on this process is the keeper. Gives the hosts' connections.
    ///
    /// # Errors
    ///
    /// The old keeper did not wait, and stays the keeper.
    pub fn take(self) -> io::Result<Vec<HandedHost>> {
        self.link.send(&Taken, &[])?;
        Ok(self.hosts)
    }
}

impl Keeper {
    /// Gives everything to a newer keeper. Afterwards this one is none.
    ///
    /// # Errors
    ///
    /// Who asks is not newer, or does not take it: then this one stays the keeper.
    pub fn hand_over(&mut self, generation: u64, mut link: Link) -> io::Result<()> {
        link.socket().set_read_timeout(Some(SILENCE))?;
        link.socket().set_write_timeout(Some(SILENCE))?;
        let own = self.claim.generation;
        if generation <= own {
            let why = format!("this keeper's generation is {own}: one of generation {generation} is not newer");
            link.send(&ToSuccessor::Refused(why.clone()), &[])?;
            return Err(io::Error::other(why));
        }
        // What is handed over is there: whoever does not find it is in the wrong place.
        self.compare();
        for pod in self.pods.values() {
            for endpoint in pod.endpoints() {
                let listeners = pod.listeners.get(&endpoint.port);
                let descriptors = listeners.map_or_else(Vec::new, |listeners| listeners.descriptors());
                link.send(&ToSuccessor::Held(endpoint), &descriptors)?;
            }
        }
        let connections = self.hosts.reconnect()?;
        for Reconnected { introduced, ours, .. } in &connections {
            link.send(&ToSuccessor::Host { introduced: *introduced }, &[ours.as_fd()])?;
        }
        link.send(&ToSuccessor::Complete, &[self.claim.lock.as_fd()])?;
        self.hear_taken(&mut link)?;
        for Reconnected { id, introduced, theirs, .. } in &connections {
            self.hosts.tell_one(*id, &ToHost::Moved { introduced: *introduced }, &[theirs.as_fd()]);
        }
        Ok(())
    }

    fn hear_taken(&self, link: &mut Link) -> io::Result<()> {
        // Whatever the successor says it with: a newer one may say more.
        let Err(silent) = link.receive::<IgnoredAny>() else { return Ok(()) };
        // From here on the successor cannot say it any more, and knows. It may have said so a moment before.
        _ = link.socket().shutdown(std::net::Shutdown::Both);
        link.receive::<IgnoredAny>().map(drop).map_err(|_| silent)
    }
}
