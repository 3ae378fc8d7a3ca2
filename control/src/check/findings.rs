//! What a cluster lacks.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use pillion_protocol::annotation::{SIDECARS, Sidecars};

use super::{Cluster, Finding, Level, Looked};
use crate::resource::{ComponentStatus, ConditionStatus, ConditionType};

/// The oldest Kubernetes: the node's name is in tokens, and `kubeVersion` of the chart.
const KUBERNETES: (u32, u32) = (1, 30);

/// Linux has `SO_NETNS_COOKIE` since 5.14, and what it is meant to work with is 5.15.
const LINUX_LEAST: (u32, u32) = (5, 14);
/// `PAGEMAP_SCAN`.
const LINUX_BEST: (u32, u32) = (6, 7);

/// Since when runtimes give CNI plugins the pod's annotations: containerd's #5026, CRI-O's #7122.
const RUNTIMES: [(&str, (u32, u32)); 2] = [("containerd", (1, 5)), ("cri-o", (1, 29))];

/// A Lease that was not renewed for so long is nobody's, in seconds. It is renewed every two; clocks differ.
const LEASE: i64 = 60;

/// So many of a kind are named.
const NAMED: usize = 10;

pub(super) fn all(cluster: &Cluster) -> Vec<Finding> {
    [
        version(cluster),
        definitions(cluster),
        control(cluster),
        lease(cluster),
        agent(cluster),
        nodes(cluster),
        pods(cluster),
        components(cluster),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn unseen(about: &str, error: &str) -> Vec<Finding> {
    let advice = "if it is forbidden, ask somebody who may get and list this in the whole cluster to run it; else see the message";
    vec![Finding::new(Level::Unknown, about, error, advice)]
}

/// Looks at something that could be looked at.
fn seen<T>(about: &str, looked: &Looked<T>, look: impl FnOnce(&T) -> Vec<Finding>) -> Vec<Finding> {
    match looked {
        Ok(found) => look(found),
        Err(error) => unseen(about, error),
    }
}

/// The first two numbers of a version: 6 and 1 of `6.1.0-13-amd64`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: BTreeSet<_> = names.into_iter().collect();
    let shown: Vec<_> = names.iter().take(NAMED).copied().collect();
    let more = names.len().saturating_sub(NAMED);
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
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
    let mut findings = seen(about, &cluster.agent, |agent| {
        let name = &cluster.place.agent_daemonset;
        let Some(agent) = agent else {
            let found = format!("there is no DaemonSet {name:?} in the namespace {namespace:?}");
            return vec![Finding::problem(about, found, "install the chart, or say --namespace")];
        };
        let status = agent.status.clone().unwrap_or_default();
        let found = format!("ready on {} of {} nodes", status.number_ready, status.desired_number_scheduled);
        let updated = status.updated_number_scheduled.unwrap_or_default();
        vec![if status.number_ready < status.desired_number_scheduled {
            Finding::problem(
                about,
                found,
                format!("see kubectl -n {namespace} get pods -o wide, and the logs of those that are not ready"),
            )
        } else if updated < status.desired_number_scheduled {
            let of = status.desired_number_scheduled;
            Finding::warning(
                about,
                format!("{updated} of {of} nodes have the newest"),
                "a rollout is under way, or stands still",
            )
        } else {
            Finding::ok(about, found)
        }]
    });
    let (Ok(agents), Ok(nodes), Ok(Some(_))) = (&cluster.agents, &cluster.nodes, &cluster.agent) else {
        return findings;
    };
    let ready: BTreeSet<&str> = agents.iter().filter(|pod| is_ready(pod)).filter_map(node_of).collect();
    let without =
        nodes.iter().filter(|node| is_linux(node)).map(|node| node.metadata.name.as_deref().unwrap_or_default());
    let without = named(without.filter(|node| !ready.contains(node)));
    if !without.is_empty() {
        let advice =
            "pods there have no sidecars; is the node excluded by a selector or a taint, or has its agent failed?";
        findings.push(Finding::warning("nodes without a ready agent", without, advice));
    }
    findings
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn is_linux(node: &Node) -> bool {
    node.status
        .as_ref()
        .and_then(|status| status.node_info.as_ref())
        .is_none_or(|info| info.operating_system == "linux")
}

fn nodes(cluster: &Cluster) -> Vec<Finding> {
    seen("nodes", &cluster.nodes, |nodes| {
        // Nodes of a kind are told of together.
        let mut kernels: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut runtimes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for node in nodes.iter().filter(|node| is_linux(node)) {
            let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else { continue };
            let name = node.metadata.name.as_deref().unwrap_or_default();
            kernels.entry(&info.kernel_version).or_default().push(name);
            runtimes.entry(&info.container_runtime_version).or_default().push(name);
        }
        let kernels = kernels.into_iter().map(|(version, nodes)| kernel(version, &named(nodes)));
        kernels.chain(runtimes.into_iter().map(|(version, nodes)| runtime(version, &named(nodes)))).collect()
    })
}

fn kernel(version: &str, nodes: &str) -> Finding {
    let (about, found) = ("Linux", format!("{version} ({nodes})"));
    match numbers(version) {
        Some(is) if is < LINUX_LEAST => {
            Finding::problem(about, found, "the agent cannot work there: it needs 5.14 or later")
        }
        Some(is) if is < LINUX_BEST => Finding::warning(
            about,
            found,
            "it works; each request costs more page faults than with 6.7 or later, which has PAGEMAP_SCAN",
        ),
        _ => Finding::ok(about, found),
    }
}

fn runtime(version: &str, nodes: &str) -> Finding {
    let (about, found) = ("the container runtime", format!("{version} ({nodes})"));
    let (kind, number) = version.split_once("://").unwrap_or((version, ""));
    let least = RUNTIMES.iter().find(|(name, _)| *name == kind).map(|(_, least)| *least);
    match (least, numbers(number)) {
        (Some(least), Some(is)) if is >= least => Finding::ok(about, found),
        _ => Finding::warning(
            about,
            found,
            "it is not known to give CNI plugins the pod's annotations: a pod may get its sidecars after its first container has started",
        ),
    }
}

fn pods(cluster: &Cluster) -> Vec<Finding> {
    let about = "pods with sidecars";
    seen(about, &cluster.pods, |pods| {
        let problems: Vec<_> = pods.iter().filter_map(|pod| of_pod(cluster, pod)).collect();
        if problems.is_empty() { vec![Finding::ok(about, format!("{}", pods.len()))] } else { problems }
    })
}

/// What keeps a pod from having what it names.
fn of_pod(cluster: &Cluster, pod: &Pod) -> Option<Finding> {
    let namespace = pod.namespace().unwrap_or_default();
    let about = format!("pod {namespace}/{}", pod.name_any());
    let text = pod.annotations().get(SIDECARS)?;
    let sidecars: Sidecars = match text.parse() {
        Ok(sidecars) => sidecars,
        Err(error) => {
            return Some(Finding::problem(about, format!("annotation {SIDECARS}: {error}"), "correct the annotation"));
        }
    };
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(Finding::problem(
            about,
            "it has the node's network (hostNetwork)",
            "only a pod with a network of its own can have sidecars",
        ));
    }
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|class| isolates(cluster, class)) {
        let found = format!("its runtime class {class:?} keeps its network from the node");
        return Some(Finding::problem(
            about,
            found,
            "gVisor and Kata pods cannot have sidecars: use another runtime class",
        ));
    }
    let (Ok(components), Ok(of_cluster)) = (&cluster.components, &cluster.cluster_components) else { return None };
    let is_there = |name: &str| {
        let of_namespace = |component: &&crate::resource::Component| component.namespace().as_ref() == Some(&namespace);
        components.iter().filter(of_namespace).any(|component| component.name_any() == name)
            || of_cluster.iter().any(|component| component.name_any() == name)
    };
    let missing = named(sidecars.iter().map(|sidecar| sidecar.name.as_str()).filter(|name| !is_there(name)));
    let found = format!("it names what is not there: {missing}");
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let is_closed = |name: &str| {
        let own = components.iter().any(|of| of.name_any() == name && of.namespace().as_ref() == Some(&namespace));
        let access = of_cluster.iter().find(|of| of.name_any() == name).and_then(|of| of.spec.access.as_ref());
        !own && access.is_some_and(|access| !access.allows(&namespace, account))
    };
    let closed = named(sidecars.iter().map(|sidecar| sidecar.name.as_str()).filter(|name| is_closed(name)));
    if missing.is_empty() && !closed.is_empty() {
        let found = format!("it may not have {closed}");
        return Some(Finding::problem(
            about,
            found,
            "allow its namespace or its service account in spec.access, or correct the annotation",
        ));
    }
    (!missing.is_empty()).then(|| {
        Finding::problem(about, found, "make a Component in its namespace, or a ClusterComponent, of that name")
    })
}

fn isolates(cluster: &Cluster, class: &str) -> bool {
    let classes = cluster.runtime_classes.as_ref().ok().into_iter().flatten();
    let handler = classes.filter(|of| of.name_any() == class).map(|of| of.handler.as_str()).next().unwrap_or(class);
    crate::catalog::isolates(handler)
}

fn components(cluster: &Cluster) -> Vec<Finding> {
    let of_namespaces = seen("Components", &cluster.components, |all| {
        let each = |of: &crate::resource::Component| {
            of_component(
                format!("Component {}/{}", of.namespace().unwrap_or_default(), of.name_any()),
                of.status.as_ref(),
            )
        };
        all.iter().filter_map(each).collect()
    });
    let of_cluster = seen("ClusterComponents", &cluster.cluster_components, |all| {
        let each = |of: &crate::resource::ClusterComponent| {
            of_component(format!("ClusterComponent {}", of.name_any()), of.status.as_ref())
        };
        all.iter().filter_map(each).collect()
    });
    of_namespaces.into_iter().chain(of_cluster).collect()
}

/// What keeps a component from being served. That no pod names it is nothing.
fn of_component(about: String, status: Option<&ComponentStatus>) -> Option<Finding> {
    let is_false = |kind| {
        let conditions = status.map(|status| &status.conditions).into_iter().flatten();
        conditions
            .into_iter()
            .find(move |condition| condition.kind == kind && condition.status == ConditionStatus::False)
    };
    let condition = is_false(ConditionType::Accepted).or_else(|| is_false(ConditionType::Ready))?;
    let found = format!("{}: {}", condition.reason, condition.message);
    Some(match condition.reason.as_str() {
        "Preparing" => Finding::warning(about, found, "wait; if it stays so, see the logs of the nodes' agents"),
        _ => {
            Finding::problem(about, found, "correct what the message names: the component, its image, or its registry")
        }
    })
}

#[cfg(test)]
mod tests;
