//! Comparing what each pod should have with what is there, and mending it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use pillion_protocol::{
    annotation::Port,
    keeper::{Add, ToHost, Wait},
    name::Name,
    pod::PodUid,
};

use crate::{
    find::{self, Found},
    keeper::{Keeper, Refusal},
    netns::NetnsError,
    plan::{Action, plan},
    pod::Pod,
};

/// How late something may be said of a sandbox that has ended.
const LATE: Duration = Duration::from_secs(60);

impl Keeper {
    /// Compares what each pod should have with what is there, and mends it.
    pub(crate) fn compare(&mut self) {
        let observed = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.observe(&self.entrance))).collect();
        let held = self.pods.iter().map(|(uid, pod)| (uid, &pod.add.sidecars));
        let sought = self.desired.iter().filter(|(uid, _)| !self.pods.contains_key(uid));
        let actions = plan(held.chain(sought.map(|(uid, desired)| (uid, &desired.sidecars))), &observed);
        let mut missing = BTreeMap::new();
        for action in actions {
            match action {
                Action::Forget(uid) => self.forget(&uid, "its network namespace is gone"),
                Action::Bind(uid, port) => self.bind(&uid, port),
                Action::Close(uid, port) => self.close_port(&uid, port),
                Action::Find(uid) => {
                    let hint = self.desired.get(&uid).and_then(|desired| desired.hint.clone());
                    missing.insert(uid, hint);
                }
            }
        }
        if !missing.is_empty() {
            self.find(&missing);
        }
        self.ended.retain(|_, when| when.elapsed() < LATE);
        let bound: BTreeSet<&Name> =
            self.pods.values().flat_map(|pod| &pod.add.sidecars).map(|sidecar| &sidecar.name).collect();
        self.hosts.forget_fates(|name| bound.contains(name));
        self.write_changes();
    }

    /// Binds at `::1` where that has come with `lo`.
    pub(crate) fn bind_loopback(&mut self) {
        let missing = |pod: &Pod| {
            let ports: Vec<Port> = pod.awaiting_loopback().collect();
            if ports.is_empty() || !self.entrance.has_ipv6(&pod.netns) { Vec::new() } else { ports }
        };
        let missing: Vec<_> = self.pods.iter().map(|(uid, pod)| (uid.clone(), missing(pod))).collect();
        for (uid, ports) in missing {
            ports.into_iter().for_each(|port| self.bind(&uid, port));
        }
    }

    fn close_port(&mut self, uid: &PodUid, port: Port) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.listeners.remove(&port);
            self.hosts.tell(&ToHost::Unbind { pod: uid.clone(), port }, &[]);
        }
    }

    fn bind(&mut self, uid: &PodUid, port: Port) {
        let (pods, held) = (self.pods.len(), self.held());
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let before = pod.open();
        if let Some(listeners) = pod.listeners.get(&port) {
            listeners.listen_again();
        }
        let missing = usize::from(!pod.listeners.contains_key(&port));
        let allowed = self.capacity.allows(self.hosts.listeners_max(), pods, held, missing).map_err(Refusal::Capacity);
        let bound = allowed.and_then(|()| Ok(pod.bind(&self.entrance, port)?));
        if bound.is_err() {
            // Said once here; the next comparison tries again.
            pod.loopback_until = Instant::now();
        }
        if pod.open() > before {
            self.hosts.tell_of(pod);
        }
        match bound {
            Ok(()) if pod.is_whole(&self.entrance) => {
                // Should it fail again, that is news.
                if let Some(desired) = self.desired.get_mut(uid) {
                    desired.failure = None;
                }
            }
            Ok(()) => {}
            // After a restart the host may still have it, and hands it back when it connects.
            Err(Refusal::Bind(error)) if error.error.kind() == io::ErrorKind::AddrInUse && self.hosts.count() == 0 => {}
            Err(error) => {
                let (namespace, name) = (&pod.add.pod.namespace, &pod.add.pod.name);
                tracing::error!(namespace, pod = name, %error, "an endpoint is missing");
                self.tell_failure(uid, &error.to_string());
            }
        }
    }

    /// Looks for pods that are desired and not held, and binds what can be bound.
    fn find(&mut self, missing: &BTreeMap<PodUid, Option<PathBuf>>) {
        for (uid, found) in find::find(&self.proc, |found| self.entrance.is_node(found), missing) {
            let Some(desired) = self.desired.get(&uid) else { continue };
            let (pod, sidecars) = (desired.pod.clone(), desired.sidecars.clone());
            let netns = found.map_err(|_| NetnsError::HostNetwork).and_then(|Found { sandbox, netns }| {
                let identified = self.entrance.open(&netns)?;
                Ok((Add { pod, sandbox, netns, sidecars, wait: Wait::Bound, late: true }, identified))
            });
            match netns {
                Ok((add, netns)) => {
                    let ports: Vec<Port> = add.sidecars.iter().map(|sidecar| sidecar.port).collect();
                    let pod = Pod::new(add, netns);
                    pod.log("found");
                    self.pods.insert(uid.clone(), pod);
                    ports.into_iter().for_each(|port| self.bind(&uid, port));
                    self.changed = true;
                }
                Err(error) => self.tell_failure(&uid, &error.to_string()),
            }
        }
    }

    /// Tells the hosts once why a pod that they desire has not what it should.
    fn tell_failure(&mut self, uid: &PodUid, why: &str) {
        let Some(desired) = self.desired.get_mut(uid) else { return };
        if desired.failure.as_deref() != Some(why) {
            desired.failure = Some(why.to_owned());
            let pod = desired.pod.clone();
            tracing::warn!(namespace = pod.namespace, pod = pod.name, why, "a pod that is desired cannot be served");
            self.hosts.tell(&ToHost::Failed { pod, why: why.to_owned() }, &[]);
        }
    }
}
