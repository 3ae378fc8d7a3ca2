//! What control knows and who listens, and what a change of the one means to the other.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use pillion_protocol::{
    id::ComponentId,
    name::Name,
    resolution::{Question, Resolution},
    stream::{Report, WantedComponent},
};
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    catalog::{ApiUid, Catalog, Departure, ListedPod, NodeName, Published, StrayPod, View},
    resolve::Images,
    resource::{Access, Rejection},
    serve::session::Sessions,
    settings::Settings,
};

/// Tokens that the API server is asked about at once: those that say they are of a pod of the agent's that there is, and others.
const LIKELY_REVIEWS: usize = 16;
const REVIEWS: usize = 4;

/// One replica of control.
pub struct Control {
    /// How it works.
    pub settings: Settings,
    /// The streams of nodes.
    pub sessions: Sessions,
    /// Tokens that may be asked about at once and say they are of a pod of the agent's that there is.
    pub likely_reviews: Semaphore,
    /// The same for all other tokens.
    pub reviews: Semaphore,
    /// The UIDs of the agent's pods.
    agents: RwLock<HashSet<String>>,
    /// Whether this replica serves nodes and writes.
    pub leading: watch::Sender<Leading>,
    /// Locked before the catalog, where both are.
    images: Mutex<Images>,
    catalog: RwLock<Catalog>,
    listed: watch::Sender<Listed>,
    reports: Mutex<HashMap<NodeName, Report>>,
    /// Nodes that have pods with sidecars, and have had no agent for some time.
    absent: Mutex<BTreeSet<NodeName>>,
    /// Components whose registries are to be asked.
    unresolved: Due<ComponentId>,
    /// Components whose status may be another one.
    unsettled: Due<ComponentId>,
    /// Pods whose sidecars may be served or not otherwise than before.
    changed_pods: Due<ApiUid>,
    /// Of these, those that count as ready only when their sidecars are served.
    gated_pods: Due<ApiUid>,
}

/// What is to be looked at again.
struct Due<T> {
    things: Mutex<BTreeSet<T>>,
    is_new: Notify,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self { things: Mutex::default(), is_new: Notify::new() }
    }
}

impl<T: Ord> Due<T> {
    fn add(&self, things: impl IntoIterator<Item = T>) {
        self.things.lock().unwrap_or_else(PoisonError::into_inner).extend(things);
        self.is_new.notify_one();
    }

    async fn take(&self) -> BTreeSet<T> {
        loop {
            let things = std::mem::take(&mut *self.things.lock().unwrap_or_else(PoisonError::into_inner));
            if !things.is_empty() {
                return things;
            }
            self.is_new.notified().await;
        }
    }
}

/// Whether this replica serves nodes and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leading {
    /// It does.
    Yes,
    /// Another one does, as far as this one knows.
    Other(String),
    /// Nobody is known to.
    #[default]
    Nobody,
}

/// Which lists of the API server's are complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Components of namespaces.
    pub components: bool,
    /// Components of the cluster.
    pub cluster_components: bool,
    /// Pods, and the nodes of those with the annotation.
    pub pods: bool,
    /// Runtime classes.
    pub runtime_classes: bool,
}

impl Listed {
    /// Whether all of them are: before, what is not known is not known to be absent.
    pub fn is_complete(self) -> bool {
        self.components && self.cluster_components && self.pods && self.runtime_classes
    }
}

impl Control {
    /// A replica that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            sessions: Sessions::default(),
            likely_reviews: Semaphore::new(LIKELY_REVIEWS),
            reviews: Semaphore::new(REVIEWS),
            agents: RwLock::default(),
            leading: watch::Sender::default(),
            images: Mutex::default(),
            catalog: RwLock::default(),
            listed: watch::Sender::default(),
            reports: Mutex::default(),
            absent: Mutex::default(),
            unresolved: Due::default(),
            unsettled: Due::default(),
            changed_pods: Due::default(),
            gated_pods: Due::default(),
        }
    }

    /// A pod of the agent's is there, or is no more.
    pub fn set_agent(&self, uid: &str, is_there: bool) {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        if is_there {
            agents.insert(uid.to_owned())
        } else {
            agents.remove(uid)
        };
    }

    /// No other pods are there than these.
    pub fn retain_agents(&self, uids: &BTreeSet<String>) {
        self.agents.write().unwrap_or_else(PoisonError::into_inner).retain(|uid| uids.contains(uid));
    }

    /// Whether a pod of the agent's has this UID, as far as the watch has said.
    pub fn is_agent(&self, uid: &str) -> bool {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// What is known of components and pods.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Catalog) -> BTreeSet<NodeName>) {
        let nodes = change(&mut self.catalog.write().unwrap_or_else(PoisonError::into_inner));
        self.sessions.tell(&nodes);
    }

    /// A component is new or has changed; `resolved` is what its status has of its image, if it was looked at.
    pub fn accept(
        &self,
        id: ComponentId,
        accepted: Result<WantedComponent, Rejection>,
        access: Option<Access>,
        resolved: Option<&str>,
    ) {
        let mut images = self.images();
        let before = self.catalog().published(&id).cloned();
        let (published, ask) = images.accept(&id, accepted, access, resolved, before.as_ref());
        // Still locked: what is decided later is published later.
        self.publish(id.clone(), Some(published));
        if ask {
            self.unresolved.add([id]);
        }
    }

    /// A component is no more.
    pub fn remove(&self, id: ComponentId) {
        let mut images = self.images();
        images.remove(&id);
        self.publish(id, None);
    }

    /// What is known of components' images.
    pub fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registries of components are to be asked, if they have not said what they are to say.
    pub fn ask_registries_for(&self, ids: impl IntoIterator<Item = ComponentId>) {
        self.unresolved.add(ids);
    }

    /// The same, for all components.
    pub fn ask_registries_for_all(&self) {
        let open: Vec<_> = self.images().open().cloned().collect();
        self.ask_registries_for(open);
    }

    /// Waits for components whose registries are to be asked.
    pub async fn unresolved(&self) -> BTreeSet<ComponentId> {
        self.unresolved.take().await
    }

    /// A registry was asked. Gives how often that was in vain, if it is to be asked again.
    pub fn resolve(&self, id: &ComponentId, question: &Question, resolution: Resolution) -> Option<u32> {
        let mut images = self.images();
        let (published, again) = images.resolve(id, question, resolution)?;
        self.publish(id.clone(), Some(published));
        again
    }

    fn publish(&self, id: ComponentId, published: Option<Published>) {
        self.change(|catalog| catalog.publish(id.clone(), published));
        let named: Vec<_> = self.catalog().pods_naming(&id.name).map(ApiUid::clone).collect();
        self.look_at(named);
        // One that comes before the cluster's changes what the cluster's is for, too.
        self.unsettle([ComponentId::from(id.name.clone()), id]);
    }

    /// Whether the cluster's component of a name comes before those of namespaces.
    pub fn set_final(&self, name: &Name, is_final: bool) {
        let mut components = BTreeSet::new();
        self.change(|catalog| {
            let (changed, nodes) = catalog.set_final(name, is_final);
            components = changed;
            nodes
        });
        if !components.is_empty() {
            let named: Vec<_> = self.catalog().pods_naming(name).map(ApiUid::clone).collect();
            self.look_at(named);
            self.unsettle(components);
        }
    }

    /// What runs the pods of a runtime class.
    pub fn set_runtime_class(&self, class: &str, handler: String) {
        let mut pods = BTreeSet::new();
        self.change(|catalog| {
            pods = catalog.set_runtime_class(class, handler);
            pods.iter().filter_map(|uid| Some(NodeName::clone(&catalog.pod(uid)?.node))).collect()
        });
        let named: Vec<_> = pods.iter().filter_map(|uid| self.catalog().pod(uid).map(names)).flatten().collect();
        self.unsettle(named);
        self.look_at(pods);
    }

    /// A pod is new or has changed.
    pub fn set_pod(&self, uid: &str, pod: ListedPod) {
        let before = self.catalog().pod(uid).map(names).unwrap_or_default();
        let now = names(&pod);
        self.change(|catalog| catalog.set_pod(uid.into(), pod));
        self.unsettle(before.into_iter().chain(now));
        self.look_at([uid.into()]);
    }

    /// A pod has gone.
    pub fn remove_pod(&self, uid: &str, how: Departure) {
        let before = self.catalog().pod(uid).map(names).unwrap_or_default();
        self.change(|catalog| catalog.remove_pod(uid, how));
        self.unsettle(before);
        self.look_at([uid.into()]);
    }

    /// A pod has annotations or labels that nothing reads, or has none of these any more.
    pub fn set_stray(&self, uid: &str, stray: Option<StrayPod>) {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner).set_stray(uid.into(), stray);
        self.look_at([uid.into()]);
    }

    /// Nodes with pods have had no agent for some time; what there is to tell of these has `changed`.
    pub fn set_absent(&self, nodes: &BTreeSet<NodeName>, changed: &BTreeSet<NodeName>) {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).clone_from(nodes);
        let pods: Vec<_> = changed.iter().flat_map(|node| self.catalog().uids_on(node)).collect();
        self.look_at(pods);
    }

    /// Whether a node has had no agent for some time.
    pub fn is_absent(&self, node: &NodeName) -> bool {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// What a node needs.
    pub fn view(&self, node: &str) -> View {
        self.catalog().view(node)
    }

    /// Whether the lists are complete.
    pub fn is_listed(&self) -> bool {
        self.listed.borrow().is_complete()
    }

    /// Waits until the lists are complete.
    pub async fn until_listed(&self) {
        // The sender is here, so it is not gone.
        _ = self.listed.subscribe().wait_for(|listed| listed.is_complete()).await;
    }

    /// A list is complete.
    pub fn list_is_complete(&self, which: impl FnOnce(&mut Listed)) {
        self.listed.send_if_modified(|listed| {
            let before = *listed;
            which(listed);
            *listed != before
        });
    }

    /// Whether this replica serves nodes and writes.
    pub fn leads(&self) -> bool {
        *self.leading.borrow() == Leading::Yes
    }

    /// Waits until this replica serves nodes and writes, or until it does not.
    pub async fn until_leading(&self, leads: bool) {
        // The sender is here, so it is not gone.
        drop(self.leading.subscribe().wait_for(|leading| (*leading == Leading::Yes) == leads).await);
    }

    /// A node has said what became of what it was told. What it says of components that none of its pods names is nothing to look into.
    pub fn report(&self, node: &NodeName, report: Report) {
        let mut reports = self.reports();
        let before = reports.entry(NodeName::clone(node)).or_default();
        if *before == report {
            return;
        }
        let changed = |id: &&ComponentId| before.components.get(id) != report.components.get(id);
        let ids = before.components.keys().chain(report.components.keys()).filter(changed);
        // What pods of a namespace see is of that namespace, or the cluster's.
        let ids: BTreeSet<_> = ids.flat_map(|id| [id.clone(), id.name.clone().into()]).collect();
        if let Some(left_out) = report.left_out.as_ref().filter(|_| before.left_out != report.left_out) {
            tracing::warn!(node = &**node, left_out, "a node's report has no room for everything");
        }
        *before = report;
        drop(reports);
        let (pods, theirs) = {
            let catalog = self.catalog();
            let pods = catalog.uids_on(node);
            let theirs: BTreeSet<_> = pods.iter().filter_map(|uid| catalog.pod(uid)).flat_map(names).collect();
            (pods, theirs)
        };
        self.unsettle(ids.intersection(&theirs).cloned());
        self.look_at(pods);
    }

    /// Forgets what nodes have said: to a replica that led before, or to this one long ago.
    pub fn forget_reports(&self) {
        self.reports().clear();
    }

    /// What nodes have said last.
    pub fn reports(&self) -> MutexGuard<'_, HashMap<NodeName, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status of components may be another one.
    pub fn unsettle(&self, ids: impl IntoIterator<Item = ComponentId>) {
        self.unsettled.add(ids);
    }

    /// Waits for components whose status may be another one.
    pub async fn unsettled(&self) -> BTreeSet<ComponentId> {
        self.unsettled.take().await
    }

    /// What is wrong with pods' sidecars may be otherwise.
    pub fn look_at(&self, uids: impl IntoIterator<Item = ApiUid>) {
        let uids: Vec<_> = uids.into_iter().collect();
        let gated = {
            let catalog = self.catalog();
            let is_gated = |uid: &&ApiUid| catalog.pod(uid).is_some_and(|pod| pod.gated);
            uids.iter().filter(is_gated).map(ApiUid::clone).collect::<Vec<_>>()
        };
        self.gated_pods.add(gated);
        self.changed_pods.add(uids);
    }

    /// Waits for pods of which what is wrong may be otherwise.
    pub async fn looked_at(&self) -> BTreeSet<ApiUid> {
        self.changed_pods.take().await
    }

    /// Waits for pods that may have become ready.
    pub async fn gated(&self) -> BTreeSet<ApiUid> {
        self.gated_pods.take().await
    }
}

/// What a pod's names may mean: components of its namespace and the cluster's.
fn names(pod: &ListedPod) -> BTreeSet<ComponentId> {
    pod.sidecars.iter().flatten().flat_map(|sidecar| pod.meanings(&sidecar.name)).collect()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use pillion_protocol::stream::{ComponentReport, Version};

    use super::*;
    use crate::catalog::tests::pod;

    #[test]
    fn a_node_has_only_the_components_looked_into_that_its_pods_name() {
        let control = Control::new(Settings::of_test(&[]));
        for (namespace, name, node, sidecars) in
            [("shop", "cart", "a", "clock=8081"), ("bank", "till", "b", "vault=8081")]
        {
            let (uid, listed) = pod(namespace, name, node, sidecars);
            control.set_pod(&uid, listed);
        }
        _ = control.unsettled().now_or_never();
        let said = |ids: &[&str]| Report {
            components: ids
                .iter()
                .map(|id| {
                    let version = Version("1".into());
                    (
                        id.parse().unwrap(),
                        ComponentReport { version, digest: None, failure: None, outbound: Vec::new() },
                    )
                })
                .collect(),
            ..Report::default()
        };
        control.report(&"a".into(), said(&["shop/clock", "bank/vault", "vault", "nowhere/nothing"]));
        let unsettled: Vec<_> =
            control.unsettled().now_or_never().unwrap().into_iter().map(|id| id.to_string()).collect();
        assert_eq!(unsettled, ["clock", "shop/clock"]);
        control.report(&"a".into(), said(&["shop/clock", "bank/vault"]));
        assert!(control.unsettled().now_or_never().is_none(), "nothing of its own has changed");
    }
}
