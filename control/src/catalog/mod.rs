//! What is known of components and pods, and what each node needs of it. Decides, and does no IO.
//!
//! A change says which nodes it may matter to; nobody else's view is looked at. What a node is told is the difference between its
//! view and what it has, whether that is a change, a first snapshot, or what it missed.

mod network;
mod strays;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use pillion_protocol::{
    annotation::{AnnotationError, Sidecars},
    id::ComponentId,
    name::Name,
    pod::{Pod, PodUid},
    stream::{Version, WantedComponent},
};
use sha2::{Digest, Sha256};

pub use self::{
    network::isolates,
    strays::StrayPod,
    view::{View, difference},
};
use crate::{
    claims::Claim,
    resource::{Access, Rejection},
};

/// A node's name.
pub type NodeName = Arc<str>;

/// A pod's UID in the API; a static pod's runtime knows it by another.
pub type ApiUid = Arc<str>;

/// Components, pods, and where they are.
#[derive(Default)]
pub struct Catalog {
    /// Those of namespaces, and those of the cluster, which have none.
    components: BTreeMap<ComponentId, Published>,
    /// Names of those of the cluster that come before those of namespaces.
    finals: BTreeSet<Name>,
    pods: HashMap<ApiUid, ListedPod>,
    by_node: HashMap<NodeName, BTreeSet<ApiUid>>,
    /// By the components that they name.
    by_name: HashMap<Name, BTreeSet<ApiUid>>,
    /// Pods that were seen to go, by node. Only of these a node is told so.
    gone: HashMap<NodeName, VecDeque<(PodUid, Departure)>>,
    /// Pods with annotations or labels that nothing reads, whether they have sidecars or not.
    strays: HashMap<ApiUid, StrayPod>,
    /// Handlers of runtime classes.
    runtime_classes: HashMap<String, String>,
}

/// So many of a node's pods that have gone are remembered: a node that comes back later learns it from their namespaces.
const GONE: usize = 1_000;

/// How a pod went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It has ended, or lost the annotation.
    Ended,
    /// The API has it no more. Its containers may still run: a static pod's, whose copy it was; those of one that was deleted by force.
    Deleted,
}

/// A component as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// What it is, or why it is not accepted.
    pub accepted: Result<Arc<WantedComponent>, Rejection>,
    /// Whose pods may have it; `None` for everybody's that see it.
    pub access: Option<Access>,
    /// The version of what it is.
    version: Version,
}

/// A pod with the annotation, on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPod {
    /// The pod, by the UID that its runtime knows.
    pub pod: Pod,
    /// Its node.
    pub node: NodeName,
    /// Whom it runs as.
    pub service_account: String,
    /// Why it is not believed to be the static pod's copy that it says it is.
    pub doubt: Option<String>,
    /// It has the node's network.
    pub host_network: bool,
    /// The ports that its containers say are theirs.
    pub claims: Box<[Claim]>,
    /// It counts as ready only when its sidecars are served.
    pub gated: bool,
    /// What runs it, if that is not what usually does.
    pub runtime_class: Option<String>,
    /// What its annotation says, or what is wrong with it.
    pub sidecars: Result<Sidecars, AnnotationError>,
}

impl ListedPod {
    /// The component of this name as the pod's namespace sees it.
    pub fn seen_as(&self, name: &Name) -> Option<ComponentId> {
        Some(ComponentId::in_namespace(self.pod.namespace.parse().ok()?, name.clone()))
    }

    /// What a name may mean to the pod: a component of its namespace, else the cluster's.
    pub fn meanings(&self, name: &Name) -> impl Iterator<Item = ComponentId> + use<> {
        self.seen_as(name).into_iter().chain([ComponentId::from(name.clone())])
    }
}

impl Published {
    /// A component.
    pub fn new(accepted: Result<WantedComponent, Rejection>, access: Option<Access>) -> Self {
        let version = match &accepted {
            Ok(wanted) => version_of(wanted),
            Err(rejection) => version_of(rejection),
        };
        Self { accepted: accepted.map(Arc::new), access, version }
    }

    /// The same, for others' pods.
    #[must_use]
    pub fn with_access(self, access: Option<Access>) -> Self {
        Self { access, ..self }
    }

    /// The version of what it is, as nodes are told it.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

/// The version of a content: two that are the same have the same, in every replica.
fn version_of(content: &impl serde::Serialize) -> Version {
    let text = serde_json::to_vec(content).unwrap_or_default();
    let hash = Sha256::digest(text);
    Version(hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

impl Catalog {
    /// A component is new or has changed; `None` if it is no more. Gives the nodes that this may matter to.
    pub fn publish(&mut self, id: ComponentId, published: Option<Published>) -> BTreeSet<NodeName> {
        if self.components.get(&id) == published.as_ref() {
            return BTreeSet::new();
        }
        match published {
            Some(published) => _ = self.components.insert(id.clone(), published),
            None => _ = self.components.remove(&id),
        }
        let named = self.by_name.get(&id.name).into_iter().flatten().filter_map(|uid| self.pods.get(uid));
        let sees = |pod: &&ListedPod| id.namespace.as_ref().is_none_or(|of| of.as_str() == pod.pod.namespace);
        named.filter(sees).map(|pod| Arc::clone(&pod.node)).collect()
    }

    /// Whether the cluster's component of a name comes before those of namespaces. Gives the components and the nodes that a change matters to.
    pub fn set_final(&mut self, name: &Name, is_final: bool) -> (BTreeSet<ComponentId>, BTreeSet<NodeName>) {
        let changed = if is_final { self.finals.insert(name.clone()) } else { self.finals.remove(name) };
        if !changed {
            return Default::default();
        }
        let named = self.components.keys().filter(|id| id.name == *name).cloned().collect();
        let pods = self.by_name.get(name).into_iter().flatten().filter_map(|uid| self.pods.get(uid));
        (named, pods.map(|pod| Arc::clone(&pod.node)).collect())
    }

    /// Whether pods of a component's namespace get the cluster's in its place.
    pub fn is_overruled(&self, id: &ComponentId) -> bool {
        id.namespace.is_some() && self.finals.contains(&id.name)
    }

    /// A component that is published.
    pub fn published(&self, id: &ComponentId) -> Option<&Published> {
        self.components.get(id)
    }

    /// The components there are.
    pub fn components(&self) -> impl Iterator<Item = (&ComponentId, &Published)> {
        self.components.iter()
    }

    /// A pod is new or has changed. Gives the nodes that this may matter to.
    pub fn set_pod(&mut self, uid: ApiUid, pod: ListedPod) -> BTreeSet<NodeName> {
        if self.pods.get(&uid) == Some(&pod) {
            return BTreeSet::new();
        }
        if self.is_known_by_another(&uid, &pod) {
            tracing::error!(
                namespace = pod.pod.namespace, pod = pod.pod.name, uid = %pod.pod.uid,
                "a pod says that it is another one of its node: it is ignored"
            );
            return BTreeSet::new();
        }
        let mut nodes = self.take_out(&uid).map(|before| before.node).into_iter().collect::<BTreeSet<_>>();
        if let Some(gone) = self.gone.get_mut(&pod.node) {
            gone.retain(|(gone, _)| *gone != pod.pod.uid);
        }
        nodes.insert(Arc::clone(&pod.node));
        self.by_node.entry(Arc::clone(&pod.node)).or_default().insert(Arc::clone(&uid));
        for sidecar in pod.sidecars.iter().flatten() {
            self.by_name.entry(sidecar.name.clone()).or_default().insert(Arc::clone(&uid));
        }
        self.pods.insert(uid, pod);
        nodes
    }

    /// A pod has gone. Gives the nodes that this may matter to.
    pub fn remove_pod(&mut self, uid: &str, how: Departure) -> BTreeSet<NodeName> {
        let Some(pod) = self.take_out(uid) else { return BTreeSet::new() };
        let gone = self.gone.entry(Arc::clone(&pod.node)).or_default();
        gone.push_back((pod.pod.uid.clone(), how));
        gone.drain(..gone.len().saturating_sub(GONE));
        BTreeSet::from([pod.node])
    }

    /// Whether another pod of the node has this one's UID there: its annotations say so, and anybody may write those.
    fn is_known_by_another(&self, uid: &str, pod: &ListedPod) -> bool {
        let mut others = self.by_node.get(&pod.node).into_iter().flatten().filter(|other| &***other != uid);
        others.any(|other| self.pods.get(other).is_some_and(|other| other.pod.uid == pod.pod.uid))
    }

    fn take_out(&mut self, uid: &str) -> Option<ListedPod> {
        let pod = self.pods.remove(uid)?;
        remove_from(&mut self.by_node, &pod.node, uid);
        for sidecar in pod.sidecars.iter().flatten() {
            remove_from(&mut self.by_name, &sidecar.name, uid);
        }
        Some(pod)
    }

    /// Pods of a node that were seen to go.
    pub fn gone(&self, node: &str) -> impl Iterator<Item = &(PodUid, Departure)> {
        self.gone.get(node).into_iter().flatten()
    }

    /// A pod that is known.
    pub fn pod(&self, uid: &str) -> Option<&ListedPod> {
        self.pods.get(uid)
    }

    /// The pods that are known.
    pub fn pods(&self) -> impl Iterator<Item = (&ApiUid, &ListedPod)> {
        self.pods.iter()
    }

    /// The pods that name a component of this name.
    pub fn pods_naming(&self, name: &Name) -> impl Iterator<Item = &ApiUid> {
        self.by_name.get(name).into_iter().flatten()
    }

    /// The pods of a node.
    pub fn uids_on(&self, node: &str) -> Vec<ApiUid> {
        self.by_node.get(node).into_iter().flatten().map(ApiUid::clone).collect()
    }

    /// The nodes that have pods with sidecars.
    pub fn nodes(&self) -> BTreeSet<NodeName> {
        self.by_node.keys().map(NodeName::clone).collect()
    }

    /// What a name means to a pod: the component of its namespace, else the cluster's; only the cluster's if that is final.
    pub fn resolve(&self, pod: &ListedPod, name: &Name) -> Option<(ComponentId, &Published)> {
        pod.meanings(name)
            .filter(|id| !self.is_overruled(id))
            .find_map(|id| Some((id.clone(), self.components.get(&id)?)))
    }

    /// The nodes whose pods have this component.
    pub fn nodes_of(&self, id: &ComponentId) -> BTreeMap<NodeName, BTreeSet<ComponentId>> {
        let mut nodes: BTreeMap<NodeName, BTreeSet<ComponentId>> = BTreeMap::new();
        let named = self.by_name.get(&id.name).into_iter().flatten().filter_map(|uid| self.pods.get(uid));
        for pod in named.filter(|pod| self.unreachable(pod).is_none()) {
            let Some((resolved, published)) = self.resolve(pod, &id.name) else { continue };
            let Some(seen) = pod.seen_as(&id.name) else { continue };
            if resolved == *id && is_allowed(published, pod) {
                nodes.entry(Arc::clone(&pod.node)).or_default().insert(seen);
            }
        }
        nodes
    }
}

fn is_allowed(published: &Published, pod: &ListedPod) -> bool {
    let allows = |access: &Access| access.allows(&pod.pod.namespace, &pod.service_account);
    published.access.as_ref().is_none_or(allows)
}

/// Removes an entry, and the set that it was the last of.
fn remove_from<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<ApiUid>>, key: &K, uid: &str) {
    if let Some(uids) = index.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
