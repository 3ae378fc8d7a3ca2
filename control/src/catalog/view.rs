//! What a node needs: its pods, the components that these name, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use pillion_protocol::{
    annotation::Sidecars,
    name::Name,
    pod::PodUid,
    stream::{Key, Refusal, RefusalReason, ToNode, Version, WantedComponent, WantedPod},
};

use super::{Catalog, Departure, ListedPod, is_allowed, version_of};
use crate::resource::{Reason, Rejection};

/// Everything that a node needs, and which of its pods have ended.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Each resource as it is told.
    pub resources: BTreeMap<Key, ToNode>,
    /// Pods that were seen to go, and how. That one is not among the resources does not mean that.
    pub gone: BTreeMap<PodUid, Departure>,
}

impl Catalog {
    /// What a node needs. It costs what the node has, not what the cluster has.
    pub fn view(&self, node: &str) -> View {
        let mut view = View { resources: BTreeMap::new(), gone: self.gone(node).cloned().collect() };
        for pod in self.by_node.get(node).into_iter().flatten().filter_map(|uid| self.pods.get(uid)) {
            // What is wrong with the others, people are told by events; a node can do nothing for them.
            if let (Ok(sidecars), None) = (&pod.sidecars, self.unreachable(pod)) {
                self.add_pod(&mut view, pod, sidecars);
            }
        }
        view
    }

    fn add_pod(&self, view: &mut View, pod: &ListedPod, sidecars: &Sidecars) {
        let refused = self.refusals(pod);
        for sidecar in sidecars.iter().filter(|sidecar| !refused.contains_key(&sidecar.name)) {
            let Some((_, published)) = self.resolve(pod, &sidecar.name) else { continue };
            let (Ok(wanted), Some(id)) = (&published.accepted, pod.seen_as(&sidecar.name)) else { continue };
            view.resources.entry(Key::Component(id.clone())).or_insert_with(|| {
                let wanted: WantedComponent = (**wanted).clone();
                ToNode::Component { id, version: published.version.clone(), wanted }
            });
        }
        let wanted = WantedPod { pod: pod.pod.clone(), sidecars: sidecars.clone(), refused };
        let version = version_of(&wanted);
        view.resources.insert(Key::Pod(wanted.pod.uid.clone()), ToNode::Pod { version, wanted });
    }

    /// Which of a pod's sidecars are not to be served, and why.
    pub fn refusals(&self, pod: &ListedPod) -> BTreeMap<Name, Refusal> {
        let refusal = |name: &Name| {
            let refused = |reason, message: String| Some(Refusal::new(reason, &message));
            let namespace = &pod.pod.namespace;
            match self.resolve(pod, name) {
                None => refused(
                    RefusalReason::Unknown,
                    format!(
                        "there is no Component {name:?} in the namespace {namespace:?}, and no ClusterComponent of that name"
                    ),
                ),
                Some((_, published)) if !is_allowed(published, pod) => refused(
                    RefusalReason::NotAllowed,
                    format!(
                        "the ClusterComponent {name:?} is not for pods of the service account \"{namespace}/{}\": see its spec.access",
                        pod.service_account
                    ),
                ),
                Some((_, published)) => match &published.accepted {
                    Ok(_) => None,
                    Err(Rejection { reason, message }) => {
                        let is_open = *reason == Reason::Resolving;
                        let reason = if is_open { RefusalReason::Undecided } else { RefusalReason::NotAccepted };
                        refused(reason, format!("the component {name:?}: {message}"))
                    }
                },
            }
        };
        let names = pod.sidecars.iter().flatten().map(|sidecar| &sidecar.name);
        names.filter_map(|name| Some((name.clone(), refusal(name)?))).collect()
    }
}

/// What to tell somebody who has `known`, so that they have `view`. Components come before the pods that name them, and go after them. A pod
/// that is merely not there is not told of: this replica may know less than the one before.
pub fn difference(known: &BTreeMap<Key, Version>, view: &View) -> Vec<ToNode> {
    let is_news = |(key, told): &(&Key, &ToNode)| known.get(*key) != told.version();
    let (pods, components): (Vec<_>, Vec<_>) =
        view.resources.iter().filter(is_news).partition(|(key, _)| matches!(key, Key::Pod(_)));
    let gone: BTreeSet<&Key> = known.keys().filter(|key| !view.resources.contains_key(*key)).collect();
    let told = components.into_iter().chain(pods).map(|(_, told)| told.clone());
    let ended = gone.iter().filter_map(|key| match key {
        Key::Pod(uid) => Some(match view.gone.get(uid)? {
            Departure::Ended => ToNode::PodEnded { uid: uid.clone() },
            Departure::Deleted => ToNode::PodDeleted { uid: uid.clone() },
        }),
        Key::Component(_) => None,
    });
    let unneeded = gone.iter().filter_map(|key| match key {
        Key::Component(id) => Some(ToNode::ComponentGone { id: id.clone() }),
        Key::Pod(_) => None,
    });
    told.chain(ended).chain(unneeded).collect()
}
