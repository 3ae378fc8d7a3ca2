//! What the supervisor and its follower say to each other: JSON, an object a line. Both are the same program, so there are no versions.
//! The supervisor says [`Start`], then reports, as control takes them.

use std::{collections::BTreeMap, path::PathBuf};

use pillion_protocol::stream::{Key, ToNode, Version};
use serde::{Deserialize, Serialize};

/// Where control is, and who this node is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its URL: `https://HOST:PORT`.
    pub url: String,
    /// A PEM file with the certificate of its authority. It is read for each connection, as it may change.
    pub authority: PathBuf,
    /// A file with this node's token. It is read for each connection, as it changes.
    pub token: PathBuf,
}

/// The first word to a follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Where control is.
    pub settings: Settings,
    /// What is known.
    pub known: BTreeMap<Key, Version>,
}

/// From the follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Control has said this.
    Told(Box<ToNode>),
    /// Control has said something that this program cannot read.
    Misunderstood(String),
    /// Control is away, or does not serve this node, for this reason.
    Away(String),
}
