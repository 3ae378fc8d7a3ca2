//! What the owner of a pod sees: an Event for each sidecar that is not served, with the text at fault, and one when it is again.
//!
//! The replica that leads writes them, some in a second, namespaces in turns; what changes to and fro meanwhile is told as it is in the end.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use tokio::time::Instant;

use crate::{
    catalog::{ApiUid, ListedPod},
    control::{Control, Leading},
    served::{About, Problems, of_strays},
    turns::Turns,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// The pause between two Events: the API server has others to serve.
const PAUSE: Duration = Duration::from_millis(50);

/// The most of a text that an Event may have, in characters.
const NOTE: usize = 900;

/// Writes Events while this replica leads, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    loop {
        control.until_leading(true).await;
        // What was told by another replica is not known here: what is wrong now is told once more.
        let mut told: HashMap<ApiUid, Problems> = HashMap::new();
        let all = control.catalog().uids();
        control.look_at(all);
        let mut turns = Turns::default();
        while *control.leading.borrow() == Leading::Yes {
            let changed = tokio::select! {
                biased;
                changed = control.looked_at() => changed,
                () = control.until_leading(false) => break,
                // Those who wait have their turns, and what changes meanwhile is heard of.
                () = std::future::ready(()), if !turns.is_empty() => BTreeSet::new(),
            };
            line_up(&control, &mut turns, changed);
            let until = Instant::now() + GATHER;
            for uid in turns.by_ref() {
                tell(&client, &control, &mut told, &uid).await;
                if Instant::now() >= until {
                    break;
                }
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

fn line_up(control: &Control, turns: &mut Turns, pods: BTreeSet<ApiUid>) {
    let catalog = control.catalog();
    for uid in pods {
        // One that has gone has nothing to be told, and is forgotten in passing.
        let namespace = catalog.pod(&uid).map(|pod| pod.pod.namespace.as_str());
        let namespace = namespace.or_else(|| Some(catalog.stray(&uid)?.namespace.as_str()));
        turns.add(namespace.unwrap_or_default(), uid);
    }
}

async fn tell(client: &Client, control: &Control, told: &mut HashMap<ApiUid, Problems>, uid: &ApiUid) {
    let Some((pod, now)) = problems(control, uid) else {
        told.remove(uid);
        return;
    };
    let before = told.remove(uid).unwrap_or_default();
    for event in events(&before, &now) {
        let published = recorder(client, control).publish(&event, &pod).await;
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

/// A new one for each Event: one that lives counts all of the same reason as the first of them, whatever they say.
fn recorder(client: &Client, control: &Control) -> Recorder {
    let (controller, instance) = ("pillion.dev/control".into(), Some(control.settings.identity.clone()));
    Recorder::new(client.clone(), Reporter { controller, instance })
}

fn problems(control: &Control, uid: &ApiUid) -> Option<(ObjectReference, Problems)> {
    let catalog = control.catalog();
    let (pod, stray) = (catalog.pod(uid), catalog.stray(uid));
    let (namespace, name) = match (pod, stray) {
        (Some(pod), _) => (&pod.pod.namespace, &pod.pod.name),
        (None, Some(stray)) => (&stray.namespace, &stray.name),
        (None, None) => return None,
    };
    let reference = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace.clone()),
        name: Some(name.clone()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    };
    let of_pod =
        |pod: &ListedPod| catalog.problems(pod, control.reports().get(&pod.node), control.is_absent(&pod.node));
    let mut problems = pod.map(of_pod).unwrap_or_default();
    problems.extend(stray.and_then(|stray| of_strays(&stray.strays)));
    Some((reference, problems))
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
    let right = before.keys().filter(|about| !now.contains_key(*about)).filter_map(|about| {
        let (reason, note) = match about {
            About::Sidecars => ("SidecarServed", "the sidecars are served now".into()),
            About::Sidecar(name) => ("SidecarServed", format!("the sidecar {name:?} is served now")),
            About::Node => ("AgentConnected", "the node's agent is connected to control".into()),
            // Who has mended these knows that.
            About::Port(_) | About::Strays => return None,
        };
        Some(event(EventType::Normal, reason, note))
    });
    wrong.chain(right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Problem;

    fn problem(message: &str) -> Problem {
        Problem { reason: "SidecarUnknown", message: message.into() }
    }

    #[test]
    fn what_is_told_is_what_has_changed() {
        let notes = |before: &Problems, now: &Problems| -> Vec<String> {
            events(before, now).into_iter().map(|event| format!("{} {}", event.reason, event.note.unwrap())).collect()
        };
        let clock = |message: &str| Problems::from([(About::Sidecar("clock".into()), problem(message))]);
        let none = Problems::new();
        assert_eq!(notes(&none, &none), [""; 0]);
        assert_eq!(notes(&none, &clock("there is none")), ["SidecarUnknown there is none"]);
        assert_eq!(notes(&clock("there is none"), &clock("there is none")), [""; 0]);
        assert_eq!(notes(&clock("there is none"), &clock("not for you")), ["SidecarUnknown not for you"]);
        assert_eq!(notes(&clock("there is none"), &none), ["SidecarServed the sidecar \"clock\" is served now"]);
        let about = |about| Problems::from([(about, problem("x"))]);
        assert_eq!(notes(&about(About::Node), &none), ["AgentConnected the node's agent is connected to control"]);
        assert_eq!(notes(&about(About::Strays), &none), [""; 0]);
        let long = clock(&"ä".repeat(10_000));
        assert!(notes(&none, &long)[0].chars().count() < 1_000);
    }
}
