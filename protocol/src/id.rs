//! Which component is meant, where several namespaces have one of the same name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::{Name, NameError};

/// A component as pods of one namespace see it, written `NAMESPACE/NAME`; or, on a laptop, where there are no namespaces, `NAME`.
///
/// It is the namespace of the pods, not of the component: what a name means in a namespace, its own component or the cluster's, is
/// decided by control, and may change without a change of the id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentId {
    /// The namespace of the pods that see it.
    pub namespace: Option<Name>,
    /// The name that their annotations have.
    pub name: Name,
}

impl ComponentId {
    /// What `name` means in `namespace`.
    pub fn in_namespace(namespace: Name, name: Name) -> Self {
        Self { namespace: Some(namespace), name }
    }
}

impl From<Name> for ComponentId {
    fn from(name: Name) -> Self {
        Self { namespace: None, name }
    }
}

impl FromStr for ComponentId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self::in_namespace(namespace.parse()?, name.parse()?)),
            None => Ok(text.parse::<Name>()?.into()),
        }
    }
}

impl TryFrom<String> for ComponentId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ComponentId> for String {
    fn from(id: ComponentId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl fmt::Debug for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for text in ["clock", "shop/clock"] {
            assert_eq!(text.parse::<ComponentId>().unwrap().to_string(), text);
        }
        for (text, wrong) in [("", "\"\""), ("/clock", "\"\""), ("shop/", "\"\""), ("a/b/c", "\"b/c\"")] {
            let error = text.parse::<ComponentId>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text:?}: {error}");
        }
    }
}
