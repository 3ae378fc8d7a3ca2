//! What pods name.

use kube::ResourceExt;

use super::{Cluster, Finding, seen};
use crate::{
    resource::{ClusterComponent, Component, ComponentStatus, ConditionStatus, ConditionType},
    status::UNREAD,
};

pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
    let of_namespaces = seen("Components", &cluster.components, |all| {
        let each = |of: &Component| {
            of_component(
                format!("Component {}/{}", of.namespace().unwrap_or_default(), of.name_any()),
                of.status.as_ref(),
            )
        };
        all.iter().filter_map(each).collect()
    });
    let of_cluster = seen("ClusterComponents", &cluster.cluster_components, |all| {
        let each =
            |of: &ClusterComponent| of_component(format!("ClusterComponent {}", of.name_any()), of.status.as_ref());
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
    let resolved = is_false(ConditionType::Resolved);
    let condition = is_false(ConditionType::Accepted)
        .or_else(|| resolved.filter(|condition| condition.reason != UNREAD))
        .or_else(|| is_false(ConditionType::Ready))
        .or(resolved)?;
    let found = format!("{}: {}", condition.reason, condition.message);
    Some(match condition.reason.as_str() {
        "Preparing" => Finding::warning(about, found, "wait; if it stays so, see the logs of the nodes' agents"),
        UNREAD => Finding::warning(
            about,
            found,
            "nodes that serve it may not all have the same: let control read it too, by imagePullSecrets or the chart's registries",
        ),
        _ => {
            Finding::problem(about, found, "correct what the message names: the component, its image, or its registry")
        }
    })
}
