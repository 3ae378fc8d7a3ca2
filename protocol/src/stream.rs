//! What control and a node say to each other, over HTTPS.
//!
//! | request | from the node | from control |
//! |---|---|---|
//! | `POST /v1/stream` | [`Subscribe`] | [`ToNode`], one JSON object a line, for as long as the node's token is good |
//! | `POST /v1/report` | [`Report`] | nothing |
//!
//! Each resource has a version, an opaque text. A node that comes back says which versions it has, and is told what is otherwise and
//! what has ended meanwhile: so there is no history that could be too short, and it may come back to another replica of control.
//! What a node does not know means nothing to it, and a message that it cannot read changes nothing; what it must understand comes with a new
//! one of [`VERSIONS`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    annotation::{Port, Sidecars},
    component::ComponentSpec,
    digest::Digest,
    id::ComponentId,
    login::Login,
    name::Name,
    pod::{Pod, PodUid},
    text::encoded,
};

/// The versions of these words that are understood.
pub const VERSIONS: &[u32] = &[1];

/// The audience of a node's token.
pub const AUDIENCE: &str = "pillion.dev/control";

/// The path of the stream.
pub const STREAM: &str = "/v1/stream";

/// The path of reports.
pub const REPORT: &str = "/v1/report";

/// The most bytes of a line, its end included, and of a request. What would be longer is not said.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The most bytes of a [`WantedComponent`] as JSON, values and login included, that control accepts: with its name and its version it makes a line.
/// A control character has six there.
pub const MAX_COMPONENT: usize = 3 << 20;

/// A message that the other side would not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsayable {
    /// Longer than [`MAX_MESSAGE`].
    #[error("{bytes} bytes are too long for a message: at most {MAX_MESSAGE} are allowed")]
    TooLong {
        /// What it takes, with the line's end.
        bytes: usize,
    },
    /// Something that JSON does not have.
    #[error("it cannot be written: {0}")]
    Unwritten(String),
}

/// A message as the other side reads it: one line of JSON, its end included.
///
/// # Errors
///
/// A message that is too long, or that cannot be written.
pub fn line(message: &impl Serialize) -> Result<Vec<u8>, Unsayable> {
    let unwritten = |error: serde_json::Error| Unsayable::Unwritten(error.to_string());
    let mut line = Bounded(Vec::new());
    match serde_json::to_writer(&mut line, message) {
        Ok(()) => line.0.push(b'\n'),
        Err(error) if error.is_io() => {
            return Err(Unsayable::TooLong { bytes: encoded(message).map_err(unwritten)?.saturating_add(1) });
        }
        Err(error) => return Err(unwritten(error)),
    }
    Ok(line.0)
}

/// A line without its end; what would make it too long is not taken.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) >= MAX_MESSAGE {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The highest version that both sides understand.
pub fn common_version(theirs: &[u32]) -> Option<u32> {
    VERSIONS.iter().filter(|ours| theirs.contains(ours)).max().copied()
}

/// How a node asks for its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The versions of these words that the node understands.
    pub versions: Vec<u32>,
    /// What it has: each resource with its version. Of a kind that is not known, nothing is known.
    #[serde(default, deserialize_with = "known")]
    pub known: BTreeMap<Key, Version>,
}

/// The version of a resource. Two that differ are of different content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub String);

/// A resource, written `pod/UID` or `component/NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Key {
    /// A pod of the node.
    Pod(PodUid),
    /// A component that one of them names.
    Component(ComponentId),
}

/// From control to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToNode {
    /// Always first.
    Hello {
        /// The version of these words, one of [`Subscribe::versions`].
        version: u32,
        /// Which replica of control this is.
        control: String,
        /// Something is said at least this often.
        heartbeat_seconds: u64,
    },
    /// A component that a pod of the node names, new or changed.
    Component {
        /// Which one.
        id: ComponentId,
        /// Its version.
        version: Version,
        /// What it is.
        #[serde(flatten)]
        wanted: WantedComponent,
    },
    /// No pod of the node names this component any more.
    ComponentGone {
        /// Which one.
        id: ComponentId,
    },
    /// A pod of the node with sidecars, new or changed.
    Pod {
        /// Its version.
        version: Version,
        /// What it is to have.
        #[serde(flatten)]
        wanted: WantedPod,
    },
    /// A pod has ended, or has no sidecars any more.
    PodEnded {
        /// Its UID.
        uid: PodUid,
    },
    /// The API has a pod no more: it has ended, unless a CNI plugin was asked for it. Then its runtime says when it ends: hooks of a pod that
    /// was deleted by force still run, and a static pod is not its copy.
    PodDeleted {
        /// Its UID.
        uid: PodUid,
    },
    /// Everything that there was when the node asked has been told.
    Complete,
    /// Control is there.
    Heartbeat,
    /// Something that this node does not know.
    #[serde(other)]
    Unknown,
}

/// What a component is, and what nodes need to serve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WantedComponent {
    /// What it is, with the values that it refers to.
    pub spec: Box<ComponentSpec>,
    /// Who nodes are at the image's registry, where one of the component's pull secrets says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// It has something of a Secret in it: it is never written to a disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confidential: bool,
    /// Control could not read the image as who the component is: what others had pulled is served to its namespace only once the registry has
    /// let that to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

impl From<ComponentSpec> for WantedComponent {
    /// One without a secret.
    fn from(spec: ComponentSpec) -> Self {
        Self { spec: Box::new(spec), login: None, confidential: false, unproven: false }
    }
}

/// What a pod is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPod {
    /// The pod, by the UID that the node's runtime knows.
    pub pod: Pod,
    /// What its annotation says.
    pub sidecars: Sidecars,
    /// Those of them that are not to be served: bound, but no instance is ever made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<Name, Refusal>,
}

/// Why a pod's sidecar is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In one word.
    pub reason: RefusalReason,
    /// For people.
    pub message: String,
}

/// Why a pod's sidecar is not served, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// There is no such component. One that was served before goes on: it was there when the pod was bound.
    Unknown,
    /// The pod may not have this component.
    NotAllowed,
    /// The component cannot be served as it is now. One that was served before goes on.
    NotAccepted,
    /// It is about to be known what the component is: requests wait. One that was served before goes on.
    Undecided,
    /// For a reason that this node does not know.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// A refusal; of a long message only the beginning is kept.
    pub fn new(reason: RefusalReason, message: &str) -> Self {
        Self { reason, message: crate::text::reason(message) }
    }
}

/// From a node to control: everything that it knows. It takes the place of what the node said before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What became of components.
    #[serde(default)]
    pub components: BTreeMap<ComponentId, ComponentReport>,
    /// What became of pods.
    #[serde(default)]
    pub pods: BTreeMap<PodUid, PodReport>,
    /// What there was no room for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// What became of a pod on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The ports that accept connections in it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub bound: BTreeSet<Port>,
    /// They may do so only since after its first container began: no CNI plugin has asked for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Why one of them does not, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What became of a component on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentReport {
    /// The version that this is about.
    pub version: Version,
    /// The digest of what is served; an older version's where the newer one cannot be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why this version is not served, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Where the guests of what is served may call out to, as far as a report has room for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<String>,
}

fn known<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Key, Version>, D::Error> {
    let known = BTreeMap::<String, Version>::deserialize(deserializer)?;
    Ok(known.into_iter().filter_map(|(key, version)| Some((Key::try_from(key).ok()?, version))).collect())
}

impl ToNode {
    /// The resource that it is about.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Component { id, .. } | Self::ComponentGone { id } => Some(Key::Component(id.clone())),
            Self::Pod { wanted, .. } => Some(Key::Pod(wanted.pod.uid.clone())),
            Self::PodEnded { uid } | Self::PodDeleted { uid } => Some(Key::Pod(uid.clone())),
            Self::Hello { .. } | Self::Complete | Self::Heartbeat | Self::Unknown => None,
        }
    }

    /// Takes note of it in what is known.
    pub fn note_in(&self, known: &mut BTreeMap<Key, Version>) {
        match (self.key(), self.version()) {
            (Some(key), Some(version)) => _ = known.insert(key, version.clone()),
            (Some(key), None) => _ = known.remove(&key),
            (None, _) => {}
        }
    }

    /// The version of what it tells; `None` where something ended.
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Component { version, .. } | Self::Pod { version, .. } => Some(version),
            _ => None,
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        match key {
            Key::Pod(uid) => format!("pod/{uid}"),
            Key::Component(id) => format!("component/{id}"),
        }
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("pod", uid)) => Ok(Self::Pod(uid.parse().map_err(|error| format!("{error}"))?)),
            Some(("component", id)) => Ok(Self::Component(id.parse().map_err(|error| format!("{error}"))?)),
            _ => Err(format!(
                "{:?} is no resource: expected pod/UID or component/NAMESPACE/NAME",
                crate::name::shown(&text)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_keep_their_words() {
        let table = [
            json!({"type": "hello", "version": 1, "control": "c-0", "heartbeatSeconds": 10}),
            json!({"type": "pod", "version": "v", "pod": {"uid": "u-1", "namespace": "shop", "name": "cart-0"},
                "sidecars": "clock=8081", "refused": {"clock": {"reason": "not-allowed", "message": "no"}}}),
            json!({"type": "podEnded", "uid": "u-1"}),
            json!({"type": "podDeleted", "uid": "u-1"}),
            json!({"type": "componentGone", "id": "shop/clock"}),
            json!({"type": "complete"}),
        ];
        for text in table {
            let read: ToNode = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), text);
        }
        let subscribe = json!({"versions": [1], "known": {"component/shop/clock": "v1", "pod/u-1": "v2"}});
        let read: Subscribe = serde_json::from_value(subscribe.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), subscribe);
    }

    #[test]
    fn what_a_newer_control_says_besides_means_nothing() {
        let newer = json!({"type": "fireworks", "at": "midnight"});
        assert_eq!(serde_json::from_value::<ToNode>(newer).unwrap(), ToNode::Unknown);
        let newer = json!({"type": "podEnded", "uid": "u-1", "why": "evicted"});
        assert!(matches!(serde_json::from_value::<ToNode>(newer).unwrap(), ToNode::PodEnded { .. }));
        let newer = json!({"versions": [1, 2], "known": {"firework/x": "v", "pod/u-1": "v2"}});
        assert_eq!(serde_json::from_value::<Subscribe>(newer).unwrap().known.len(), 1);
        let newer = json!({"reason": "no-fireworks", "message": "why"});
        assert_eq!(serde_json::from_value::<Refusal>(newer).unwrap().reason, RefusalReason::Other);
        assert_eq!((common_version(&[1, 2]), common_version(&[2, 3])), (Some(1), None));
    }

    #[test]
    fn a_line_is_as_long_as_the_other_side_reads_and_not_longer() {
        let of = |bytes: usize| line(&"x".repeat(bytes));
        let longest = of(MAX_MESSAGE - 3).unwrap();
        assert_eq!((longest.len(), longest.last()), (MAX_MESSAGE, Some(&b'\n')));
        assert_eq!(of(MAX_MESSAGE - 2), Err(Unsayable::TooLong { bytes: MAX_MESSAGE + 1 }));
        let escaped = line(&"\u{1}".repeat(MAX_MESSAGE / 6 + 1));
        assert_eq!(
            escaped.unwrap_err().to_string(),
            "4194309 bytes are too long for a message: at most 4194304 are allowed"
        );
    }

    #[test]
    fn a_key_that_is_none_is_named() {
        for wrong in ["pod", "pod/../x", "component/", "node/a"] {
            assert!(Key::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
