//! The readiness gate of pods: one that names it counts as ready only since its sidecars were all served.
//!
//! It opens once and never closes again: what was served goes on whatever becomes of control, a component or a registry, so none of these
//! takes a pod out of its Service.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    catalog::{ApiUid, ListedPod},
    control::Control,
};

/// The condition of a pod that its `readinessGates` name.
pub const READINESS: &str = "pillion.dev/sidecars";

/// How long to wait before what could not be written is written again.
const AGAIN: Duration = Duration::from_secs(2);

/// Opens the gates of pods while this replica leads, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    loop {
        control.until_leading(true).await;
        // What was written by another replica is seen when it is asked for.
        let all: Vec<_> = control.catalog().pods().map(|(uid, _)| ApiUid::clone(uid)).collect();
        control.look_at(all);
        let mut opened: HashSet<ApiUid> = HashSet::new();
        loop {
            let gated = tokio::select! {
                gated = control.gated() => gated,
                () = control.until_leading(false) => break,
            };
            opened.retain(|uid| control.catalog().pod(uid).is_some());
            let mut failed = Vec::new();
            for uid in gated.into_iter().filter(|uid| !opened.contains(uid)).collect::<Vec<_>>() {
                let Some(pod) = served(&control, &uid) else { continue };
                match open(&client, &uid, &pod).await {
                    Ok(()) => _ = opened.insert(uid),
                    Err(error) => {
                        let (namespace, pod) = (&pod.pod.namespace, &pod.pod.name);
                        tracing::warn!(namespace, pod, %error, "a pod's readiness cannot be written; it is tried again");
                        failed.push(uid);
                    }
                }
            }
            if !failed.is_empty() {
                tokio::time::sleep(AGAIN).await;
                control.look_at(failed);
            }
        }
    }
}

/// The pod, if all that it names is served.
fn served(control: &Control, uid: &ApiUid) -> Option<ListedPod> {
    let catalog = control.catalog();
    let pod = catalog.pod(uid)?;
    let is_served = catalog.is_served(pod, control.reports().get(&pod.node)?);
    is_served.then(|| pod.clone())
}

async fn open(client: &Client, uid: &str, pod: &ListedPod) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.pod.namespace);
    let Some(found) = api.get_opt(&pod.pod.name).await? else { return Ok(()) };
    if found.metadata.uid.as_deref() != Some(uid) {
        return Ok(());
    }
    let conditions = found.status.and_then(|status| status.conditions);
    let is_open = conditions.iter().flatten().any(|of| of.type_ == READINESS && of.status == "True");
    if is_open {
        return Ok(());
    }
    let condition = json!({
        "type": READINESS, "status": "True", "reason": "Served", "message": "all of its sidecars are served",
        "lastTransitionTime": Timestamp::now().to_string(),
    });
    // Of another pod of that name the API server refuses it.
    let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    api.patch_status(&pod.pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}
