//! What a plugin prints: the CNI specification's results and errors.

use std::{fmt, io};

use pillion_protocol::cni::VERSIONS;
use serde::Serialize;

/// Error codes of the specification, and ours from 100 on.
const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const DECODING: u32 = 6;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN: u32 = 11;
const ANNOTATION: u32 = 100;
const REFUSED: u32 = 101;

/// Why a plugin fails. The runtime puts the text into the pod's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    text: String,
}

#[derive(Serialize)]
struct Printed<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    code: u32,
    msg: &'a str,
}

/// The answer to `VERSION`.
pub fn versions() -> String {
    #[derive(Serialize)]
    struct Versions {
        #[serde(rename = "cniVersion")]
        version: &'static str,
        #[serde(rename = "supportedVersions")]
        supported: [&'static str; 5],
    }
    serde_json::to_string(&Versions { version: "1.1.0", supported: VERSIONS }).unwrap_or_default()
}

impl Failure {
    fn new(code: u32, text: String) -> Self {
        Self { code, text: format!("pillion: {text}") }
    }

    /// A wrong environment variable.
    pub fn environment(text: &str) -> Self {
        Self::new(INVALID_ENVIRONMENT, text.into())
    }

    /// Standard input cannot be read.
    pub fn input(error: &io::Error) -> Self {
        Self::new(IO, format!("the configuration cannot be read: {error}"))
    }

    /// The configuration is none.
    pub fn config(error: &serde_json::Error) -> Self {
        Self::new(DECODING, format!("the configuration cannot be read: {error}"))
    }

    /// A version of the specification that is not spoken.
    pub fn version(version: &str) -> Self {
        Self::new(INCOMPATIBLE_VERSION, format!("cniVersion is {version:?}: known are {}", VERSIONS.join(", ")))
    }

    /// There is nothing before it in the chain.
    pub fn not_chained() -> Self {
        let text = "there is no prevResult: pillion-cni makes no network, put it behind the plugin that does";
        Self::new(INVALID_CONFIG, text.into())
    }

    /// An annotation that says nothing that can be done.
    pub fn annotation(key: &str, error: &impl fmt::Display) -> Self {
        Self::new(ANNOTATION, format!("annotation {key}: {error}"))
    }

    /// The pod's network namespace cannot be opened.
    pub fn netns(path: &str, error: &io::Error) -> Self {
        Self::new(IO, format!("the network namespace {path:?} cannot be opened: {error}"))
    }

    /// The keeper does not answer.
    pub fn silent(socket: &std::path::Path, why: &str) -> Self {
        let text = format!(
            "the keeper does not answer at {}: {why}; does the Pillion agent run on this node?",
            socket.display()
        );
        Self::new(TRY_AGAIN, text)
    }

    /// The keeper refuses.
    pub fn refused(why: String) -> Self {
        Self::new(REFUSED, why)
    }

    /// The error as the runtime reads it.
    pub fn to_json(&self, version: &str) -> String {
        serde_json::to_string(&Printed { version, code: self.code, msg: &self.text }).unwrap_or_default()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
