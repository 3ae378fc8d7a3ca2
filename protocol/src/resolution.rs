//! What control asks of a resolver, a child process that asks registries, and what it answers: JSON on its standard input and output.
//! Both come in one image, so there are no versions.

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, login::Login, reference::Reference};

/// What an image is to be looked at for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Question {
    /// The image.
    pub image: Reference,
    /// Who asks, where a pull secret says it.
    pub login: Option<Login>,
}

/// What became of an image that was looked at. No layer of it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resolution {
    /// It has this digest, and nothing that it says of itself keeps a node from serving it.
    Resolved(Digest),
    /// It was read, and no node can serve it; why, for people.
    Refused(String),
    /// It could not be read from here; why, for people. A node may be able to.
    Unread(String),
}
