//! The link to the keeper, which owns the listeners in pods: what is held is handed back to a new keeper, and what it tells is bound.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use pillion_protocol::{
    id::ComponentId,
    keeper::{Endpoint, Fate, FromHost, MAX_MESSAGE, ToHost, VERSION},
    text,
};
use pillion_sockets::{
    heard::Heard,
    link::{Incoming, Link},
    listen,
};

use crate::worker;

use super::{
    BindingKey, Bound, Input, Supervisor,
    message::{Binding, ToWorker},
};

/// How long to wait before a keeper that is away is looked for again: at first, and at most. A keeper that this host does not
/// understand, or the other way round, is left alone after a while.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// Follows the keeper at `socket` for as long as the process lives.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn follow(socket: PathBuf, inputs: Sender<Input>) -> io::Result<()> {
    thread::Builder::new().name("keeper".into()).spawn(move || {
        let (mut said, mut pause) = (None, AGAIN);
        loop {
            let mut met = Met::Nobody;
            let Err(error) = listen_to(&socket, &inputs, &mut met) else { return };
            match met {
                // One that is not there yet is looked for all the time.
                Met::Nobody => {}
                Met::Stranger => pause = (pause * 2).min(AGAIN_AT_MOST),
                Met::Keeper => (said, pause) = (None, AGAIN),
            }
            let error = error.to_string();
            if said.as_ref() != Some(&error) {
                tracing::warn!(socket = %socket.display(), error, "the keeper is away: what is bound stays so");
                said = Some(error);
            }
            thread::sleep(pause);
        }
    })?;
    Ok(())
}

/// How long the keeper may read nothing.
const STALL: Duration = Duration::from_secs(5);

/// Who was there.
enum Met {
    Nobody,
    /// It said nothing that this host understands.
    Stranger,
    Keeper,
}

/// Listens until the keeper goes, which is an error, or the supervisor does.
fn listen_to(socket: &Path, inputs: &Sender<Input>, met: &mut Met) -> io::Result<()> {
    let (mut stream, mut introduced) = (UnixStream::connect(socket)?, false);
    *met = Met::Stranger;
    loop {
        stream.set_write_timeout(Some(STALL))?;
        let mut link = Link::bounded(stream, MAX_MESSAGE);
        if inputs.send(Input::KeeperConnected { link: link.try_clone()?, introduced }).is_err() {
            return Ok(());
        }
        let mut said = false;
        stream = loop {
            let Incoming { message, mut descriptors } = link.receive::<Heard<ToHost>>()?;
            let message = match message {
                Heard::Known(message) => message,
                Heard::Unknown { kind, why } => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(kind, why, "the keeper says what this host does not know: it is passed over");
                    }
                    continue;
                }
            };
            *met = Met::Keeper;
            if let ToHost::Moved { introduced: knows } = message
                && let Some(next) = descriptors.pop()
            {
                introduced = knows;
                break UnixStream::from(next);
            }
            if inputs.send(Input::Keeper(message, descriptors)).is_err() {
                return Ok(());
            }
        };
        tracing::info!("another keeper took the place of the one before");
    }
}

fn of_component(id: &ComponentId, fate: Fate) -> FromHost {
    let ComponentId { namespace, name } = id.clone();
    FromHost::Component { namespace, name, fate: shortened(fate) }
}

/// As much of a text as a message has room for.
fn shortened(fate: Fate) -> Fate {
    match fate {
        Fate::Failed(why) => Fate::Failed(text::reason(&why)),
        Fate::Ready => Fate::Ready,
    }
}

/// Whether two descriptors are the same socket.
fn is_same(a: &OwnedFd, b: &OwnedFd) -> bool {
    let identity = |socket| rustix::fs::fstat(socket).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

impl Supervisor {
    /// Hands back what is held, then hears what is bound.
    pub(super) fn meet_keeper(&mut self, keeper: Link, introduced: bool) {
        match self.introduce(&keeper, introduced) {
            Ok(()) => tracing::info!(bindings = self.desired.bindings.len(), "the keeper is there"),
            Err(error) => {
                tracing::warn!(%error, "the keeper did not hear what is held: does it know this host's user (--host-uid)?");
                _ = keeper.socket().shutdown(std::net::Shutdown::Both);
            }
        }
        self.keeper = Some(keeper);
        self.told_fates.clear();
        self.introduce_pods();
    }

    /// What is held is told only to a keeper that does not know it.
    fn introduce(&self, keeper: &Link, introduced: bool) -> io::Result<()> {
        keeper.send(&FromHost::Hello { version: VERSION, listeners_max: worker::listeners_max() }, &[])?;
        for Bound { endpoint, listeners, .. } in self.desired.bindings.values().filter(|_| !introduced) {
            let Some(endpoint) = endpoint.clone() else { continue };
            let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            keeper.send(&FromHost::Held(endpoint), &descriptors)?;
        }
        for (id, component) in &self.desired.components {
            if let Some(fate) = component.fate.clone() {
                keeper.send(&of_component(id, fate), &[])?;
            }
        }
        keeper.send(&FromHost::Complete, &[])
    }

    /// Tells the keeper what became of a component, if that is known.
    pub(super) fn tell_fate(&self, id: &ComponentId) {
        let unknown = || self.is_complete().then(|| Fate::Failed(format!("there is no component {id:?}")));
        let fate = self.desired.components.get(id).map_or_else(unknown, |component| component.fate.clone());
        let (Some(keeper), Some(fate)) = (&self.keeper, fate) else { return };
        // A keeper that cannot be told is gone, and the next one is told everything.
        if keeper.send(&of_component(id, fate), &[]).is_err() {
            _ = keeper.socket().shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn hear_keeper(&mut self, said: ToHost, descriptors: Vec<OwnedFd>) {
        match said {
            ToHost::Bind(endpoint) => self.bind(endpoint, descriptors),
            ToHost::Unbind { pod, port } => self.unbind(&(Some(pod), port)),
            ToHost::Failed { pod, why } => {
                tracing::error!(namespace = pod.namespace, pod = pod.name, why, "a pod's endpoints are missing");
                self.failures_of(&pod.uid, Some(why));
            }
            // What was closed while nobody heard it, the keeper has said for each endpoint that it was told of.
            ToHost::Complete => self.forget_deleted(),
            // The thread that listens has followed already.
            ToHost::Moved { .. } => {}
        }
    }

    fn bind(&mut self, endpoint: Endpoint, descriptors: Vec<OwnedFd>) {
        let Endpoint { pod, port, netns_cookie, name, .. } = endpoint.clone();
        let is_good = |descriptor: &OwnedFd| match listen::check(descriptor, port.get(), netns_cookie) {
            Ok(()) => true,
            Err(error) => {
                let (namespace, pod) = (&pod.namespace, &pod.name);
                tracing::error!(namespace, pod, port = port.get(), %error, "a listener of the keeper's is not used");
                false
            }
        };
        let listeners: Vec<_> = descriptors.into_iter().filter(is_good).collect();
        let key = (Some(pod.uid.clone()), port);
        let uid = pod.uid.clone();
        let (component, verdict) = (self.component_of(&pod, &name), self.verdict(&pod.uid, &name));
        let binding = Binding { component, name, port, pod: Some(pod), verdict };
        let served = self.desired.bindings.get(&key).is_some_and(|known| {
            let same = known.listeners.iter().zip(&listeners).all(|(known, told)| is_same(known, told));
            same && known.binding == binding && known.listeners.len() == listeners.len()
        });
        if !served {
            let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            self.tell_with(&ToWorker::Bind(vec![(binding.clone(), descriptors.len())]), &descriptors);
            // Once is enough: it is told of what changes.
            if self.told_fates.insert(binding.component.clone()) {
                self.tell_fate(&binding.component);
            }
            self.desired.bindings.insert(key, Bound { binding, listeners, endpoint: Some(endpoint) });
            self.bound_of(&uid);
        }
    }

    fn unbind(&mut self, key: &BindingKey) {
        self.desired.bindings.remove(key);
        if let (Some(pod), port) = key {
            self.tell(&ToWorker::Unbind(pod.clone(), *port));
            self.forget_deleted();
            self.report_soon();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixListener, sync::mpsc::channel};

    use super::*;

    #[test]
    fn a_keeper_of_the_next_version_is_heard_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keeper.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (inputs, inbox) = channel();
        let listening = thread::spawn(move || listen_to(&path, &inputs, &mut Met::Nobody));
        let (mut keeper, _) = listener.accept().unwrap();
        for said in [
            r#""later""#,
            r#"{"later":{"pods":1}}"#,
            r#"{"unbind":{"pod":"u-1","port":8081,"newer":1}}"#,
            r#"{"complete":{"newer":1}}"#,
        ] {
            keeper.write_all(&u32::try_from(said.len()).unwrap().to_be_bytes()).unwrap();
            keeper.write_all(said.as_bytes()).unwrap();
        }
        drop(keeper);
        assert!(listening.join().unwrap().is_err(), "the keeper is gone");
        let heard: Vec<_> = inbox
            .try_iter()
            .filter_map(|input| if let Input::Keeper(said, _) = input { Some(said) } else { None })
            .collect();
        assert!(matches!(heard.as_slice(), [ToHost::Unbind { .. }, ToHost::Complete]), "{heard:?}");
    }
}
