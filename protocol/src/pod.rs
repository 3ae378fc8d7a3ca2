//! Pods and their sandboxes, as runtimes name them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::shown;

/// The most bytes of an identifier.
const MAX_BYTES: usize = 253;

/// Why a text identifies nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no {what}: expected 1 to {MAX_BYTES} letters, digits, '-', '_' or '.', and a letter or digit first"
)]
pub struct IdError {
    what: &'static str,
    text: String,
}

fn identifier(what: &'static str, text: &str) -> Result<String, IdError> {
    let bytes = text.as_bytes();
    let starts = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if starts && bytes.len() <= MAX_BYTES && bytes.iter().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(IdError { what, text: shown(text) })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                identifier($what, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A pod's UID. For a static pod it is the hash that the kubelet gives the runtime, not the API's, and is used again when
    /// the same pod is made again.
    PodUid, "pod UID"
}

id! {
    /// A sandbox: the runtime's container id. A pod whose sandbox died gets another one and keeps its UID.
    SandboxId, "container id"
}

/// A pod: its UID identifies it, namespace and name are for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_no_path_and_not_long() {
        for good in ["0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77", "a", "a.b_c-9"] {
            assert_eq!(good.parse::<PodUid>().unwrap().as_str(), good);
        }
        for bad in ["", "..", "../x", "a/b", "-a", "a b", "a\n", &"a".repeat(254)] {
            let error = bad.parse::<SandboxId>().unwrap_err().to_string();
            assert!(error.contains("is no container id: expected 1 to 253"), "{error}");
        }
    }
}
