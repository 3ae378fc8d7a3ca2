//! What hosts say, and what another keeper had.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::{Sidecar, Sidecars},
    id::ComponentId,
    keeper::{Add, Endpoint, FromHost, ToHost, VERSION, Wait},
    pod::Pod as PodName,
};

use crate::{host::HostId, keeper::Keeper, netns::NetnsError, pod::Pod};

/// The most pods that can be desired.
const DESIRED: usize = 10_000;

/// How soon after a pod was named it is looked for.
const SOON: Duration = Duration::from_millis(50);

/// A pod that should have endpoints, as the host has said.
pub(crate) struct Desired {
    pub(crate) pod: PodName,
    pub(crate) sidecars: Sidecars,
    /// Where its namespace may be.
    pub(crate) hint: Option<PathBuf>,
    /// Why it has none, as the host was told.
    pub(crate) failure: Option<String>,
}

/// What came of listeners that another process had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They are held.
    Yes,
    /// Their pod, namespace or port is no more.
    Gone,
    /// That cannot be told from here, for this reason.
    Unseen(String),
}

impl Keeper {
    /// Hears what a host says.
    pub(crate) fn hear(&mut self, id: HostId, said: FromHost, descriptors: Vec<OwnedFd>) {
        match said {
            FromHost::Hello { version: VERSION, listeners_max } => self.hosts.limit(id, listeners_max),
            FromHost::Hello { version, .. } => {
                tracing::error!(version, expected = VERSION, "a host speaks another version: it is not served");
                self.hosts.remove(id);
            }
            FromHost::Held(endpoint) => self.hear_held(id, &endpoint, descriptors),
            FromHost::Complete => {
                self.compare();
                let Some(handed_back) = self.hosts.introduce(id) else { return };
                for (endpoint, listeners) in self.pods.values().flat_map(Pod::bound) {
                    let known = handed_back.get(&(endpoint.pod.uid.clone(), endpoint.port));
                    let is_known =
                        known.is_some_and(|(name, many)| (name, *many) == (&endpoint.name, listeners.open()));
                    if !is_known {
                        self.hosts.tell_one(id, &ToHost::Bind(endpoint), &listeners.descriptors());
                    }
                }
                self.hosts.tell_one(id, &ToHost::Complete, &[]);
            }
            FromHost::Component { namespace, name, fate } => self.hosts.note(id, ComponentId { namespace, name }, fate),
            FromHost::Desired { pod, sidecars, netns } => self.desire(pod, sidecars, netns),
            FromHost::Ended(uid) => {
                self.desired.remove(&uid);
                self.forget(&uid, "the pod has ended");
                self.write_changes();
            }
            FromHost::Deleted(uid) => {
                self.desired.remove(&uid);
                if self.pods.get(&uid).is_some_and(|pod| !pod.is_announced()) {
                    self.forget(&uid, "the API has the pod no more, and no plugin was asked for it");
                    self.write_changes();
                }
            }
        }
    }

    fn desire(&mut self, name: PodName, sidecars: Sidecars, hint: Option<PathBuf>) {
        let uid = name.uid.clone();
        if let Some(known) = self.pods.get(&uid).filter(|pod| pod.is_announced() && pod.add.pod != name) {
            let PodName { namespace, name: pod, .. } = &known.add.pod;
            let why = format!(
                "its UID is that of the pod {pod:?} of the namespace {namespace:?}, as that one's runtime has said"
            );
            tracing::error!(namespace = name.namespace, pod = name.name, %uid, why, "a pod that is desired is refused");
            self.hosts.tell(&ToHost::Failed { pod: name, why }, &[]);
            return;
        }
        if let Some(pod) = self.pods.get_mut(&uid)
            && pod.add.sidecars != sidecars
        {
            pod.add.sidecars = sidecars.clone();
            self.changed = true;
            self.hosts.tell_of(pod);
        }
        if self.desired.len() >= DESIRED && !self.desired.contains_key(&uid) {
            tracing::error!(desired = DESIRED, "a host names more pods than a node can have");
            return;
        }
        self.desired.insert(uid, Desired { pod: name, sidecars, hint, failure: None });
        self.next_comparison = self.next_comparison.min(Instant::now() + SOON);
    }

    /// What it says it holds is taken, or it is told to close it: only if the namespace or the port is gone for sure.
    fn hear_held(&mut self, id: HostId, endpoint: &Endpoint, descriptors: Vec<OwnedFd>) {
        let listeners = descriptors.len();
        let (namespace, pod, port) = (&endpoint.pod.namespace, &endpoint.pod.name, endpoint.port);
        match self.take_back(endpoint, descriptors) {
            Taken::Yes => self.hosts.note_handed_back(id, endpoint, listeners),
            Taken::Gone => {
                self.hosts.tell_one(id, &ToHost::Unbind { pod: endpoint.pod.uid.clone(), port }, &[]);
            }
            Taken::Unseen(why) => {
                tracing::error!(namespace, pod, port = port.get(), why, "what a host holds cannot be taken");
            }
        }
    }

    /// Takes listeners that the host or another keeper had, if they are what they should be. A pod that is not known yet, because
    /// the state file was lost, is known then.
    pub fn take_back(&mut self, endpoint: &Endpoint, descriptors: Vec<OwnedFd>) -> Taken {
        let Endpoint { pod, sandbox, netns, netns_cookie, name, port, late } = endpoint.clone();
        let uid = pod.uid.clone();
        if self.ended.contains_key(&sandbox) {
            return Taken::Gone;
        }
        let sidecar = Sidecar { name, port };
        if !self.pods.contains_key(&uid) {
            let found = match self.entrance.open(&netns) {
                Ok(found) if found.id.cookie == netns_cookie => found,
                Ok(_) => return Taken::Gone,
                Err(NetnsError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Taken::Gone,
                Err(error) => return Taken::Unseen(format!("{}: {error}", netns.display())),
            };
            let (pods, held) = (self.pods.len() + 1, self.held());
            if let Err(full) = self.capacity.allows(self.hosts.listeners_max(), pods, held, 1) {
                return Taken::Unseen(full.to_string());
            }
            let add = Add { pod, sandbox, netns, sidecars: sidecar.clone().into(), wait: Wait::Bound, late };
            let pod = Pod { learned: true, ..Pod::new(add, found) };
            pod.log("known again, by what another process held of it");
            self.pods.insert(uid.clone(), pod);
            self.changed = true;
        }
        let Some(pod) = self.pods.get_mut(&uid).filter(|pod| pod.netns.id.cookie == netns_cookie) else {
            return Taken::Gone;
        };
        if pod.learned {
            pod.add.sidecars.push(sidecar);
        }
        if !pod.add.sidecars.iter().any(|known| known.port == port) {
            return Taken::Gone;
        }
        for descriptor in descriptors {
            if let Err(error) = pod.take(port, descriptor) {
                return Taken::Unseen(format!("its listener at port {port} is not used: {error}"));
            }
        }
        Taken::Yes
    }
}
