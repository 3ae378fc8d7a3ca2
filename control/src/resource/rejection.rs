//! Why a component is not accepted.

use pillion_protocol::text;
use serde::Serialize;

/// Why a component is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// In one word.
    pub reason: Reason,
    /// With the text at fault, and what is allowed or to be done.
    pub message: String,
}

/// Why a component is not accepted, in one word: the reason of its condition `Accepted`, or `Resolved`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// What it says, or refers to, cannot be served.
    Invalid,
    /// It would not fit into a message to a node.
    TooLarge,
    /// It refers to a Secret that its namespace does not let control read.
    SecretForbidden,
    /// Its image is being looked at: nobody has said yet what it is.
    Resolving,
    /// Its image was looked at, and no node can serve it.
    ImageRefused,
}

impl Rejection {
    /// A rejection; of a long message only the beginning is kept.
    pub fn new(reason: Reason, message: &str) -> Self {
        Self { reason, message: text::reason(message) }
    }

    /// What it says, or refers to, cannot be served.
    pub fn invalid(message: String) -> Self {
        Self::new(Reason::Invalid, &message)
    }

    /// It refers to a Secret that control, which is in the namespace `control`, may not read.
    pub(super) fn secret_forbidden(name: &str, namespace: &str, control: &str) -> Self {
        let message = format!(
            "the Secret {name:?} may not be read by control: who may grant it runs \"kubectl create rolebinding \
             pillion-secrets -n {namespace} --clusterrole=pillion-secrets --serviceaccount={control}:pillion-control\", \
             or binds a Role that only lets it get the Secrets it names"
        );
        Self::new(Reason::SecretForbidden, &message)
    }

    /// It refers to a Secret of the namespace that control is in.
    pub(super) fn own_secret(name: &str, namespace: &str) -> Self {
        let message = format!(
            "the Secret {name:?} is of control's own namespace {namespace:?}: no component may refer to one there"
        );
        Self::new(Reason::SecretForbidden, &message)
    }

    /// The same, and what it is about.
    pub(super) fn of(self, what: String) -> Self {
        Self::new(self.reason, &format!("{what}: {}", self.message))
    }
}
