//! What is said to the keeper, and what it answers: by the CNI plugin for each pod, and to the host for each endpoint.
//!
//! Messages are JSON, at most [`MAX_MESSAGE`] bytes long, with descriptors beside them. The plugin and the keeper may be of
//! different versions while a node is upgraded, so each request says which words it uses.

use std::{path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    annotation::{Port, Sidecars},
    name::{Name, shown},
    pod::{Pod, SandboxId},
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

/// A request of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of who asks.
    pub version: u32,
    /// What is asked for.
    pub call: Call,
}

/// What the plugin asks for.
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
}

/// What the keeper answers to the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is done.
    Done,
    /// It cannot be done; the text is for people.
    Refused(String),
}

/// An endpoint: a component at a port of a pod's localhost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod.
    pub pod: Pod,
    /// The component's name, as the annotation has it.
    pub name: Name,
    /// The port.
    pub port: Port,
    /// The cookie of the network namespace, to check listeners by.
    pub netns_cookie: u64,
}

/// From the keeper to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToHost {
    /// Serve this endpoint. Its listeners come as descriptors, and replace those that came for it before.
    Bind(Endpoint),
    /// A pod's endpoints are no more.
    Unbind(Pod),
    /// Everything that is bound now was told.
    Complete,
}

/// From the host to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromHost {
    /// The host still holds these listeners, from a keeper before this one. They come as descriptors.
    Held(Endpoint),
    /// That was all: the keeper may tell what is bound.
    Complete,
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
