//! The Kubernetes watches that feed the catalog.
//!
//! Of most pods nothing is kept, and only their metadata ever travels: those with the annotation are asked for whole until they have a
//! node. A watch that ends is begun again; what a new list does not have is no more.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::{core::v1::Pod, node::v1::RuntimeClass};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use pillion_protocol::{annotation::SIDECARS, id::ComponentId};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    catalog::ListedPod,
    control::Control,
    references::References,
    resource::{Access, ClusterComponent, Component, Spec},
};

/// Pods that have ended are none to us.
const LIVING: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// The annotation by which a static pod's runtime knows it.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The most pods that are asked for at once.
const ASKED: usize = 16;

/// How long the API server may take for one of them.
const ANSWER: Duration = Duration::from_secs(10);

/// A watch is begun again after so many seconds, whatever comes: one that hangs is not noticed otherwise.
const WATCH: u32 = 60;

/// How long to wait before a pod that could not be asked for is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows what there is, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    let references = References::new(client.clone(), Arc::clone(&control));
    let components = Api::<Component>::all(client.clone());
    let cluster_components = Api::<ClusterComponent>::all(client.clone());
    tokio::join!(
        follow_components(
            components,
            &references,
            |component| (&component.spec.spec, None),
            || control.list_is_complete(|listed| listed.components = true),
        ),
        follow_components(
            cluster_components,
            &references,
            |component| (&component.spec.spec, component.spec.access.clone()),
            || control.list_is_complete(|listed| listed.cluster_components = true),
        ),
        references.follow(),
        follow_runtime_classes(Api::all(client.clone()), &control),
        follow_pods(client, Arc::clone(&control)),
    );
}

/// Runtime classes of which it matters what they are. One that is deleted keeps its pods as they are.
async fn follow_runtime_classes(api: Api<RuntimeClass>, control: &Control) {
    let mut events = std::pin::pin!(events(api, config()));
    while let Some(event) = events.next().await {
        if let Event::InitApply(class) | Event::Apply(class) = event {
            control.set_runtime_class(&class.name_any(), class.handler);
        }
    }
}

/// How things are watched.
pub(crate) fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH)
}

/// A watch that is begun again whatever ends it, ever more slowly.
pub(crate) fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    watcher::watcher(api, config)
        .default_backoff()
        .inspect_err(|error| tracing::warn!(%error, "a watch of the API server's is begun again"))
        .filter_map(|event| async { event.ok() })
}

async fn follow_components<K>(
    api: Api<K>,
    references: &References,
    read: impl Fn(&K) -> (&Spec, Option<Access>),
    complete: impl Fn(),
) where
    K: Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let mut events = std::pin::pin!(events(api, config()));
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(ref component) | Event::Apply(ref component) => {
                let Some(id) = id_of(component) else { continue };
                let (spec, access) = read(component);
                references.publish(id.clone(), spec, access).await;
                known.insert(id.clone());
                if matches!(event, Event::InitApply(_)) {
                    listed.insert(id);
                }
            }
            Event::Delete(component) => {
                let Some(id) = id_of(&component) else { continue };
                known.remove(&id);
                references.remove(id).await;
            }
            Event::InitDone => {
                for id in known.extract_if(.., |id| !listed.contains(id)) {
                    references.remove(id).await;
                }
                complete();
            }
        }
    }
}

/// A component whose name is none of ours cannot be named by a pod.
fn id_of(component: &impl ResourceExt) -> Option<ComponentId> {
    let name = component.name_any().parse().ok()?;
    match component.namespace() {
        Some(namespace) => Some(ComponentId::in_namespace(namespace.parse().ok()?, name)),
        None => Some(ComponentId::from(name)),
    }
}

/// What metadata says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    namespace: String,
    name: String,
    /// The UID by which its runtime knows it.
    runtime_uid: String,
    is_mirror: bool,
    annotation: String,
}

fn seen(pod: &PartialObjectMeta<Pod>) -> Option<Seen> {
    let annotations = pod.annotations();
    // Anybody may write the annotation; the owner at least only with some right.
    let is_nodes = pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "Node");
    let mirror = annotations.get(MIRROR).filter(|_| is_nodes);
    Some(Seen {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        is_mirror: mirror.is_some(),
        runtime_uid: mirror.cloned().or_else(|| pod.uid())?,
        annotation: annotations.get(SIDECARS)?.clone(),
    })
}

/// What the whole pod says of it.
#[derive(Default)]
struct Whole {
    node: Option<String>,
    service_account: String,
    host_network: bool,
    runtime_class: Option<String>,
}

impl From<&ListedPod> for Whole {
    fn from(pod: &ListedPod) -> Self {
        Self {
            node: Some(pod.node.to_string()),
            service_account: pod.service_account.clone(),
            host_network: pod.host_network,
            runtime_class: pod.runtime_class.clone(),
        }
    }
}

async fn follow_pods(client: Client, control: Arc<Control>) {
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
    let mut events = std::pin::pin!(events(api, config().fields(LIVING)));
    let mut pods = Pods {
        client,
        control,
        seen: HashMap::new(),
        asking: JoinSet::new(),
        asked: BTreeSet::new(),
        again: BTreeSet::new(),
        first: BTreeSet::new(),
        room: Arc::new(Semaphore::new(ASKED)),
    };
    let (mut listed, mut is_listed) = (BTreeSet::new(), false);
    loop {
        tokio::select! {
            biased;
            Some(asked) = pods.asking.join_next() => {
                if let Ok((uid, whole)) = asked {
                    pods.answered(&uid, whole);
                }
            }
            event = events.next() => match event {
                None => return,
                Some(Event::Init) => listed.clear(),
                Some(Event::InitApply(ref pod)) => listed.extend(pods.apply(pod)),
                Some(Event::Apply(ref pod)) => _ = pods.apply(pod),
                Some(Event::Delete(pod)) => {
                    if let Some(uid) = pod.uid() {
                        pods.remove(&uid);
                        pods.control.sessions.end_of_pod(&uid);
                    }
                }
                Some(Event::InitDone) => {
                    let gone: Vec<_> = pods.seen.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    gone.iter().for_each(|uid| pods.remove(uid));
                    pods.control.sessions.end_of_pods_but(&listed);
                    listed.clear();
                    if !is_listed {
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

struct Pods {
    client: Client,
    control: Arc<Control>,
    /// Those with the annotation.
    seen: HashMap<String, Seen>,
    asking: JoinSet<(String, Option<Whole>)>,
    /// Those that are asked for.
    asked: BTreeSet<String>,
    /// Of these, those that have changed meanwhile.
    again: BTreeSet<String>,
    /// Of the first list those that there was no answer of yet, not even that they cannot be read.
    first: BTreeSet<String>,
    room: Arc<Semaphore>,
}

impl Pods {
    /// A pod is new or has changed. Gives its UID.
    fn apply(&mut self, pod: &PartialObjectMeta<Pod>) -> Option<String> {
        let uid = pod.uid()?;
        match seen(pod) {
            Some(seen) => self.see(&uid, seen),
            None => self.remove(&uid),
        }
        Some(uid)
    }

    fn see(&mut self, uid: &str, seen: Seen) {
        let known = self.control.catalog().pod(uid).map(Whole::from);
        let before = self.seen.insert(uid.to_owned(), seen.clone());
        match known {
            // Where it is and whom it runs as never changes.
            Some(known) if before.as_ref() != Some(&seen) => self.set(uid, seen, known),
            Some(_) => {}
            None => self.ask(uid.to_owned(), seen.namespace, seen.name, Duration::ZERO),
        }
    }

    fn remove(&mut self, uid: &str) {
        if self.seen.remove(uid).is_some() {
            self.control.remove_pod(uid);
        }
    }

    /// Asks for a whole pod, unless that is being done: then it is asked for again afterwards, if it still has no node.
    fn ask(&mut self, uid: String, namespace: String, name: String, pause: Duration) {
        if !self.asked.insert(uid.clone()) {
            self.again.insert(uid);
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let room = Arc::clone(&self.room);
        self.asking.spawn(async move {
            tokio::time::sleep(pause).await;
            let _room = room.acquire().await;
            let answer = timeout(ANSWER, api.get_opt(&name)).await.map_err(|_| "no answer".to_owned());
            let whole = match answer.and_then(|answer| answer.map_err(|error| error.to_string())) {
                Ok(Some(pod)) if pod.uid().as_deref() == Some(&uid) => Some(whole(&pod)),
                // It is no more, as the watch will say.
                Ok(_) => Some(Whole::default()),
                Err(error) => {
                    tracing::warn!(namespace, pod = name, %error, "a pod cannot be read; it is tried again");
                    None
                }
            };
            (uid, whole)
        });
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
        let Seen { namespace, name, annotation, is_mirror, .. } = seen;
        let pod = pillion_protocol::pod::Pod { uid: runtime_uid, namespace, name };
        let Whole { service_account, host_network, runtime_class, .. } = whole;
        let (node, sidecars) = (node.into(), annotation.parse());
        self.control
            .set_pod(uid, ListedPod { pod, node, service_account, is_mirror, host_network, runtime_class, sidecars });
    }
}

fn whole(pod: &Pod) -> Whole {
    let spec = pod.spec.as_ref();
    let text = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    Whole {
        node: text(spec.and_then(|spec| spec.node_name.as_ref())),
        service_account: text(spec.and_then(|spec| spec.service_account_name.as_ref()))
            .unwrap_or_else(|| "default".into()),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        runtime_class: text(spec.and_then(|spec| spec.runtime_class_name.as_ref())),
    }
}
