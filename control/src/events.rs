//! What the owner of a pod sees: an Event for each sidecar that is not served, with the text at fault, and one when it is again.
//!
//! The replica that leads writes them, some in a second; what changes to and fro meanwhile is told as it is in the end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use pillion_protocol::{annotation::SIDECARS, stream::RefusalReason};

use crate::{
    catalog::{ApiUid, Catalog, ListedPod},
    control::Control,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// The pause between two Events: the API server has others to serve.
const PAUSE: Duration = Duration::from_millis(50);

/// The most of a text that an Event may have, in characters.
const NOTE: usize = 900;

/// What is wrong with a pod's sidecars: of each, or of all where there is no name.
pub type Problems = BTreeMap<Option<String>, Problem>;

/// What is wrong with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word, as Events have it.
    pub reason: &'static str,
    /// With the text at fault.
    pub message: String,
}

impl Catalog {
    /// What is wrong with a pod's sidecars.
    pub fn problems(&self, pod: &ListedPod) -> Problems {
        let of_all = |reason, message| Problems::from([(None, Problem { reason, message })]);
        match (&pod.sidecars, self.unreachable(pod)) {
            (Err(error), _) => of_all("SidecarsInvalid", format!("annotation {SIDECARS}: {error}")),
            (Ok(_), Some(why)) => of_all("SidecarsImpossible", format!("annotation {SIDECARS}: {why}")),
            (Ok(_), None) => {
                let refused = |(name, refusal): (pillion_protocol::name::Name, pillion_protocol::stream::Refusal)| {
                    let reason = match refusal.reason {
                        RefusalReason::Unknown => "SidecarUnknown",
                        RefusalReason::NotAllowed => "SidecarNotAllowed",
                        RefusalReason::NotAccepted | RefusalReason::Other => "SidecarNotAccepted",
                    };
                    let message = format!("annotation {SIDECARS}, {:?}: {}", name.as_str(), refusal.message);
                    (Some(name.to_string()), Problem { reason, message })
                };
                self.refusals(pod).into_iter().map(refused).collect()
            }
        }
    }
}

/// Writes Events while this replica leads, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    let reporter =
        Reporter { controller: "pillion.dev/control".into(), instance: Some(control.settings.identity.clone()) };
    let recorder = Recorder::new(client, reporter);
    loop {
        control.until_leading(true).await;
        // What was told by another replica is not known here: what is wrong now is told once more.
        let mut told: HashMap<ApiUid, Problems> = HashMap::new();
        let all: Vec<_> = control.catalog().pods().map(|(uid, _)| ApiUid::clone(uid)).collect();
        control.look_at(all);
        loop {
            let changed = tokio::select! {
                changed = control.looked_at() => changed,
                () = control.until_leading(false) => break,
            };
            for uid in changed {
                tell(&recorder, &control, &mut told, &uid).await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

async fn tell(recorder: &Recorder, control: &Control, told: &mut HashMap<ApiUid, Problems>, uid: &ApiUid) {
    let Some((pod, now)) = problems(control, uid) else {
        told.remove(uid);
        return;
    };
    let before = told.remove(uid).unwrap_or_default();
    for event in events(&before, &now) {
        let published = recorder.publish(&event, &pod).await;
        if let Err(error) = published {
            let (namespace, pod) = (&pod.namespace, &pod.name);
            tracing::warn!(namespace, pod, %error, "an Event cannot be written; it is tried again when something changes");
            told.insert(ApiUid::clone(uid), before);
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    if !now.is_empty() {
        told.insert(ApiUid::clone(uid), now);
    }
}

fn problems(control: &Control, uid: &ApiUid) -> Option<(ObjectReference, Problems)> {
    let catalog = control.catalog();
    let pod = catalog.pod(uid)?;
    let reference = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.pod.namespace.clone()),
        name: Some(pod.pod.name.clone()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    };
    Some((reference, catalog.problems(pod)))
}

/// What to tell of a pod: what is wrong now and was not told, and what is wrong no more.
fn events(before: &Problems, now: &Problems) -> Vec<Event> {
    let event = |type_, reason: &str, note: String| Event {
        type_,
        reason: reason.into(),
        note: Some(note.chars().take(NOTE).collect()),
        action: "Bind".into(),
        secondary: None,
    };
    let wrong = now.iter().filter(|(name, problem)| before.get(*name) != Some(*problem));
    let wrong = wrong.map(|(_, problem)| event(EventType::Warning, problem.reason, problem.message.clone()));
    let right = before.keys().filter(|name| !now.contains_key(*name)).map(|name| {
        let which =
            name.as_ref().map_or_else(|| "the sidecars are".to_owned(), |name| format!("the sidecar {name:?} is"));
        event(EventType::Normal, "SidecarServed", format!("{which} served now"))
    });
    wrong.chain(right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(message: &str) -> Problem {
        Problem { reason: "SidecarUnknown", message: message.into() }
    }

    #[test]
    fn what_is_told_is_what_has_changed() {
        let notes = |before: &Problems, now: &Problems| -> Vec<String> {
            events(before, now).into_iter().map(|event| format!("{} {}", event.reason, event.note.unwrap())).collect()
        };
        let clock = |message: &str| Problems::from([(Some("clock".into()), problem(message))]);
        let none = Problems::new();
        assert_eq!(notes(&none, &none), [""; 0]);
        assert_eq!(notes(&none, &clock("there is none")), ["SidecarUnknown there is none"]);
        assert_eq!(notes(&clock("there is none"), &clock("there is none")), [""; 0]);
        assert_eq!(notes(&clock("there is none"), &clock("not for you")), ["SidecarUnknown not for you"]);
        assert_eq!(notes(&clock("there is none"), &none), ["SidecarServed the sidecar \"clock\" is served now"]);
        let long = clock(&"ä".repeat(10_000));
        assert!(notes(&none, &long)[0].chars().count() < 1_000);
    }
}
