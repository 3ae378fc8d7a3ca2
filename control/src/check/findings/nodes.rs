//! What nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::{Cluster, Finding, named, numbers, seen};

/// Linux has `SO_NETNS_COOKIE` since 5.14, and what it is meant to work with is 5.15.
const LINUX_LEAST: (u32, u32) = (5, 14);
/// `PAGEMAP_SCAN`.
const LINUX_BEST: (u32, u32) = (6, 7);

/// Since when runtimes give CNI plugins the pod's annotations: containerd's #5026, CRI-O's #7122.
const RUNTIMES: [(&str, (u32, u32)); 2] = [("containerd", (1, 5)), ("cri-o", (1, 29))];

pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
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

pub(super) fn is_linux(node: &Node) -> bool {
    node.status
        .as_ref()
        .and_then(|status| status.node_info.as_ref())
        .is_none_or(|info| info.operating_system == "linux")
}
