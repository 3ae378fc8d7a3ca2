//! What is said to the keeper, and what it answers: by the CNI plugin for each pod, to the host for each endpoint, and between two
//! keepers when one takes the other's place.
//!
//! Messages are JSON, at most [`MAX_MESSAGE`] bytes long, with descriptors beside them. Who talks may be of different versions while
//! a node is upgraded: fields that are not known are not read, and kinds of messages that are not known are passed over, or refused where
//! there is an answer. So what is added needs no other version; that changes only where a message comes to mean something else, and then
//! both sides wait until they are of one version again.

use std::{path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    annotation::{Port, Sidecars},
    name::{Name, shown},
    pod::{Pod, PodUid, SandboxId},
};

/// The version of these words.
pub const VERSION: u32 = 1;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 10;

/// The annotation's key for what a pod's start waits for.
pub const WAIT: &str = "pillion.dev/wait";

/// What a pod's first container waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Its ports accept connections. Requests are held while components are made ready.
    #[default]
    Bound,
    /// Its components are compiled, too.
    Ready,
}

/// A text that is no [`Wait`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is nothing to wait for: expected \"bound\" or \"ready\"")]
pub struct WaitError {
    text: String,
}

impl FromStr for Wait {
    type Err = WaitError;

    fn from_str(text: &str) -> Result<Self, WaitError> {
        match text.trim() {
            "bound" => Ok(Self::Bound),
            "ready" => Ok(Self::Ready),
            other => Err(WaitError { text: shown(other) }),
        }
    }
}

/// A request of the plugin, of a newer keeper, or of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of who asks.
    pub version: u32,
    /// What is asked for.
    pub call: Call,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// Bind a pod's endpoints. One descriptor: its network namespace. Asking again changes nothing.
    Add(Add),
    /// A sandbox ends. What is asked for another sandbox than the pod's current one changes nothing.
    Del {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// Give everything to a keeper of this generation, if that is newer. What follows is told in [`ToSuccessor`].
    Handover {
        /// The generation of who asks.
        generation: u64,
    },
    /// How the keeper is.
    Status,
}

/// A pod's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// The pod.
    pub pod: Pod,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Where the runtime keeps its network namespace: while this path leads to it, the sandbox lives.
    pub netns: PathBuf,
    /// What the annotation says.
    pub sidecars: Sidecars,
    /// What to wait for.
    #[serde(default)]
    pub wait: Wait,
    /// No plugin has asked: the keeper has found the pod by itself, when its containers may have begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// What the keeper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is done.
    Done,
    /// It cannot be done; the text is for people.
    Refused(String),
    /// How the keeper is.
    Status(Status),
}

/// How a keeper is that holds this node's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its generation: the keeper of a newer pod has a higher one.
    pub generation: u64,
    /// Pods with endpoints.
    pub pods: usize,
    /// Listeners that are held: up to two for each endpoint.
    pub listeners: usize,
    /// The most listeners that keeper and host can hold, by their limits on descriptors.
    pub listeners_max: usize,
    /// Hosts that are told of everything: two while one is replaced.
    pub hosts: usize,
    /// One of them came to this keeper by itself: that of the keeper's own pod.
    pub ready: bool,
}

/// What a keeper tells its successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToSuccessor {
    /// An endpoint. Its listeners come as descriptors.
    Held(Endpoint),
    /// A host. Its connection comes as a descriptor; the host hears of that when the successor has [`Taken`] everything.
    Host {
        /// It knows everything that is bound, and is told of changes only.
        introduced: bool,
    },
    /// That was all. One descriptor: the lock that says who holds this node's endpoints.
    Complete,
    /// Nothing is given; the text is for people.
    Refused(String),
}

/// What a successor says when it holds everything: from now on it is the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken;

/// An endpoint: a component at a port of a pod's localhost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod.
    pub pod: Pod,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// The cookie of the network namespace, to check listeners by.
    pub netns_cookie: u64,
    /// The component's name, as the annotation has it.
    pub name: Name,
    /// The port.
    pub port: Port,
    /// See [`Add::late`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// From the keeper to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToHost {
    /// Serve this endpoint. Its listeners come as descriptors, and replace those that came for it before.
    Bind(Endpoint),
    /// An endpoint is no more.
    Unbind {
        /// The pod.
        pod: PodUid,
        /// The port.
        port: Port,
    },
    /// A pod that is [`FromHost::Desired`] cannot have an endpoint, or none at all; it is tried again.
    Failed {
        /// The pod.
        pod: Pod,
        /// Why, for people.
        why: String,
    },
    /// Everything that is bound now was told.
    Complete,
    /// Another keeper is there. One descriptor: the connection to it, which takes the place of this one.
    Moved {
        /// It knows what this host holds, and tells of changes only.
        introduced: bool,
    },
}

/// From the host to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromHost {
    /// The first message.
    Hello {
        /// [`VERSION`] of the host.
        version: u32,
        /// The most listeners that it can take.
        listeners_max: usize,
    },
    /// The host still holds these listeners, from a keeper before this one. They come as descriptors.
    Held(Endpoint),
    /// That was all: the keeper may tell what is bound.
    Complete,
    /// What became of a component that is bound.
    Component {
        /// The namespace of the pods that see it; none where names mean the same everywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<Name>,
        /// Its name.
        name: Name,
        /// What became of it.
        fate: Fate,
    },
    /// A pod should have these endpoints, whether the CNI plugin is asked for it or not. That a pod is not named ends nothing.
    Desired {
        /// The pod.
        pod: Pod,
        /// Its endpoints.
        sidecars: Sidecars,
        /// Where its network namespace may be. It is believed only if the pod's processes are there.
        netns: Option<PathBuf>,
    },
    /// A pod has ended, or should have no endpoints any more.
    Ended(PodUid),
    /// The API has a pod no more. If no CNI plugin was asked for it, it has ended; else its sandbox says when it does.
    Deleted(PodUid),
}

/// What became of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is compiled and answers.
    Ready,
    /// It cannot be served; the text is for people.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_words() {
        let text = r#"{"version":1,"call":{"add":{"pod":{"uid":"u-1","namespace":"shop","name":"cart-0"},"sandbox":"c1","netns":"/run/netns/x","sidecars":"clock=8081, jwt-authz=8082","wait":"ready"}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        let text = r#"{"version":1,"call":{"del":{"sandbox":"c1"}}}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Request>(text).unwrap()).unwrap(), text);
    }

    /// What is said again of what was understood.
    type Again = fn(&str) -> Option<String>;

    /// The words of today, which neighbours of the version before and after speak: they stay understood, and stay what is said.
    const WORDS: [(&str, Again); 22] = [
        (r#"{"version":1,"call":"status"}"#, again::<Request>),
        (r#"{"version":1,"call":{"handover":{"generation":7}}}"#, again::<Request>),
        (r#""done""#, again::<Answer>),
        (r#"{"refused":"why"}"#, again::<Answer>),
        (
            r#"{"status":{"generation":7,"pods":1,"listeners":2,"listenersMax":3,"hosts":1,"ready":true}}"#,
            again::<Answer>,
        ),
        (r#"{"held":ENDPOINT}"#, again::<ToSuccessor>),
        (r#"{"host":{"introduced":true}}"#, again::<ToSuccessor>),
        (r#""complete""#, again::<ToSuccessor>),
        (r#"{"refused":"why"}"#, again::<ToSuccessor>),
        ("null", again::<Taken>),
        (r#"{"bind":ENDPOINT}"#, again::<ToHost>),
        (r#"{"unbind":{"pod":"u-1","port":8081}}"#, again::<ToHost>),
        (r#"{"failed":{"pod":POD,"why":"why"}}"#, again::<ToHost>),
        (r#""complete""#, again::<ToHost>),
        (r#"{"moved":{"introduced":false}}"#, again::<ToHost>),
        (r#"{"hello":{"version":1,"listeners_max":11040}}"#, again::<FromHost>),
        (r#"{"held":ENDPOINT}"#, again::<FromHost>),
        (r#""complete""#, again::<FromHost>),
        (r#"{"component":{"namespace":"shop","name":"clock","fate":"ready"}}"#, again::<FromHost>),
        (r#"{"component":{"name":"clock","fate":{"failed":"why"}}}"#, again::<FromHost>),
        (r#"{"desired":{"pod":POD,"sidecars":"clock=8081","netns":null}}"#, again::<FromHost>),
        (r#"{"ended":"u-1"}"#, again::<FromHost>),
    ];

    fn again<T: Serialize + for<'de> Deserialize<'de>>(text: &str) -> Option<String> {
        serde_json::to_string(&serde_json::from_str::<T>(text).ok()?).ok()
    }

    fn whole(text: &str) -> String {
        let endpoint =
            r#"{"pod":POD,"sandbox":"c1","netns":"/run/netns/x","netns_cookie":5,"name":"clock","port":8081}"#;
        let pod = r#"{"uid":"u-1","namespace":"shop","name":"cart-0"}"#;
        text.replace("ENDPOINT", endpoint).replace("POD", pod)
    }

    #[test]
    fn words_stay_what_they_are_and_further_fields_are_not_read() {
        for (text, again) in WORDS {
            let text = whole(text);
            assert_eq!(again(&text).as_ref(), Some(&text), "{text}");
            // In each object but those whose only field is a kind.
            let newer = text
                .replace(r#"{"version""#, r#"{"newer":{"a":[1]},"version""#)
                .replace(r#"{"uid""#, r#"{"newer":7,"uid""#);
            let newer =
                newer.replace(r#"{"pod""#, r#"{"newer":null,"pod""#).replace(r#"{"name"#, r#"{"newer":"x","name"#);
            let newer = newer
                .replace(r#"{"introduced""#, r#"{"newer":[],"introduced""#)
                .replace(r#"{"generation""#, r#"{"newer":1,"generation""#);
            assert_eq!(again(&newer).as_ref(), Some(&text), "{newer}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_by_the_text_at_fault() {
        let with = |sidecars: &str, uid: &str| {
            format!(
                r#"{{"version":1,"call":{{"add":{{"pod":{{"uid":"{uid}","namespace":"n","name":"p"}},"sandbox":"c","netns":"/x","sidecars":"{sidecars}"}}}}}}"#
            )
        };
        let error = |text: String| serde_json::from_str::<Request>(&text).unwrap_err().to_string();
        assert!(error(with("clock=80", "u")).contains("\"80\" is no port"));
        assert!(error(with("clock=8081", "../u")).contains("\"../u\" is no pod UID"));
        assert!("later".parse::<Wait>().unwrap_err().to_string().contains("\"later\" is nothing to wait for"));
    }
}
