//! What supervisor and puller say to each other. Both are the same program, so there are no versions.

use std::{fmt, path::PathBuf, time::Duration};

use pillion_protocol::{digest::Digest, login::Login, name::Name, quantity::ByteSize, reference::Reference};
use serde::{Deserialize, Serialize};

/// What a puller is asked for, as JSON on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The artifact.
    pub reference: Reference,
    /// Whom to ask, in this order.
    pub sources: Vec<Source>,
    /// The store's directory.
    pub store: PathBuf,
    /// How long a registry may say nothing, or next to nothing.
    pub timeout: Duration,
    /// The most bytes of one artifact.
    pub most: ByteSize,
    /// Where what the tag led to before is here, the registry is not waited for long.
    pub impatient: bool,
    /// Why nothing may be added to the store, if that is so: what is in it can be had nevertheless.
    pub full: Option<String>,
    /// The namespace that a registry has to let to it, though it may be here: that is written beside it.
    pub proof: Option<Name>,
}

/// What a puller says first: it has confined itself, and can be told a secret.
pub const GREETING: &str = "ready";

/// A registry to ask, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its host, with its port if it has one of its own.
    pub registry: String,
    /// It speaks HTTP without TLS.
    pub plain_http: bool,
    /// Certificates of authorities that sign for it, as PEM.
    pub ca: Option<String>,
    /// Who we are there.
    pub login: Login,
    /// Who we are there is the machine's to say, or nobody: whom the registry lets to something then is everybody.
    pub is_everybodys: bool,
    /// Token servers that are told the login wherever they are, as `HOST` or `HOST:PORT`.
    pub token_servers: Vec<String>,
    /// Hosts that the settings name: they may be next to us.
    pub named: Vec<String>,
}

/// What a puller says, one line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Word {
    /// So many bytes of so many are here.
    Progress {
        /// Bytes that are here.
        done: u64,
        /// Bytes of the whole artifact.
        total: u64,
    },
    /// Something that people may want to know, and that is no failure.
    Warning(String),
    /// The artifact is in the store. The last word.
    Pulled(Pulled),
    /// It is not. The last word.
    Failed(Failure),
}

/// An artifact that is in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pulled {
    /// Its manifest's digest.
    pub digest: Digest,
    /// Bytes that were pulled; 0 if it was in the store.
    pub bytes: u64,
    /// How long it took to find the digest of the tag.
    pub resolve: Duration,
    /// How long it took to pull what was missing.
    pub pull: Duration,
    /// How much of that went into checking digests.
    pub verify: Duration,
}

impl Pulled {
    /// One that was in the store.
    pub fn here(digest: Digest) -> Self {
        let none = Duration::ZERO;
        Self { digest, bytes: 0, resolve: none, pull: none, verify: none }
    }
}

/// Why an artifact could not be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{image}: {step} at {registry}: {problem}")]
pub struct Failure {
    /// The artifact.
    pub image: String,
    /// The registry that was asked.
    pub registry: String,
    /// What was being done.
    pub step: Step,
    /// What is wrong, for people.
    pub problem: String,
    /// It may pass: the registry, or who says who we are, could not be asked.
    pub passes: bool,
}

/// A step of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Find out who we are.
    Login,
    /// Find out the digest of the tag.
    Resolve,
    /// Read the manifest.
    Manifest,
    /// Read the configuration.
    Config,
    /// Read the locked application.
    Application,
    /// Pull a layer.
    Layer(Digest),
    /// Any of them.
    Pull,
    /// Push a blob.
    Push,
    /// Write into the store.
    Store,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Login => f.write_str("log in"),
            Self::Resolve => f.write_str("resolve the tag"),
            Self::Manifest => f.write_str("read the manifest"),
            Self::Config => f.write_str("read the configuration"),
            Self::Application => f.write_str("read the Spin application"),
            Self::Layer(digest) => write!(f, "pull the layer {digest}"),
            Self::Pull => f.write_str("pull"),
            Self::Push => f.write_str("push"),
            Self::Store => f.write_str("write into the store what was pulled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let login = Login::Basic { username: "ann".into(), password: "hunter2".into() };
        let source = Source {
            registry: "r.example".into(),
            plain_http: false,
            ca: None,
            login,
            is_everybodys: true,
            token_servers: Vec::new(),
            named: Vec::new(),
        };
        let shown = format!("{source:?}");
        assert!(shown.contains("ann") && !shown.contains("hunter2"), "{shown}");
    }
}
