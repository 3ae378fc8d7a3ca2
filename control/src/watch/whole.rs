//! What metadata does not say of a pod: its node, whom it runs as, its network, the ports of its containers. One pod is asked for, or all of a namespace, page by page.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodReadinessGate};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, ListParams},
    core::Object,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::LIVING;
use crate::{
    catalog::Departure,
    claims::{self, Claim},
    readiness::READINESS,
};

/// How long the API server may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Pods that one answer has.
const PAGE: u32 = 500;

/// To ask for one pod costs API server and control together as much as so many of a list: 0.9 ms and 0.18 ms on two cores.
const ONE: usize = 5;

/// So few are asked for one by one in any case.
const FEW: usize = 50;

/// What the whole pod says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) node: Option<String>,
    pub(super) service_account: String,
    pub(super) host_network: bool,
    pub(super) claims: Box<[Claim]>,
    pub(super) gated: bool,
    pub(super) runtime_class: Option<String>,
}

/// The part of a pod's spec that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
    runtime_class_name: Option<String>,
    readiness_gates: Vec<PodReadinessGate>,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

/// The part of its status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

type WholePod = Object<Spec, Status>;

/// Whether a namespace's pods are better listed than asked for one by one, where so many of all of them have the annotation.
pub(super) fn is_better_listed(annotated: usize, all: usize) -> bool {
    annotated > FEW && annotated.saturating_mul(ONE) >= all
}

/// Asks for one pod; for one that is no more, or another one of that name, with no node. `None` if there is no answer.
pub(super) async fn get(client: Client, namespace: &str, name: &str, uid: &str) -> Option<Whole> {
    // One that is no more, the watch will tell of.
    Some(ask(client, namespace, name, uid).await?.map(|pod| pod.spec.into()).unwrap_or_default())
}

/// Asks how a pod went that is watched no more. `None` if there is no answer.
pub(super) async fn departure(client: Client, namespace: &str, name: &str, uid: &str) -> Option<Departure> {
    let status = ask(client, namespace, name, uid).await?.and_then(|pod| pod.status);
    let has_ended = status.is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"));
    Some(if has_ended { Departure::Ended } else { Departure::Deleted })
}

/// Asks for the pod of this UID, which may be no more. `None` if there is no answer.
async fn ask(client: Client, namespace: &str, name: &str, uid: &str) -> Option<Option<WholePod>> {
    let answer = timeout(ANSWER, pods(client, namespace).get_opt(name)).await.map_err(|_| "no answer".to_owned());
    match answer.and_then(|answer| answer.map_err(|error| error.to_string())) {
        Ok(pod) => Some(pod.filter(|pod| pod.uid().as_deref() == Some(uid))),
        Err(error) => {
            tracing::warn!(namespace, pod = name, error, "a pod cannot be read; it is tried again");
            None
        }
    }
}

/// Asks for all pods of a namespace; for those of the pages that there was an answer of.
pub(super) async fn list(client: Client, namespace: &str) -> HashMap<String, Whole> {
    let (api, mut whole) = (pods(client, namespace), HashMap::new());
    let mut how = ListParams::default().fields(LIVING).limit(PAGE);
    loop {
        let page = match timeout(ANSWER, api.list(&how)).await {
            Ok(Ok(page)) => page,
            answer => {
                let error = answer.map_or_else(
                    |_| "no answer".to_owned(),
                    |answer| answer.map_or_else(|error| error.to_string(), |_| String::new()),
                );
                tracing::warn!(namespace, error, "a namespace's pods cannot be listed; they are asked for one by one");
                return whole;
            }
        };
        whole.extend(page.items.into_iter().filter_map(|pod| Some((pod.uid()?, pod.spec.into()))));
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => how = how.continue_token(&next),
            _ => return whole,
        }
    }
}

fn pods(client: Client, namespace: &str) -> Api<WholePod> {
    Api::namespaced_with(client, namespace, &ApiResource::erase::<Pod>(&()))
}

impl From<Spec> for Whole {
    fn from(spec: Spec) -> Self {
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            node: text(spec.node_name),
            service_account: text(spec.service_account_name).unwrap_or_else(|| "default".into()),
            host_network: spec.host_network.unwrap_or_default(),
            claims: claims::of_containers(spec.init_containers.iter().chain(&spec.containers)),
            gated: spec.readiness_gates.iter().any(|gate| gate.condition_type == READINESS),
            runtime_class: text(spec.runtime_class_name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said_is_as_the_api_server_has_it() {
        let whole = |spec| Whole::from(serde_json::from_value::<Spec>(spec).unwrap());
        let bare = Whole { service_account: "default".into(), ..Whole::default() };
        assert_eq!(whole(json!({"containers": [], "nodeName": ""})), bare);
        let said = json!({"nodeName": "a", "serviceAccountName": "teller", "hostNetwork": true, "runtimeClassName": "gvisor", "readinessGates": [{"conditionType": "other"}, {"conditionType": "pillion.dev/sidecars"}]});
        let (node, runtime_class) = (Some("a".into()), Some("gvisor".into()));
        assert_eq!(
            whole(said),
            Whole {
                node,
                service_account: "teller".into(),
                host_network: true,
                claims: Box::default(),
                gated: true,
                runtime_class
            }
        );
    }

    #[test]
    fn many_of_not_many_more_are_listed() {
        let table = [(50, 50, false), (51, 51, true), (51, 255, true), (51, 256, false), (30_000, 150_000, true)];
        for (annotated, all, expected) in table {
            assert_eq!(is_better_listed(annotated, all), expected, "{annotated} of {all}");
        }
    }
}
