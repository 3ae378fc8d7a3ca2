//! What control has told this node: its pods, and the components that these name. Decides what that means, and does no IO.
//!
//! What was served once goes on: a component that was deleted, or whose new settings make no sense, is kept for the pods that had it, until
//! they end. Only that a pod may not have it takes it away.

use std::collections::{BTreeMap, BTreeSet};

use pillion_protocol::{
    component::{ComponentSpec, Image},
    id::ComponentId,
    login::Login,
    name::Name,
    pod::PodUid,
    reference::Reference,
    stream::{Key, RefusalReason, ToNode, Version, WantedComponent, WantedPod},
};
use serde::{Deserialize, Serialize};

/// What control has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Control has told everything once.
    pub complete: bool,
    pods: BTreeMap<PodUid, ToldPod>,
    components: BTreeMap<ComponentId, ToldComponent>,
}

/// A pod, as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldPod {
    version: Version,
    wanted: WantedPod,
    /// What it has had.
    had: BTreeSet<Name>,
    /// The API has it no more; it is kept until its endpoints are closed.
    #[serde(default)]
    deleted: bool,
}

/// A component, as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldComponent {
    version: Version,
    #[serde(flatten)]
    wanted: WantedComponent,
    /// It is no more, or makes no sense any more, and is kept for those who had it.
    #[serde(default)]
    kept: bool,
}

/// What was told, without what is confidential.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Open<'a> {
    complete: bool,
    pods: &'a BTreeMap<PodUid, ToldPod>,
    components: BTreeMap<&'a ComponentId, &'a ToldComponent>,
}

/// Components that have something of a Secret in them.
#[derive(Debug, Default, Deserialize)]
pub struct Confidential(BTreeMap<ComponentId, ToldComponent>);

/// Whether a binding's pod may have its component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It may.
    #[default]
    Served,
    /// Nobody has said yet: requests wait.
    Unsaid,
    /// It may not.
    NotAllowed(String),
    /// There is none, or it cannot be served.
    Unavailable(String),
}

/// What is to be done about something that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A component is new or has changed.
    Component(ComponentId, Box<ComponentSpec>),
    /// A component is needed no more.
    ComponentGone(ComponentId),
    /// A pod is to have these endpoints, and other verdicts than before.
    Pod(WantedPod),
    /// A pod has ended.
    PodEnded(PodUid),
    /// The API has a pod no more.
    PodDeleted(PodUid),
    /// Everything was told for the first time.
    Complete,
}

impl Told {
    /// Takes in what control says; gives what is to be done.
    pub fn hear(&mut self, told: ToNode) -> Vec<Change> {
        match told {
            ToNode::Component { id, version, mut wanted } => {
                let spec = wanted.spec.clone();
                // It was let to that before: what is served is not withdrawn.
                let is_let = |before: &ToldComponent| {
                    let ToldComponent { wanted: before, kept, .. } = before;
                    !kept && !before.unproven && before.spec.image == spec.image && before.login == wanted.login
                };
                wanted.unproven &= !self.components.get(&id).is_some_and(is_let);
                // With another login a pull may succeed that failed.
                let same = |before: &ToldComponent| {
                    let before = &before.wanted;
                    before.spec == spec && before.login == wanted.login && before.unproven == wanted.unproven
                };
                let is_same = self.components.get(&id).is_some_and(same);
                self.components.insert(id.clone(), ToldComponent { version, wanted, kept: false });
                if is_same { Vec::new() } else { vec![Change::Component(id, spec)] }
            }
            ToNode::ComponentGone { id } => match self.components.get_mut(&id) {
                Some(component) => {
                    component.kept = true;
                    self.forget_unneeded()
                }
                None => Vec::new(),
            },
            ToNode::Pod { version, wanted } => {
                let uid = wanted.pod.uid.clone();
                let before = self.pods.remove(&uid);
                let named: BTreeSet<&Name> = wanted.sidecars.iter().map(|sidecar| &sidecar.name).collect();
                let is_taken = |name: &Name| {
                    wanted.refused.get(name).is_some_and(|refusal| refusal.reason == RefusalReason::NotAllowed)
                };
                let had = before.into_iter().flat_map(|pod| pod.had);
                let had = had.filter(|name| named.contains(name) && !is_taken(name));
                let has = named.iter().filter(|name| !wanted.refused.contains_key(**name)).map(|name| (*name).clone());
                let had = had.chain(has).collect();
                self.pods.insert(uid, ToldPod { version, wanted: wanted.clone(), had, deleted: false });
                [Change::Pod(wanted)].into_iter().chain(self.forget_unneeded()).collect()
            }
            ToNode::PodEnded { uid } => {
                self.pods.remove(&uid);
                [Change::PodEnded(uid)].into_iter().chain(self.forget_unneeded()).collect()
            }
            ToNode::PodDeleted { uid } => {
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.deleted = true;
                }
                vec![Change::PodDeleted(uid)]
            }
            ToNode::Complete if !self.complete => {
                self.complete = true;
                vec![Change::Complete]
            }
            ToNode::Complete | ToNode::Hello { .. } | ToNode::Heartbeat | ToNode::Unknown => Vec::new(),
        }
    }

    /// Forgets pods that the API has no more and that have no endpoints; gives what is to be done.
    pub fn forget_deleted(&mut self, is_bound: impl Fn(&PodUid) -> bool) -> Vec<Change> {
        let before = self.pods.len();
        self.pods.retain(|uid, pod| !pod.deleted || is_bound(uid));
        if self.pods.len() == before { Vec::new() } else { self.forget_unneeded() }
    }

    /// Forgets what was kept for pods that are no more.
    fn forget_unneeded(&mut self) -> Vec<Change> {
        let needed: BTreeSet<ComponentId> = self.pods.values().flat_map(ToldPod::had_ids).collect();
        let gone = self.components.extract_if(.., |id, component| component.kept && !needed.contains(id));
        gone.map(|(id, _)| Change::ComponentGone(id)).collect()
    }

    /// Whether a pod may have a component.
    pub fn verdict(&self, uid: &PodUid, name: &Name) -> Verdict {
        let Some(pod) = self.pods.get(uid) else { return Verdict::Unsaid };
        let Some(refusal) = pod.wanted.refused.get(name) else {
            let named = pod.wanted.sidecars.iter().any(|sidecar| sidecar.name == *name);
            // Between the annotation's change and the binding's.
            return if named { Verdict::Served } else { Verdict::Unsaid };
        };
        let kept = || pod.had_ids().any(|id| id.name == *name && self.components.contains_key(&id));
        match refusal.reason {
            RefusalReason::NotAllowed => Verdict::NotAllowed(refusal.message.clone()),
            RefusalReason::Unknown | RefusalReason::NotAccepted | RefusalReason::Undecided if kept() => Verdict::Served,
            RefusalReason::Undecided => Verdict::Unsaid,
            RefusalReason::Unknown | RefusalReason::NotAccepted | RefusalReason::Other => {
                Verdict::Unavailable(refusal.message.clone())
            }
        }
    }

    /// Has control tell everything anew: what was read from a file may be of a program that understood less, or somebody's who may write it.
    pub fn doubt(&mut self) {
        let versions = (self.pods.values_mut().map(|pod| &mut pod.version))
            .chain(self.components.values_mut().map(|component| &mut component.version));
        versions.for_each(|version| version.0.clear());
    }

    /// What is known, for a control that comes back.
    pub fn known(&self) -> BTreeMap<Key, Version> {
        let pods = self.pods.iter().filter(|(_, pod)| !pod.deleted);
        let pods = pods.map(|(uid, pod)| (Key::Pod(uid.clone()), pod.version.clone()));
        let components = self.components.iter().filter(|(_, component)| !component.kept);
        let components = components.map(|(id, component)| (Key::Component(id.clone()), component.version.clone()));
        pods.chain(components).collect()
    }

    /// Whether a component's namespace has to be let to its image by the registry, whoever had it pulled.
    pub fn is_unproven(&self, id: &ComponentId) -> bool {
        self.components.get(id).is_some_and(|component| component.wanted.unproven)
    }

    /// Who we may be at the registry of an artifact: what each component says that is it, of this namespace if one is said; `None` for what
    /// this machine says. One that is wrong must not keep the others from it.
    pub fn logins(&self, reference: &Reference, namespace: Option<&Name>) -> Vec<Option<Login>> {
        let is_it = |image: &Image| matches!(image, Image::Reference(named) if named == reference);
        let of_it = |(id, component): &(&ComponentId, &ToldComponent)| {
            !component.kept
                && is_it(&component.wanted.spec.image)
                && namespace.is_none_or(|namespace| id.namespace.as_ref() == Some(namespace))
        };
        let mut logins = Vec::new();
        for (_, component) in self.components.iter().filter(of_it) {
            if !logins.contains(&component.wanted.login) {
                logins.push(component.wanted.login.clone());
            }
        }
        // What is said of the last one's failure is what people see.
        logins.sort_by_key(Option::is_some);
        logins
    }

    /// What may be written to a disk, and what may not, as it is read again.
    pub fn parts(&self) -> (impl Serialize, impl Serialize) {
        let (confidential, open) = self.components.iter().partition(|(_, component)| component.wanted.confidential);
        let confidential: BTreeMap<_, _> = confidential;
        (Open { complete: self.complete, pods: &self.pods, components: open }, confidential)
    }

    /// Both together. Where there is less of the second than there was, not everything is known.
    pub fn with(mut self, Confidential(confidential): Confidential) -> Self {
        self.components.extend(confidential);
        let served =
            |pod: &ToldPod| pod.had_ids().filter(|id| !pod.wanted.refused.contains_key(&id.name)).collect::<Vec<_>>();
        let is_known = |id: &ComponentId| self.components.contains_key(id);
        self.complete = self.complete && self.pods.values().flat_map(served).all(|id| is_known(&id));
        self
    }

    /// The pods that the API has, as they are to be.
    pub fn pods(&self) -> impl Iterator<Item = &WantedPod> {
        self.pods.values().filter(|pod| !pod.deleted).map(|pod| &pod.wanted)
    }

    /// The components, as they are to be.
    pub fn components(&self) -> impl Iterator<Item = (&ComponentId, &Version, &ComponentSpec)> {
        self.components.iter().map(|(id, component)| (id, &component.version, &*component.wanted.spec))
    }
}

impl ToldPod {
    fn had_ids(&self) -> impl Iterator<Item = ComponentId> {
        let namespace: Option<Name> = self.wanted.pod.namespace.parse().ok();
        self.had.iter().map(move |name| ComponentId { namespace: namespace.clone(), name: name.clone() })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use pillion_protocol::{component::Variable, pod::Pod, stream::Refusal};

    use super::*;

    fn component(id: &str, version: &str) -> ToNode {
        let spec = ComponentSpec::new(Image::Reference(format!("r.example/{id}:{version}").parse().unwrap()));
        ToNode::Component { id: id.parse().unwrap(), version: Version(version.into()), wanted: spec.into() }
    }

    /// A pod has a component with a value of a Secret.
    pub(crate) fn told_a_secret(value: &str) -> Told {
        let mut told = told();
        let ToNode::Component { id, version, mut wanted } = component("shop/clock", "2") else { unreachable!() };
        wanted.spec.env.push(Variable { name: "PASSWORD".into(), value: value.into() });
        wanted.confidential = true;
        told.hear(ToNode::Component { id, version, wanted });
        told
    }

    fn pod(uid: &str, refused: &[(&str, RefusalReason)]) -> ToNode {
        let refusal = |(name, reason): &(&str, RefusalReason)| {
            (name.parse().unwrap(), Refusal { reason: *reason, message: "why".into() })
        };
        let wanted = WantedPod {
            pod: Pod { uid: uid.parse().unwrap(), namespace: "shop".into(), name: uid.into() },
            sidecars: "clock=8081".parse().unwrap(),
            refused: refused.iter().map(refusal).collect(),
        };
        ToNode::Pod { version: Version(format!("{}", refused.len())), wanted }
    }

    fn gone(id: &str) -> ToNode {
        ToNode::ComponentGone { id: id.parse().unwrap() }
    }

    fn verdict(told: &Told, uid: &str) -> Verdict {
        told.verdict(&uid.parse().unwrap(), &"clock".parse().unwrap())
    }

    /// A pod that has the clock.
    fn told() -> Told {
        let mut told = Told::default();
        assert!(matches!(&told.hear(component("shop/clock", "1"))[..], [Change::Component(..)]));
        assert!(matches!(&told.hear(pod("cart", &[]))[..], [Change::Pod(_)]));
        assert_eq!(told.hear(ToNode::Complete), [Change::Complete]);
        told
    }

    #[test]
    fn what_nobody_has_said_waits() {
        let mut told = Told::default();
        assert_eq!(verdict(&told, "cart"), Verdict::Unsaid);
        told.hear(pod("cart", &[("clock", RefusalReason::Unknown)]));
        assert_eq!(verdict(&told, "cart"), Verdict::Unavailable("why".into()));
        told.hear(pod("cart", &[("clock", RefusalReason::Undecided)]));
        assert_eq!(verdict(&told, "cart"), Verdict::Unsaid);
        told.hear(component("shop/clock", "1"));
        told.hear(pod("cart", &[]));
        assert_eq!(verdict(&told, "cart"), Verdict::Served);
        told.hear(pod("cart", &[("clock", RefusalReason::Undecided)]));
        assert_eq!(verdict(&told, "cart"), Verdict::Served, "it has had it");
    }

    #[test]
    fn what_a_pod_has_had_goes_on_until_it_ends() {
        for reason in [RefusalReason::Unknown, RefusalReason::NotAccepted] {
            let mut told = told();
            assert!(matches!(&told.hear(pod("cart", &[("clock", reason)]))[..], [Change::Pod(_)]));
            assert_eq!(told.hear(gone("shop/clock")), []);
            assert_eq!(verdict(&told, "cart"), Verdict::Served);
            told.hear(pod("new", &[("clock", reason)]));
            assert_eq!(verdict(&told, "new"), Verdict::Unavailable("why".into()), "it came too late");
            let known: Vec<String> = told.known().into_keys().map(String::from).collect();
            assert_eq!(known, ["pod/cart", "pod/new"], "control is told of it anew when it is there again");
            let text = serde_json::to_string(&told).unwrap();
            assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told, "a restart changes nothing");
            let ended = told.hear(ToNode::PodEnded { uid: "cart".parse().unwrap() });
            assert!(matches!(&ended[..], [Change::PodEnded(_), Change::ComponentGone(_)]), "{ended:?}");
        }
    }

    #[test]
    fn a_pod_that_the_api_has_no_more_is_served_until_its_endpoints_are_closed() {
        let mut told = told();
        let uid: PodUid = "cart".parse().unwrap();
        assert_eq!(told.hear(ToNode::PodDeleted { uid: uid.clone() }), [Change::PodDeleted(uid.clone())]);
        assert_eq!(told.hear(gone("shop/clock")), [], "no pod of the API names it");
        assert_eq!(told.forget_deleted(|_| true), []);
        assert_eq!(verdict(&told, "cart"), Verdict::Served);
        assert_eq!((told.pods().count(), told.known().len()), (0, 0), "the next copy of it is told anew");
        let again = told.clone().hear(pod("cart", &[]));
        assert!(matches!(&again[..], [Change::Pod(_)]), "{again:?}");
        assert!(matches!(&told.forget_deleted(|_| false)[..], [Change::ComponentGone(_)]));
        assert_eq!(verdict(&told, "cart"), Verdict::Unsaid);
    }

    #[test]
    fn what_a_pod_may_not_have_is_taken_from_it() {
        let mut told = told();
        told.hear(pod("cart", &[("clock", RefusalReason::NotAllowed)]));
        assert_eq!(verdict(&told, "cart"), Verdict::NotAllowed("why".into()));
        for reason in [RefusalReason::Unknown, RefusalReason::NotAccepted, RefusalReason::Other] {
            told.hear(pod("cart", &[("clock", reason)]));
            assert_eq!(verdict(&told, "cart"), Verdict::Unavailable("why".into()), "it does not come back so");
        }
    }

    #[test]
    fn a_component_that_is_there_again_is_as_it_is_told() {
        let mut told = told();
        told.hear(pod("cart", &[("clock", RefusalReason::Unknown)]));
        told.hear(gone("shop/clock"));
        assert!(matches!(&told.hear(component("shop/clock", "2"))[..], [Change::Component(..)]));
        told.hear(pod("cart", &[]));
        assert!(told.known().contains_key(&Key::Component("shop/clock".parse().unwrap())));
        assert_eq!(told.hear(component("shop/clock", "2")), [], "nothing has changed");
    }
}
