//! Pods: all are watched by their metadata, and of those with the annotation the rest is asked for until they have a node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    LIVING, config, events,
    seen::Seen,
    whole::{self, Whole},
};
use crate::{
    catalog::{Departure, ListedPod, StrayPod},
    control::Control,
    serve::identity::is_of_agent,
    strays,
};

/// The most questions at once.
const ASKED: usize = 16;

/// How long to wait before a pod that could not be asked for is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// What nothing reads of a pod's metadata.
fn stray(pod: &PartialObjectMeta<Pod>) -> Option<StrayPod> {
    let strays = strays::of_pod(pod.annotations(), pod.labels());
    (!strays.is_empty()).then(|| StrayPod {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        strays: strays.into(),
    })
}

/// Follows pods, for as long as the process lives.
pub(super) async fn follow(client: Client, control: Arc<Control>) {
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
    let mut events = std::pin::pin!(events(api, config().fields(LIVING)));
    let mut pods = Pods {
        client,
        control,
        seen: HashMap::new(),
        stray: BTreeSet::new(),
        asking: JoinSet::new(),
        asked: BTreeSet::new(),
        again: BTreeSet::new(),
        departing: HashMap::new(),
        first: BTreeSet::new(),
        room: Arc::new(Semaphore::new(ASKED)),
    };
    let (mut listed, mut is_listed) = (BTreeSet::new(), false);
    let mut of_namespaces: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            Some(asked) = pods.asking.join_next() => {
                match asked {
                    Ok(Answer::Pod(uid, whole)) => pods.answered(&uid, whole),
                    Ok(Answer::Namespace(asked, whole)) => pods.listed(asked, whole),
                    Ok(Answer::Departure(uid, departure)) => pods.departed(&uid, departure),
                    Err(_) => {}
                }
            }
            event = events.next() => match event {
                None => return,
                Some(Event::Init) => {
                    listed.clear();
                    of_namespaces.clear();
                }
                Some(Event::InitApply(pod)) => {
                    // The first list says first of how many the rest is to be asked for.
                    listed.extend(if is_listed { pods.apply(&pod) } else { pods.note(&pod) });
                    if !is_listed {
                        *of_namespaces.entry(pod.namespace().unwrap_or_default()).or_default() += 1;
                    }
                }
                Some(Event::Apply(pod)) => _ = pods.apply(&pod),
                Some(Event::Delete(pod)) => {
                    if let Some(uid) = pod.uid() {
                        pods.depart(&uid);
                        pods.control.sessions.end_of_pod(&uid);
                        pods.control.set_agent(&uid, false);
                    }
                }
                Some(Event::InitDone) => {
                    let known = pods.seen.keys().chain(&pods.stray);
                    let gone: Vec<_> = known.filter(|uid| !listed.contains(*uid)).cloned().collect();
                    gone.iter().for_each(|uid| pods.depart(uid));
                    pods.control.sessions.end_of_pods_but(&listed);
                    pods.control.retain_agents(&listed);
                    listed.clear();
                    if !is_listed {
                        pods.ask_for_all(&std::mem::take(&mut of_namespaces));
                        pods.first = pods.asked.clone();
                    }
                    is_listed = true;
                }
            },
        }
        // One that cannot be read does not keep everybody else from being served.
        if is_listed && pods.first.is_empty() {
            pods.control.list_is_complete(|listed| listed.pods = true);
        }
    }
}

/// What was asked for.
enum Answer {
    /// A pod, by its UID; `None` if there was no answer.
    Pod(String, Option<Whole>),
    /// Pods, by their UIDs, among all of their namespace.
    Namespace(Vec<String>, HashMap<String, Whole>),
    /// How the pod of this UID went; `None` if there was no answer.
    Departure(String, Option<Departure>),
}

struct Pods {
    client: Client,
    control: Arc<Control>,
    /// Those with the annotation.
    seen: HashMap<String, Seen>,
    /// Those with annotations or labels that nothing reads.
    stray: BTreeSet<String>,
    asking: JoinSet<Answer>,
    /// Those that are asked for.
    asked: BTreeSet<String>,
    /// Of these, those that have changed meanwhile.
    again: BTreeSet<String>,
    /// Those that are watched no more, and of which it is not known yet how they went.
    departing: HashMap<String, Seen>,
    /// Of the first list those that there was no answer of yet, not even that they cannot be read.
    first: BTreeSet<String>,
    room: Arc<Semaphore>,
}

impl Pods {
    /// What metadata says of a pod, if it has the annotation.
    fn seen(&self, pod: &PartialObjectMeta<Pod>) -> Option<Seen> {
        let settings = &self.control.settings;
        let in_namespace = pod.namespace().as_ref() == Some(&settings.namespace);
        if let Some(uid) = pod.uid().filter(|_| in_namespace && is_of_agent(pod.owner_references(), settings)) {
            self.control.set_agent(&uid, true);
        }
        Seen::of(pod, &self.control.settings.static_pod_namespaces)
    }

    /// A pod is new or has changed. Gives its UID.
    fn apply(&mut self, pod: &PartialObjectMeta<Pod>) -> Option<String> {
        let uid = pod.uid()?;
        self.set_stray(&uid, stray(pod));
        match self.seen(pod) {
            Some(seen) if seen.deleted => self.unsee(&uid, Departure::Deleted),
            Some(seen) => self.see(&uid, seen),
            None => self.unsee(&uid, Departure::Ended),
        }
        Some(uid)
    }

    /// A pod is there, and the rest of it is asked for later. Gives its UID.
    fn note(&mut self, pod: &PartialObjectMeta<Pod>) -> Option<String> {
        let uid = pod.uid()?;
        self.set_stray(&uid, stray(pod));
        if let Some(seen) = self.seen(pod).filter(|seen| !seen.deleted) {
            self.seen.insert(uid.clone(), seen);
        }
        Some(uid)
    }

    fn see(&mut self, uid: &str, seen: Seen) {
        self.departing.remove(uid);
        let known = self.control.catalog().pod(uid).map(Whole::from);
        let before = self.seen.insert(uid.to_owned(), seen.clone());
        match known {
            // Where it is and whom it runs as never changes.
            Some(known) if before.as_ref() != Some(&seen) => self.set(uid, seen, known),
            Some(_) => {}
            None => self.ask(uid.to_owned(), seen.namespace, seen.name, Duration::ZERO),
        }
    }

    fn set_stray(&mut self, uid: &str, stray: Option<StrayPod>) {
        let is_stray = stray.is_some();
        let changed = match &stray {
            Some(_) => self.control.catalog().stray(uid) != stray.as_ref(),
            None => self.stray.remove(uid),
        };
        if is_stray {
            self.stray.insert(uid.to_owned());
        }
        if changed {
            self.control.set_stray(uid, stray);
        }
    }

    /// It has no sidecars.
    fn unsee(&mut self, uid: &str, how: Departure) {
        if self.seen.remove(uid).is_some() {
            self.control.remove_pod(uid, how);
        }
    }

    /// A pod is watched no more: it has ended, or was deleted, and the watch does not say which.
    fn depart(&mut self, uid: &str) {
        self.set_stray(uid, None);
        let Some(seen) = self.seen.remove(uid) else { return };
        self.ask_how(uid.to_owned(), &seen, Duration::ZERO);
        self.departing.insert(uid.to_owned(), seen);
    }

    fn ask_how(&mut self, uid: String, seen: &Seen, pause: Duration) {
        let (client, room) = (self.client.clone(), Arc::clone(&self.room));
        let (namespace, name) = (seen.namespace.clone(), seen.name.clone());
        self.asking.spawn(async move {
            tokio::time::sleep(pause).await;
            let _room = room.acquire().await;
            let how = whole::departure(client, &namespace, &name, &uid).await;
            Answer::Departure(uid, how)
        });
    }

    fn departed(&mut self, uid: &str, how: Option<Departure>) {
        // One that is watched again has not gone.
        let Some(seen) = self.departing.remove(uid) else { return };
        match how {
            Some(how) => self.control.remove_pod(uid, how),
            None => {
                self.ask_how(uid.to_owned(), &seen, AGAIN);
                self.departing.insert(uid.to_owned(), seen);
            }
        }
    }

    /// Asks for a whole pod, unless that is being done: then it is asked for again afterwards, if it still has no node.
    fn ask(&mut self, uid: String, namespace: String, name: String, pause: Duration) {
        if !self.asked.insert(uid.clone()) {
            self.again.insert(uid);
            return;
        }
        let (client, room) = (self.client.clone(), Arc::clone(&self.room));
        self.asking.spawn(async move {
            tokio::time::sleep(pause).await;
            let _room = room.acquire().await;
            let whole = whole::get(client, &namespace, &name, &uid).await;
            Answer::Pod(uid, whole)
        });
    }

    /// Asks for those of the first list, of which there are so many in each namespace.
    fn ask_for_all(&mut self, of_namespaces: &BTreeMap<String, usize>) {
        let mut annotated: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (uid, seen) in &self.seen {
            annotated.entry(seen.namespace.clone()).or_default().push(uid.clone());
        }
        for (namespace, uids) in annotated {
            let all = of_namespaces.get(&namespace).copied().unwrap_or_default();
            if whole::is_better_listed(uids.len(), all) {
                self.ask_for_namespace(namespace, uids);
                continue;
            }
            for uid in uids {
                if let Some(name) = self.seen.get(&uid).map(|seen| seen.name.clone()) {
                    self.ask(uid, namespace.clone(), name, Duration::ZERO);
                }
            }
        }
    }

    fn ask_for_namespace(&mut self, namespace: String, uids: Vec<String>) {
        self.asked.extend(uids.iter().cloned());
        let (client, room) = (self.client.clone(), Arc::clone(&self.room));
        self.asking.spawn(async move {
            let _room = room.acquire().await;
            let whole = whole::list(client, &namespace).await;
            Answer::Namespace(uids, whole)
        });
    }

    /// Those of a namespace were asked for. One that is not among its pods may be younger, or was not answered of.
    fn listed(&mut self, asked: Vec<String>, mut whole: HashMap<String, Whole>) {
        for uid in asked {
            match (whole.remove(&uid), self.seen.get(&uid).cloned()) {
                (Some(whole), _) => self.answered(&uid, Some(whole)),
                (None, Some(Seen { namespace, name, .. })) => {
                    self.asked.remove(&uid);
                    self.ask(uid, namespace, name, Duration::ZERO);
                }
                (None, None) => self.answered(&uid, None),
            }
        }
    }

    fn answered(&mut self, uid: &str, whole: Option<Whole>) {
        self.asked.remove(uid);
        self.first.remove(uid);
        let again = self.again.remove(uid);
        let Some(seen) = self.seen.get(uid).cloned() else { return };
        match whole {
            Some(whole) if whole.node.is_none() && again => {
                self.ask(uid.to_owned(), seen.namespace, seen.name, Duration::ZERO);
            }
            Some(whole) => self.set(uid, seen, whole),
            None => self.ask(uid.to_owned(), seen.namespace, seen.name, AGAIN),
        }
    }

    /// One without a node is asked for again when it changes, as it does when it gets one.
    fn set(&self, uid: &str, seen: Seen, whole: Whole) {
        let (Some(node), Ok(runtime_uid)) = (whole.node, seen.runtime_uid.parse()) else { return };
        let Seen { namespace, name, annotation, doubt, .. } = seen;
        let pod = pillion_protocol::pod::Pod { uid: runtime_uid, namespace, name };
        let Whole { service_account, host_network, claims, gated, runtime_class, .. } = whole;
        let (node, sidecars) = (node.into(), annotation.parse());
        let listed =
            ListedPod { pod, node, service_account, doubt, host_network, claims, gated, runtime_class, sidecars };
        self.control.set_pod(uid, listed);
    }
}

impl From<&ListedPod> for Whole {
    fn from(pod: &ListedPod) -> Self {
        Self {
            node: Some(pod.node.to_string()),
            service_account: pod.service_account.clone(),
            host_network: pod.host_network,
            claims: pod.claims.clone(),
            gated: pod.gated,
            runtime_class: pod.runtime_class.clone(),
        }
    }
}
