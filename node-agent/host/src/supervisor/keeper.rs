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
    keeper::{Endpoint, FromHost, MAX_MESSAGE, ToHost},
    pod::Pod,
};
use pillion_sockets::{link::Link, listen, sys};

use super::{
    Input, Supervisor,
    message::{Binding, ToWorker},
};

/// How long to wait before a keeper that is away is looked for again.
const AGAIN: Duration = Duration::from_millis(50);

/// Follows the keeper at `socket` for as long as the process lives.
///
/// # Errors
///
/// A thread that cannot be started.
pub fn follow(socket: PathBuf, inputs: Sender<Input>) -> io::Result<()> {
    thread::Builder::new().name("keeper".into()).spawn(move || {
        let mut away = false;
        loop {
            match listen_to(&socket, &inputs, &mut away) {
                Ok(()) => return,
                Err(error) if !away => {
                    tracing::warn!(socket = %socket.display(), %error, "the keeper is away: what is bound stays so");
                    away = true;
                }
                Err(_) => {}
            }
            thread::sleep(AGAIN);
        }
    })?;
    Ok(())
}

/// Listens until the keeper goes, which is an error, or the supervisor does.
fn listen_to(socket: &Path, inputs: &Sender<Input>, away: &mut bool) -> io::Result<()> {
    let mut link = Link::bounded(UnixStream::connect(socket)?, MAX_MESSAGE);
    *away = false;
    if inputs.send(Input::KeeperConnected(link.try_clone()?)).is_err() {
        return Ok(());
    }
    loop {
        let incoming = link.receive::<ToHost>()?;
        if inputs.send(Input::Keeper(incoming.message, incoming.descriptors)).is_err() {
            return Ok(());
        }
    }
}

impl Supervisor {
    /// Hands back what is held, then hears what is bound.
    pub(super) fn meet_keeper(&mut self, keeper: &Link) {
        self.told.clear();
        if let Err(error) = self.hand_back(keeper) {
            tracing::warn!(%error, "the keeper went away while it was told what is held");
        }
    }

    fn hand_back(&self, keeper: &Link) -> io::Result<()> {
        for (binding, listeners) in &self.desired.bindings {
            let (Some(pod), Some(first)) = (&binding.pod, listeners.first()) else { continue };
            let netns_cookie = sys::netns_cookie(first)?;
            let endpoint = Endpoint { pod: pod.clone(), name: binding.name.clone(), port: binding.port, netns_cookie };
            let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            keeper.send(&FromHost::Held(endpoint), &descriptors)?;
        }
        keeper.send(&FromHost::Complete, &[])
    }

    pub(super) fn hear_keeper(&mut self, said: ToHost, descriptors: Vec<OwnedFd>) {
        match said {
            ToHost::Bind(endpoint) => self.bind(endpoint, descriptors),
            ToHost::Unbind(pod) => self.unbind(&pod),
            ToHost::Complete => {
                // What the keeper closed while nobody heard it. It forgets a pod only when its namespace is gone.
                let pods = self.desired.bindings.iter().filter_map(|(binding, _)| binding.pod.clone());
                let gone: Vec<Pod> = pods.filter(|pod| !self.told.iter().any(|(uid, _)| *uid == pod.uid)).collect();
                for pod in &gone {
                    self.unbind(pod);
                }
            }
        }
    }

    fn bind(&mut self, endpoint: Endpoint, descriptors: Vec<OwnedFd>) {
        let Endpoint { pod, name, port, netns_cookie } = endpoint;
        let is_good = |descriptor: &OwnedFd| match listen::check(descriptor, port.get(), netns_cookie) {
            Ok(()) => true,
            Err(error) => {
                let (namespace, pod) = (&pod.namespace, &pod.name);
                tracing::error!(namespace, pod, port = port.get(), %error, "a listener of the keeper's is not used");
                false
            }
        };
        let listeners: Vec<_> = descriptors.into_iter().filter(is_good).collect();
        self.told.insert((pod.uid.clone(), port));
        let binding = Binding { component: name.clone(), name, port, pod: Some(pod) };
        let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        self.tell_with(&ToWorker::Bind(binding.clone()), &descriptors);
        self.desired.bindings.retain(|(known, _)| !(known.pod == binding.pod && known.port == binding.port));
        self.desired.bindings.push((binding, listeners));
    }

    fn unbind(&mut self, pod: &Pod) {
        self.told.retain(|(uid, _)| *uid != pod.uid);
        self.desired.bindings.retain(|(binding, _)| binding.pod.as_ref().is_none_or(|of| of.uid != pod.uid));
        self.tell(&ToWorker::Unbind(pod.uid.clone()));
    }
}
