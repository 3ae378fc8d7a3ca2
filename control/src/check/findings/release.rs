//! Kubernetes, and what there is of us.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Event, Pod, PodSpec};

use super::{Cluster, Finding, named, nodes, numbers, seen};
use crate::uninstall;

/// The oldest Kubernetes: the node's name is in tokens, and `kubeVersion` of the chart.
const KUBERNETES: (u32, u32) = (1, 30);

/// A Lease that was not renewed for so long is nobody's, in seconds. It is renewed every two.
const LEASE: i64 = 60;

pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
    [
        version(cluster),
        definitions(cluster),
        control(cluster),
        lease(cluster),
        agent(cluster),
        without_agent(cluster),
        unready(cluster),
        images(cluster),
    ]
    .concat()
}

fn version(cluster: &Cluster) -> Vec<Finding> {
    let found = &cluster.version.git_version;
    vec![match numbers(found) {
        Some(is) if is < KUBERNETES => {
            Finding::problem("Kubernetes", found, format!("upgrade it to {}.{} or later", KUBERNETES.0, KUBERNETES.1))
        }
        _ => Finding::ok("Kubernetes", found),
    }]
}

fn definitions(cluster: &Cluster) -> Vec<Finding> {
    let about = "definitions of Component and ClusterComponent";
    seen(about, &cluster.definitions, |there| {
        vec![match there.len() {
            2 => Finding::ok(about, "both are there"),
            count => Finding::problem(
                about,
                format!("{count} of 2 are there"),
                "install the chart, or kubectl apply -f deploy/chart/crds",
            ),
        }]
    })
}

fn control(cluster: &Cluster) -> Vec<Finding> {
    let (about, namespace) = ("control", &cluster.place.namespace);
    seen(about, &cluster.control, |control| {
        let name = &cluster.place.control_deployment;
        let Some(control) = control else {
            let found = format!("there is no Deployment {name:?} in the namespace {namespace:?}");
            return vec![Finding::problem(about, found, "install the chart, or say --namespace")];
        };
        let wanted = control.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = control.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
        let found = format!("{ready} of {wanted} replicas are ready");
        let look =
            format!("kubectl -n {namespace} describe deployment {name}; kubectl -n {namespace} logs deployment/{name}");
        vec![match ready {
            0 => Finding::problem(about, found, format!("nodes go on with what they know; see {look}")),
            ready if ready < wanted => Finding::warning(about, found, format!("see {look}")),
            _ => Finding::ok(about, found),
        }]
    })
}

fn lease(cluster: &Cluster) -> Vec<Finding> {
    let about = "the replica of control that serves";
    seen(about, &cluster.lease, |lease| {
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
        let age = renewed.map(|renewed| cluster.now.duration_since(renewed.0).as_secs());
        vec![match (holder, age) {
            (Some(holder), Some(age)) if age <= LEASE => Finding::ok(about, holder),
            (Some(holder), age) => Finding::problem(
                about,
                match age {
                    Some(age) => format!("{holder} has not renewed its Lease for {age} s"),
                    None => format!("{holder} has never renewed its Lease"),
                },
                "see the logs of control: does it reach the API server?",
            ),
            (None, _) => Finding::problem(
                about,
                "there is none",
                "see the logs of control: it leads when its lists are complete",
            ),
        }]
    })
}

fn agent(cluster: &Cluster) -> Vec<Finding> {
    let (about, namespace) = ("the agent", &cluster.place.namespace);
    seen(about, &cluster.agent, |agent| {
        let name = &cluster.place.agent_daemonset;
        let Some(agent) = agent else {
            let found = format!("there is no DaemonSet {name:?} in the namespace {namespace:?}");
            return vec![Finding::problem(about, found, "install the chart, or say --namespace")];
        };
        let pod = agent.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        if pod.is_some_and(uninstall::is_removal) {
            let found = "it is being taken off the nodes, or was: its pods do nothing else any more";
            return vec![Finding::problem(about, found, "helm uninstall it, or install the chart anew")];
        }
        let status = agent.status.clone().unwrap_or_default();
        let of = status.desired_number_scheduled;
        let found = format!("ready on {} of {of} nodes", status.number_ready);
        let updated = status.updated_number_scheduled.unwrap_or_default();
        vec![if status.number_ready < of {
            let advice =
                format!("see kubectl -n {namespace} get pods -o wide, and the logs of those that are not ready");
            Finding::problem(about, found, advice)
        } else if updated < of {
            let found = format!("{updated} of {of} nodes have the newest");
            Finding::warning(about, found, "a rollout is under way, or stands still")
        } else {
            Finding::ok(about, found)
        }]
    })
}

fn without_agent(cluster: &Cluster) -> Vec<Finding> {
    let about = "nodes without a ready agent";
    let (Ok(nodes), Ok(Some(_))) = (&cluster.nodes, &cluster.agent) else { return Vec::new() };
    seen(about, &cluster.agents, |agents| {
        let ready: BTreeSet<&str> = agents.iter().filter(|pod| is_ready(pod)).filter_map(node_of).collect();
        let names = nodes.iter().filter(|node| nodes::is_linux(node)).filter_map(|node| node.metadata.name.as_deref());
        let without = named(names.filter(|name| !ready.contains(name)));
        if without.is_empty() {
            return Vec::new();
        }
        let advice =
            "pods there have no sidecars; is the node excluded by a selector or a taint, or has its agent failed?";
        vec![Finding::warning(about, without, advice)]
    })
}

/// What the agents say that are not ready, each once with its nodes.
fn unready(cluster: &Cluster) -> Vec<Finding> {
    let Ok(agents) = &cluster.agents else { return Vec::new() };
    seen("what agents say that are not ready", &cluster.agent_events, |events| {
        let mut nodes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for pod in agents.iter().filter(|pod| !is_ready(pod)) {
            let of_pod = |event: &&Event| event.involved_object.uid == pod.metadata.uid;
            let newest = events.iter().filter(of_pod).max_by_key(|event| event.last_timestamp.as_ref().map(|at| at.0));
            if let (Some(said), Some(node)) = (newest.and_then(|event| event.message.as_deref()), node_of(pod)) {
                nodes.entry(said.trim()).or_default().insert(node);
            }
        }
        let finding = |(said, nodes): (&str, BTreeSet<&str>)| {
            let about = format!("the agent on {}", named(nodes.into_iter()));
            Finding::problem(about, said, "mend what it names; the agent looks again by itself")
        };
        nodes.into_iter().map(finding).collect()
    })
}

/// One image is of control and of the agent: during an upgrade they differ, and understand one another.
fn images(cluster: &Cluster) -> Vec<Finding> {
    let (Ok(Some(control)), Ok(Some(agent))) = (&cluster.control, &cluster.agent) else { return Vec::new() };
    let control = control.spec.as_ref().and_then(|spec| image(spec.template.spec.as_ref()));
    let agent = agent.spec.as_ref().and_then(|spec| image(spec.template.spec.as_ref()));
    match (control, agent) {
        (Some(control), Some(agent)) if control != agent => vec![Finding::warning(
            "versions",
            format!("control is of {control}, the agent of {agent}"),
            "they understand one another; helm upgrade makes them one",
        )],
        _ => Vec::new(),
    }
}

fn image(pod: Option<&PodSpec>) -> Option<&str> {
    pod?.containers.first()?.image.as_deref()
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}
