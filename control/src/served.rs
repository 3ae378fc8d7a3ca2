//! What a pod has of what it names, as the catalog and its node say. Decides, and does no IO.

use std::collections::BTreeMap;

use pillion_protocol::{
    annotation::{SIDECARS, Sidecar},
    name::Name,
    stream::{ComponentReport, Refusal, RefusalReason, Report},
};

use crate::{
    catalog::{Catalog, ListedPod},
    claims,
    strays::Stray,
};

/// What is wrong with a pod's sidecars, each by what it is about.
pub type Problems = BTreeMap<About, Problem>;

/// What something is wrong with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// All of a pod's sidecars.
    Sidecars,
    /// One of them, by its name.
    Sidecar(String),
    /// The port of one of them.
    Port(String),
    /// The node of the pod.
    Node,
    /// Annotations or labels that nothing reads.
    Strays,
}

/// What is wrong with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word, as Events have it.
    pub reason: &'static str,
    /// With the text at fault.
    pub message: String,
}

impl Problem {
    fn new(reason: &'static str, why: &str) -> Self {
        Self { reason, message: format!("annotation {SIDECARS}: {why}") }
    }

    fn of_sidecar(reason: &'static str, name: &str, why: &str) -> Self {
        Self { reason, message: format!("annotation {SIDECARS}, {name:?}: {why}") }
    }
}

impl Catalog {
    /// What is wrong with a pod's sidecars; `report` is its node's, if that has said anything, and `absent` whether the node has had no agent for
    /// some time.
    pub fn problems(&self, pod: &ListedPod, report: Option<&Report>, absent: bool) -> Problems {
        let of_all = |reason, why: &str| Problems::from([(About::Sidecars, Problem::new(reason, why))]);
        let sidecars = match (&pod.sidecars, self.unreachable(pod)) {
            (Err(error), _) => return of_all("SidecarsInvalid", &error.to_string()),
            (Ok(_), Some(why)) => return of_all("SidecarsImpossible", &why),
            (Ok(sidecars), None) => sidecars,
        };
        // Of what is decided in a moment nobody needs to hear.
        let is_wrong = |(_, refusal): &(Name, Refusal)| refusal.reason != RefusalReason::Undecided;
        let refused = self.refusals(pod).into_iter().filter(is_wrong).map(|(name, refusal)| {
            let reason = match refusal.reason {
                RefusalReason::Unknown => "SidecarUnknown",
                RefusalReason::NotAllowed => "SidecarNotAllowed",
                RefusalReason::NotAccepted | RefusalReason::Undecided | RefusalReason::Other => "SidecarNotAccepted",
            };
            (About::Sidecar(name.to_string()), Problem::of_sidecar(reason, name.as_str(), &refusal.message))
        });
        let failed = sidecars.iter().filter_map(|sidecar| {
            // Where there is a digest, an older version is served.
            let said = self.said_of(pod, sidecar, report?).filter(|said| said.digest.is_none())?;
            let name = sidecar.name.to_string();
            let problem = Problem::of_sidecar("SidecarFailed", &name, said.failure.as_ref()?);
            Some((About::Sidecar(name), problem))
        });
        let mut problems: Problems = failed.chain(refused).collect();
        problems.extend(bound(pod, report).map(|problem| (About::Sidecars, problem)));
        problems.extend(sidecars.iter().filter_map(|sidecar| {
            let (name, claim) = (sidecar.name.to_string(), claims::of_port(&pod.claims, sidecar)?);
            let problem = Problem::of_sidecar("SidecarPortConflict", &name, &format!("{claim}: {}", claim.advice()));
            Some((About::Port(name), problem))
        }));
        problems.extend(absent.then(|| (About::Node, without_agent(pod))));
        problems
    }

    /// Whether all of a pod's sidecars are served in it, as its node says.
    pub fn is_served(&self, pod: &ListedPod, report: &Report) -> bool {
        let (Ok(sidecars), Some(said)) = (&pod.sidecars, report.pods.get(&pod.pod.uid)) else { return false };
        let has = |said: &ComponentReport| said.failure.is_none() || said.digest.is_some();
        let is_served = |sidecar: &Sidecar| {
            said.bound.contains(&sidecar.port) && self.said_of(pod, sidecar, report).is_some_and(has)
        };
        said.failure.is_none() && self.refusals(pod).is_empty() && sidecars.iter().all(is_served)
    }

    /// What a node says of a pod's component as it is now.
    fn said_of<'a>(&self, pod: &ListedPod, sidecar: &Sidecar, report: &'a Report) -> Option<&'a ComponentReport> {
        let (_, published) = self.resolve(pod, &sidecar.name)?;
        let said = report.components.get(&pod.seen_as(&sidecar.name)?)?;
        (said.version == *published.version()).then_some(said)
    }
}

/// What there is in vain.
pub fn of_strays(strays: &[Stray]) -> Option<(About, Problem)> {
    let message: Vec<_> = strays.iter().map(Stray::to_string).collect();
    (!message.is_empty()).then(|| (About::Strays, Problem { reason: "AnnotationIgnored", message: message.join("; ") }))
}

fn without_agent(pod: &ListedPod) -> Problem {
    let why = format!(
        "no agent of the node {:?} is connected to control: where none runs, the pod has no sidecars. Do taints, a selector or the kind of the \
         node keep it off, or has it failed? See pillion check",
        pod.node
    );
    Problem::new("SidecarsNoAgent", &why)
}

/// What is wrong with a pod's ports.
fn bound(pod: &ListedPod, report: Option<&Report>) -> Option<Problem> {
    let said = report?.pods.get(&pod.pod.uid)?;
    match &said.failure {
        Some(why) => Some(Problem::new("SidecarsNotBound", why)),
        None if said.late => Some(Problem::new(
            "SidecarsLate",
            "its ports accept connections since after it had begun, so that its first container may have come before them: it is older than \
             the agent or its annotation; if neither, the node's runtime gives CNI plugins no annotations: see pillion check",
        )),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::{
        component::{ComponentSpec, Image},
        id::ComponentId,
        stream::PodReport,
    };

    use super::*;
    use crate::catalog::{ApiUid, Published, tests::pod};

    /// A pod that names a component which is there, and what its node says when all is well.
    fn world() -> (Catalog, ListedPod, Report) {
        let mut catalog = Catalog::default();
        let id: ComponentId = "clock".parse().unwrap();
        let image = ComponentSpec::new(Image::Reference("r.example/clock:1".parse().unwrap()));
        let published = Published::new(Ok(image.into()), None);
        let version = published.version().clone();
        catalog.publish(id, Some(published));
        let (uid, cart): (ApiUid, _) = pod("shop", "cart", "a", "clock=8081");
        catalog.set_pod(uid, cart.clone());
        let clock = ComponentReport { version, digest: None, failure: None, outbound: Vec::new() };
        let bound = PodReport { bound: [8081.try_into().unwrap()].into(), ..PodReport::default() };
        let report = Report {
            components: [("shop/clock".parse().unwrap(), clock)].into(),
            pods: [(cart.pod.uid.clone(), bound)].into(),
            left_out: None,
        };
        (catalog, cart, report)
    }

    #[test]
    fn what_a_node_says_is_told_and_keeps_a_pod_from_being_ready() {
        let (catalog, cart, well) = world();
        assert!(
            catalog.problems(&cart, None, false).is_empty() && catalog.problems(&cart, Some(&well), false).is_empty()
        );
        assert!(catalog.is_served(&cart, &well));
        type Change = fn(&mut Report);
        let table: [(Change, &str, bool); 6] = [
            (|of| of.pods.values_mut().for_each(|pod| pod.failure = Some("in use".into())), "SidecarsNotBound", false),
            (|of| of.pods.values_mut().for_each(|pod| pod.late = true), "SidecarsLate", true),
            (|of| of.pods.values_mut().for_each(|pod| pod.bound.clear()), "", false),
            (
                |of| of.components.values_mut().for_each(|of| of.failure = Some("no image".into())),
                "SidecarFailed",
                false,
            ),
            (|of| of.components.clear(), "", false),
            (
                |of| {
                    // What was served before goes on.
                    for of in of.components.values_mut() {
                        of.failure = Some("no image".into());
                        of.digest = Some(format!("sha256:{}", "0".repeat(64)).parse().unwrap());
                    }
                },
                "",
                true,
            ),
        ];
        for (change, reason, is_served) in table {
            let mut report = well.clone();
            change(&mut report);
            let problems = catalog.problems(&cart, Some(&report), false);
            let reasons: Vec<_> = problems.values().map(|problem| problem.reason).collect();
            assert_eq!(reasons.join(" "), reason, "{problems:?}");
            assert_eq!(catalog.is_served(&cart, &report), is_served, "{reason} {report:?}");
        }
    }

    #[test]
    fn what_is_refused_is_not_served_whatever_its_node_says() {
        let (mut catalog, cart, report) = world();
        catalog.publish("clock".parse().unwrap(), None);
        assert_eq!(catalog.problems(&cart, Some(&report), false).values().next().unwrap().reason, "SidecarUnknown");
        assert!(!catalog.is_served(&cart, &report));
    }

    #[test]
    fn a_port_of_a_containers_and_a_node_without_agent_are_told_beside_the_rest() {
        let (catalog, mut cart, report) = world();
        let container = serde_json::json!({"name": "main", "ports": [{"containerPort": 8081}]});
        cart.claims = claims::of_containers([&serde_json::from_value(container).unwrap()]);
        let problems = catalog.problems(&cart, Some(&report), true);
        let said: Vec<_> = problems.values().map(|problem| format!("{} {}", problem.reason, problem.message)).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("SidecarPortConflict annotation pillion.dev/sidecars, \"clock\": port 8081"),
            "{said:?}"
        );
        assert!(said[1].starts_with("SidecarsNoAgent") && said[1].contains("node \"a\""), "{said:?}");
        assert!(catalog.is_served(&cart, &report), "the sidecar answers all the same");
        // What can have no sidecars anywhere needs no agent.
        cart.host_network = true;
        assert_eq!(catalog.problems(&cart, None, true).into_keys().collect::<Vec<_>>(), [About::Sidecars]);
    }
}
