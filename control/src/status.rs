//! What people see of components: `status`, written by the replica that leads, at most once a second for each component, and only where
//! it is otherwise.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use pillion_protocol::{id::ComponentId, resolution::Resolution, stream::ComponentReport, text};
use serde_json::json;

use crate::{
    control::Control,
    resolve::Image,
    resource::{ClusterComponent, Component, ComponentStatus, Condition, ConditionStatus, ConditionType, Rejection},
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// How long nodes have to come to a replica that leads from now on.
const ARRIVAL: Duration = Duration::from_secs(3);

/// So many are written at once.
const WRITTEN: usize = 8;

/// The reason of a component whose image control cannot read.
pub(crate) const UNREAD: &str = "Unread";

/// Writes what changes, while this replica leads, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    loop {
        control.until_leading(true).await;
        // Nodes come here first, and say what they have.
        control.forget_reports();
        tokio::time::sleep(ARRIVAL).await;
        // What changed while another one led was written by that, or not at all.
        let all: Vec<_> = control.catalog().components().map(|(id, _)| id.clone()).collect();
        control.unsettle(all);
        loop {
            let unsettled = tokio::select! {
                unsettled = control.unsettled() => unsettled,
                () = control.until_leading(false) => break,
            };
            let failed = write_all(&client, &control, unsettled).await;
            control.unsettle(failed);
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// Gives those that could not be written.
async fn write_all(client: &Client, control: &Control, ids: BTreeSet<ComponentId>) -> Vec<ComponentId> {
    let write = async |id: ComponentId| match write(client, control, &id).await {
        Ok(()) => None,
        Err(error) => {
            tracing::warn!(component = %id, %error, "a status cannot be written; it is tried again");
            Some(id)
        }
    };
    stream::iter(ids).map(write).buffer_unordered(WRITTEN).filter_map(async |failed| failed).collect().await
}

async fn write(client: &Client, control: &Control, id: &ComponentId) -> kube::Result<()> {
    match &id.namespace {
        Some(namespace) => {
            let api = Api::<Component>::namespaced(client.clone(), namespace.as_str());
            let Some(component) = api.get_opt(id.name.as_str()).await? else { return Ok(()) };
            let before = component.status.clone().unwrap_or_default();
            write_one(&api, control, id, component.metadata.generation, before).await
        }
        None => {
            let api = Api::<ClusterComponent>::all(client.clone());
            let Some(component) = api.get_opt(id.name.as_str()).await? else { return Ok(()) };
            let before = component.status.clone().unwrap_or_default();
            write_one(&api, control, id, component.metadata.generation, before).await
        }
    }
}

async fn write_one<K>(
    api: &Api<K>,
    control: &Control,
    id: &ComponentId,
    generation: Option<i64>,
    before: ComponentStatus,
) -> kube::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let Some(known) = known(control, id) else { return Ok(()) };
    let now = status(&known, generation, &before, &Timestamp::now().to_string());
    if now != before {
        // What is not said stays in a merge.
        let mut patch = json!({"status": now});
        if let Some(status) = patch.get_mut("status").and_then(serde_json::Value::as_object_mut) {
            for field in ["allowedOutboundHosts", "digest", "resolvedImage"] {
                status.entry(field).or_insert(serde_json::Value::Null);
            }
        }
        api.patch_status(id.name.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// What is known of a component, here and on nodes.
struct Known {
    accepted: Result<(), Rejection>,
    /// What its image was found to be.
    resolution: Option<Resolution>,
    /// The image with its digest.
    resolved_image: Option<String>,
    /// The cluster's component of this name is final, and pods have that one.
    is_overruled: bool,
    /// What each node that wants it has said of it as it is now, with its name.
    nodes: Vec<(String, Option<ComponentReport>)>,
}

impl Known {
    /// What is known of it here.
    fn new(image: &Image) -> Self {
        Self {
            accepted: image.accepted.as_ref().map(|_| ()).map_err(Clone::clone),
            resolution: image.resolution.clone(),
            resolved_image: image.resolved_image(),
            is_overruled: false,
            nodes: Vec::new(),
        }
    }
}

fn known(control: &Control, id: &ComponentId) -> Option<Known> {
    let known = Known::new(control.images().get(id)?);
    let catalog = control.catalog();
    let version = catalog.published(id)?.version().clone();
    let reports = control.reports();
    let of_node = |(node, seen): (crate::catalog::NodeName, BTreeSet<ComponentId>)| {
        let report = reports.get(&node);
        let said: Vec<_> =
            seen.iter().map(|id| report?.components.get(id).filter(|said| said.version == version)).collect();
        // One that several namespaces see is told of once for each, and is ready when all are.
        let failed = said.iter().flatten().find(|said| said.failure.is_some());
        let said = failed
            .copied()
            .or_else(|| said.iter().all(Option::is_some).then(|| said.first().copied().flatten()).flatten());
        (node.to_string(), said.cloned())
    };
    let nodes = catalog.nodes_of(id).into_iter().map(of_node).collect();
    Some(Known { nodes, is_overruled: catalog.is_overruled(id), ..known })
}

/// The status of a component. What has not changed keeps its time.
fn status(known: &Known, generation: Option<i64>, before: &ComponentStatus, now: &str) -> ComponentStatus {
    let count = |is: &dyn Fn(&ComponentReport) -> bool| {
        known.nodes.iter().filter(|(_, said)| said.as_ref().is_some_and(is)).count()
    };
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (wanted, ready) = (known.nodes.len(), count(&|said| said.failure.is_none()));
    let failed = count(&|said| said.failure.is_some());
    let digests: BTreeSet<_> = known.nodes.iter().filter_map(|(_, said)| said.as_ref()?.digest).collect();
    let digest = digests.first().filter(|_| digests.len() == 1).map(ToString::to_string);
    let outbound: BTreeSet<_> = known.nodes.iter().filter_map(|(_, said)| Some(&said.as_ref()?.outbound)).collect();
    let outbound = outbound.first().filter(|_| outbound.len() == 1).map(|hosts| Vec::clone(hosts));
    let condition = |kind, status, reason: &str, message: String| {
        let old = before.conditions.iter().find(|old| old.kind == kind && old.status == status);
        let since = old.map_or(now, |old| &old.last_transition_time);
        let (reason, last_transition_time) = (reason.to_owned(), since.to_owned());
        Condition { kind, status, reason, message, observed_generation: generation, last_transition_time }
    };
    let accepted = match &known.accepted {
        Ok(()) => condition(ConditionType::Accepted, ConditionStatus::True, "Accepted", "it can be served".into()),
        Err(Rejection { reason, message }) => {
            condition(ConditionType::Accepted, ConditionStatus::False, &format!("{reason:?}"), message.clone())
        }
    };
    let (is_resolved, why, message) = resolution(known);
    let resolved = condition(ConditionType::Resolved, is_resolved, why, message);
    let failures = || {
        let of_node = |(node, said): &(String, Option<ComponentReport>)| {
            Some(format!("{node}: {}", said.as_ref()?.failure.as_ref()?))
        };
        let all: Vec<_> = known.nodes.iter().filter_map(of_node).collect();
        text::reason(&all.join("; "))
    };
    let (status, reason, message) = match (&known.accepted, &known.resolution, wanted) {
        _ if known.is_overruled => {
            let message =
                "the ClusterComponent of this name is final: pods that name it have that one, and this one no pod";
            (ConditionStatus::False, "Overruled", message.into())
        }
        (Err(_), ..) => (ConditionStatus::False, "NotAccepted", "see the condition Accepted".into()),
        (Ok(()), None | Some(Resolution::Refused(_)), _) => {
            (ConditionStatus::False, "NotResolved", "see the condition Resolved; what was served before goes on".into())
        }
        (Ok(()), _, 0) => (ConditionStatus::Unknown, "NotBound", "no pod names it".into()),
        (Ok(()), ..) if failed > 0 => (ConditionStatus::False, "Failed", failures()),
        (Ok(()), ..) if ready == wanted => (ConditionStatus::True, "Ready", format!("{wanted} nodes serve it")),
        (Ok(()), ..) => (ConditionStatus::False, "Preparing", format!("{ready} of {wanted} nodes serve it")),
    };
    ComponentStatus {
        observed_generation: generation,
        resolved_image: known.resolved_image.clone(),
        digest,
        allowed_outbound_hosts: outbound.unwrap_or_default(),
        nodes: Some(format!("{ready}/{wanted}")),
        wanted_nodes: number(wanted),
        ready_nodes: number(ready),
        failed_nodes: number(failed),
        conditions: vec![accepted, resolved, condition(ConditionType::Ready, status, reason, message)],
    }
}

/// What is known of the image, as a condition: its status, its reason and its message.
fn resolution(known: &Known) -> (ConditionStatus, &'static str, String) {
    match (&known.accepted, &known.resolution) {
        (Err(_), _) => (ConditionStatus::Unknown, "NotAccepted", "see the condition Accepted".into()),
        (Ok(()), None) => (ConditionStatus::Unknown, "Resolving", "its registry is being asked".into()),
        (Ok(()), Some(Resolution::Resolved(digest))) => {
            (ConditionStatus::True, "Resolved", format!("nodes serve {digest}"))
        }
        (Ok(()), Some(Resolution::Refused(why))) => (ConditionStatus::False, "ImageRefused", text::reason(why)),
        (Ok(()), Some(Resolution::Unread(why))) => {
            let message = format!("control cannot read it, so each node asks for the tag itself: {why}");
            (ConditionStatus::False, UNREAD, text::reason(&message))
        }
    }
}

#[cfg(test)]
mod tests {
    use pillion_protocol::{
        component::{ComponentSpec, Image as SpecImage},
        digest::Digest,
        stream::Version,
    };

    use super::*;
    use crate::resolve::Images;

    fn said(failure: Option<&str>) -> Option<ComponentReport> {
        let (version, outbound) = (Version("v".into()), Vec::new());
        Some(ComponentReport { version, digest: None, failure: failure.map(Into::into), outbound })
    }

    fn known(resolution: Option<Resolution>, nodes: Vec<(String, Option<ComponentReport>)>) -> Known {
        let mut images = Images::default();
        let (id, spec) = ("clock".parse().unwrap(), SpecImage::Reference("r.example/clock:1".parse().unwrap()));
        images.accept(&id, Ok(ComponentSpec::new(spec).into()), None, None, None);
        let question = images.question(&id).unwrap();
        resolution.and_then(|resolution| images.resolve(&id, &question, resolution));
        Known { nodes, ..Known::new(images.get(&id).unwrap()) }
    }

    fn resolved(nodes: Vec<(String, Option<ComponentReport>)>) -> Known {
        known(Some(Resolution::Resolved(Digest::from_sha256([1; 32]))), nodes)
    }

    fn ready(known: &Known) -> (ConditionStatus, String, String) {
        let status = status(known, Some(3), &ComponentStatus::default(), "2026-01-01T00:00:00Z");
        let ready = status.conditions.into_iter().find(|condition| condition.kind == ConditionType::Ready).unwrap();
        (ready.status, ready.reason, ready.message)
    }

    #[test]
    fn a_component_is_ready_when_every_node_that_wants_it_says_so() {
        let known = |nodes: &[Option<ComponentReport>]| {
            resolved(nodes.iter().enumerate().map(|(i, said)| (format!("n{i}"), said.clone())).collect())
        };
        let table = [
            (vec![], ConditionStatus::Unknown, "NotBound"),
            (vec![None], ConditionStatus::False, "Preparing"),
            (vec![said(None), None], ConditionStatus::False, "Preparing"),
            (vec![said(None), said(None)], ConditionStatus::True, "Ready"),
            (vec![said(None), said(Some("no such image"))], ConditionStatus::False, "Failed"),
        ];
        for (nodes, status, reason) in table {
            let (is, why, message) = ready(&known(&nodes));
            assert_eq!((is, why.as_str()), (status, reason), "{message}");
        }
        assert_eq!(ready(&known(&[said(Some("no such image"))])).2, "n0: no such image");
        let accepted = Err(Rejection::invalid("\"x\" is no size".into()));
        assert_eq!(ready(&Known { accepted, ..resolved(vec![]) }).1, "NotAccepted");
    }

    #[test]
    fn what_is_known_of_the_image_is_a_condition_of_its_own() {
        let table = [
            (None, ConditionStatus::Unknown, "Resolving", "NotResolved"),
            (Some(Resolution::Refused("a tar".into())), ConditionStatus::False, "ImageRefused", "NotResolved"),
            (Some(Resolution::Unread("HTTP 401".into())), ConditionStatus::False, "Unread", "Ready"),
            (Some(Resolution::Resolved(Digest::from_sha256([1; 32]))), ConditionStatus::True, "Resolved", "Ready"),
        ];
        for (resolution, expected, why, is_ready) in table {
            let known = known(resolution, vec![("n".into(), said(None))]);
            let status = status(&known, Some(3), &ComponentStatus::default(), "2026-01-01T00:00:00Z");
            let resolved = status.conditions.iter().find(|of| of.kind == ConditionType::Resolved).unwrap();
            assert_eq!((resolved.status, resolved.reason.as_str()), (expected, why));
            assert_eq!(ready(&known).1, is_ready);
            assert_eq!(status.resolved_image.is_some(), expected == ConditionStatus::True);
        }
    }

    #[test]
    fn where_guests_may_call_out_to_is_said_where_nodes_agree() {
        let said = |hosts: &[&str]| {
            let outbound = hosts.iter().map(ToString::to_string).collect();
            Some(ComponentReport { outbound, ..said(None).unwrap() })
        };
        let shown = |nodes: Vec<Option<ComponentReport>>| {
            let known = resolved(nodes.into_iter().map(|said| ("n".to_owned(), said)).collect());
            status(&known, Some(3), &ComponentStatus::default(), "now").allowed_outbound_hosts
        };
        assert_eq!(shown(vec![said(&["https://a.example:443"]), None]), ["https://a.example:443"]);
        assert_eq!(shown(vec![said(&["https://a.example:443"]), said(&[])]), [""; 0]);
        assert_eq!(shown(vec![None]), [""; 0]);
    }

    #[test]
    fn what_has_not_changed_keeps_its_time() {
        let known = resolved(vec![("n".into(), said(None))]);
        let first = status(&known, Some(1), &ComponentStatus::default(), "then");
        assert_eq!(status(&known, Some(1), &first, "now"), first);
        let failed = resolved(vec![("n".into(), said(Some("gone")))]);
        let times: Vec<_> =
            status(&failed, Some(1), &first, "now").conditions.into_iter().map(|c| c.last_transition_time).collect();
        assert_eq!(times, ["then", "then", "now"]);
    }
}
