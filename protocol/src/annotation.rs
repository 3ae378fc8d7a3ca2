//! The grammar of the annotation `pillion.dev/sidecars`, which `pillion run --sidecars` shares.
//!
//! ```
//! use pillion_protocol::annotation::Sidecars;
//!
//! let sidecars: Sidecars = "clock=8081, jwt-authz=8082".parse()?;
//! assert_eq!(sidecars.iter().map(|s| s.port.get()).collect::<Vec<_>>(), [8081, 8082]);
//! # Ok::<(), pillion_protocol::annotation::AnnotationError>(())
//! ```

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::{Name, NameError, shown};

/// The annotation's key on a pod.
pub const SIDECARS: &str = "pillion.dev/sidecars";

/// What our annotations begin with.
pub const PREFIX: &str = "pillion.dev/";

/// Whether an annotation or a label is meant for us, however it is spelt behind the prefix. The API server lets annotations have capitals.
pub fn is_ours(key: &str) -> bool {
    key.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
}

/// What a pod's annotation says, if it says anything: a blank one is what a chart's template makes of no value.
pub fn said(annotation: Option<&str>) -> Option<&str> {
    annotation.filter(|text| !text.trim().is_empty())
}

/// What annotations say of sidecars, if they say anything.
pub fn sidecars_in(annotations: &BTreeMap<String, String>) -> Option<&str> {
    said(annotations.get(SIDECARS).map(String::as_str))
}

/// The most entries that one annotation may have.
pub const MAX_ENTRIES: usize = 32;

/// The most bytes that one annotation may have.
pub const MAX_BYTES: usize = 4096;

/// A TCP port that an endpoint may listen on: 1024–65535. Lower ones would need a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Port(u16);

impl Port {
    /// The port's number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Port {
    type Error = AnnotationError;

    fn try_from(port: u16) -> Result<Self, AnnotationError> {
        if port >= 1024 { Ok(Self(port)) } else { Err(AnnotationError::Port { text: port.to_string() }) }
    }
}

impl From<Port> for u16 {
    fn from(port: Port) -> Self {
        port.0
    }
}

impl FromStr for Port {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        let wrong = || AnnotationError::Port { text: shown(text) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        if !digits {
            return Err(wrong());
        }
        text.parse::<u16>().ok().and_then(|port| Self::try_from(port).ok()).ok_or_else(wrong)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One entry: the component `name`, reached at `localhost:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// The component's name, which is the binding's name too.
    pub name: Name,
    /// The port inside the pod.
    pub port: Port,
}

/// What one annotation says: at least one and at most [`MAX_ENTRIES`] entries, in the order written, no name and no port twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sidecars(Vec<Sidecar>);

/// Why a text is no [`Sidecars`]. Every message holds the text at fault and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Nothing but blanks.
    #[error("no sidecar is named: expected \"NAME=PORT, NAME=PORT\"")]
    Empty,
    /// Longer than [`MAX_BYTES`].
    #[error("{bytes} bytes are too long: at most {MAX_BYTES} are allowed")]
    TooLong {
        /// The text's length in bytes.
        bytes: usize,
    },
    /// More than [`MAX_ENTRIES`] entries.
    #[error("{entries} sidecars are too many: at most {MAX_ENTRIES} are allowed in one pod")]
    TooMany {
        /// How many entries there are.
        entries: usize,
    },
    /// An entry that is not `NAME=PORT`.
    #[error("{text:?} is no sidecar: expected NAME=PORT, for example \"clock=8081\"")]
    Entry {
        /// The entry.
        text: String,
    },
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A port that is none.
    #[error("{text:?} is no port for a sidecar: allowed are 1024 to 65535")]
    Port {
        /// The text in the port's place.
        text: String,
    },
    /// A name that stands twice.
    #[error("the sidecar {name:?} is named twice: each component can have one port in a pod")]
    NameTwice {
        /// The name.
        name: Name,
    },
    /// A port that stands twice.
    #[error("port {port} is given to both {first:?} and {second:?}: each sidecar needs a port of its own")]
    PortTwice {
        /// The port.
        port: Port,
        /// The first sidecar that asks for it.
        first: Name,
        /// The second.
        second: Name,
    },
}

impl Sidecars {
    /// The entries in the order written.
    pub fn iter(&self) -> std::slice::Iter<'_, Sidecar> {
        self.0.iter()
    }

    /// One more at the end, unless its name or port is there already.
    pub fn push(&mut self, sidecar: Sidecar) {
        if !self.0.iter().any(|known| known.name == sidecar.name || known.port == sidecar.port) {
            self.0.push(sidecar);
        }
    }
}

impl From<Sidecar> for Sidecars {
    fn from(sidecar: Sidecar) -> Self {
        Self(vec![sidecar])
    }
}

impl TryFrom<String> for Sidecars {
    type Error = AnnotationError;

    fn try_from(text: String) -> Result<Self, AnnotationError> {
        text.parse()
    }
}

impl From<Sidecars> for String {
    fn from(sidecars: Sidecars) -> Self {
        sidecars.to_string()
    }
}

impl<'a> IntoIterator for &'a Sidecars {
    type Item = &'a Sidecar;
    type IntoIter = std::slice::Iter<'a, Sidecar>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromStr for Sidecar {
    type Err = AnnotationError;

    fn from_str(entry: &str) -> Result<Self, AnnotationError> {
        let (name, port) = entry.split_once('=').ok_or_else(|| AnnotationError::Entry { text: shown(entry.trim()) })?;
        Ok(Self { name: name.trim().parse()?, port: port.trim().parse()? })
    }
}

impl FromStr for Sidecars {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        if text.len() > MAX_BYTES {
            return Err(AnnotationError::TooLong { bytes: text.len() });
        }
        if text.trim().is_empty() {
            return Err(AnnotationError::Empty);
        }
        let entries = text.split(',').count();
        if entries > MAX_ENTRIES {
            return Err(AnnotationError::TooMany { entries });
        }
        let mut sidecars: Vec<Sidecar> = Vec::with_capacity(entries);
        for entry in text.split(',') {
            let next: Sidecar = entry.parse()?;
            for known in &sidecars {
                if known.name == next.name {
                    return Err(AnnotationError::NameTwice { name: next.name });
                }
                if known.port == next.port {
                    let (first, second) = (known.name.clone(), next.name);
                    return Err(AnnotationError::PortTwice { port: next.port, first, second });
                }
            }
            sidecars.push(next);
        }
        Ok(Self(sidecars))
    }
}

impl fmt::Display for Sidecars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Sidecar { name, port }) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={port}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Sidecars>().unwrap_err().to_string()
    }

    #[test]
    fn entries_are_read_in_order_and_blanks_around_them_do_not_count() {
        for text in ["clock=8081,jwt-authz=8082", " clock = 8081 ,\tjwt-authz= 8082\n"] {
            let sidecars: Sidecars = text.parse().unwrap();
            assert_eq!(sidecars.to_string(), "clock=8081, jwt-authz=8082");
        }
        assert!("a=1024, b=65535".parse::<Sidecars>().is_ok());
    }

    #[test]
    fn every_error_names_the_text_at_fault_and_what_is_allowed() {
        let table = [
            ("", "no sidecar is named"),
            (" \n", "no sidecar is named"),
            ("clock", "\"clock\" is no sidecar: expected NAME=PORT"),
            ("clock=8081,", "\"\" is no sidecar"),
            ("clock=8081,,b=8082", "\"\" is no sidecar"),
            ("clock=8081;b=8082", "\"8081;b=8082\" is no port"),
            ("=8081", "\"\" is no name"),
            ("Clock=8081", "\"Clock\" is no name"),
            ("clock=", "\"\" is no port"),
            ("clock=http", "\"http\" is no port"),
            ("clock=0", "\"0\" is no port for a sidecar: allowed are 1024 to 65535"),
            ("clock=80", "\"80\" is no port"),
            ("clock=1023", "\"1023\" is no port"),
            ("clock=70000", "\"70000\" is no port"),
            ("clock=+8081", "\"+8081\" is no port"),
            ("clock=08081", "\"08081\" is no port"),
            ("clock=-1", "\"-1\" is no port"),
            ("clock=8081=8082", "\"8081=8082\" is no port"),
            ("clock=8081, clock=8082", "\"clock\" is named twice"),
            ("clock=8081, jwt-authz=8081", "port 8081 is given to both \"clock\" and \"jwt-authz\""),
        ];
        for (text, expected) in table {
            assert!(error(text).contains(expected), "{text:?}: {}", error(text));
        }
    }

    #[test]
    fn a_blank_annotation_says_nothing() {
        assert_eq!([None, Some(""), Some(" \n")].map(said), [None; 3]);
        assert_eq!(said(Some("clock")), Some("clock"), "what is wrong is told");
    }

    #[test]
    fn what_begins_like_ours_is_ours() {
        for (key, ours) in [
            ("pillion.dev/sidecars", true),
            ("pillion.dev/sidecar", true),
            ("Pillion.dev/sidecars", true),
            ("pillion.dev", false),
            ("a.pillion.dev/sidecars", false),
            ("pillion.devü/x", false),
            ("pillion.deü/x", false),
            ("", false),
        ] {
            assert_eq!(is_ours(key), ours, "{key:?}");
        }
    }

    #[test]
    fn too_many_and_too_long_are_refused_before_anything_is_read() {
        let many = |n: u16| (0..n).map(|i| format!("c{i}={}", 2000 + i)).collect::<Vec<_>>().join(",");
        assert!(many(32).parse::<Sidecars>().is_ok());
        assert!(error(&many(33)).contains("33 sidecars are too many: at most 32"));
        assert!(error(&many(100)).contains("100 sidecars are too many"));
        assert!(error(&"x".repeat(65_536)).contains("65536 bytes are too long: at most 4096"));
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(names in prop::collection::btree_set("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", 1..=32), first in 1024u16..60000) {
            let text = names.iter().zip(first..).map(|(name, port)| format!("{name}={port}")).collect::<Vec<_>>().join(", ");
            let sidecars: Sidecars = text.parse().unwrap();
            prop_assert_eq!(sidecars.to_string(), text);
        }

        #[test]
        fn no_text_makes_the_parser_panic_and_what_it_accepts_keeps_its_rules(text in "[a-z0-9=, \\-\\PC]{0,200}") {
            if let Ok(sidecars) = text.parse::<Sidecars>() {
                prop_assert!((1..=MAX_ENTRIES).contains(&sidecars.iter().count()));
                for sidecar in &sidecars {
                    prop_assert!(sidecar.port.get() >= 1024);
                    prop_assert_eq!(sidecars.iter().filter(|s| s.name == sidecar.name || s.port == sidecar.port).count(), 1);
                }
                prop_assert_eq!(sidecars.to_string().parse::<Sidecars>().unwrap(), sidecars);
            }
        }
    }
}
