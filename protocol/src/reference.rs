//! References to artifacts in registries: `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@sha256:…`.
//!
//! The grammar is that of the OCI distribution specification and of the container tools, with one difference: the registry is always
//! said. `clock:1.0` means another thing on each machine that guesses.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, name::shown};

/// What a reference without tag and digest means.
const LATEST: &str = "latest";

/// The most characters of a repository, and of a tag.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// An artifact in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which version of what a repository holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// What the tag leads to, which may change.
    Tag(String),
    /// The manifest with this digest. A tag beside it is for people.
    Digest(Digest),
}

/// A text that is no [`Reference`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference: {problem}; expected REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:…")]
pub struct ReferenceError {
    text: String,
    problem: String,
}

impl Reference {
    /// The registry's host, with its port if it has one of its own.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, without the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The version.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The digest, if it says one: then it always means the same.
    pub fn digest(&self) -> Option<Digest> {
        match self.version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        }
    }

    /// The same repository, at this digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }

    /// The same artifact in another registry, a mirror.
    #[must_use]
    pub fn in_registry(&self, registry: &str) -> Self {
        Self { registry: registry.to_owned(), ..self.clone() }
    }
}

/// Whether `text` is `HOST` or `HOST:PORT`.
pub fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_host = match host.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.len() <= 253 && host.split('.').all(label),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let is_plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let separators = bytes.split(is_plain).filter(|between| !between.is_empty());
    let good = |between: &[u8]| matches!(between, b"." | b"_" | b"__") || between.iter().all(|&b| b == b'-');
    bytes.first().is_some_and(is_plain) && bytes.last().is_some_and(is_plain) && separators.into_iter().all(good)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A registry has a dot, a port, or is `localhost`: nothing else tells it from the first part of a repository.
fn names_a_registry(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

fn parse(text: &str) -> Result<Reference, String> {
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let (registry, rest) = named
        .split_once('/')
        .filter(|(first, _)| names_a_registry(first))
        .ok_or("the registry is not named (\"docker.io/library/NAME\" for what container tools call \"NAME\")")?;
    if !is_registry(registry) {
        return Err(format!("{:?} is no HOST or HOST:PORT", shown(registry)));
    }
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if let Some(part) = repository.split('/').find(|part| !is_path_component(part)) {
        let part = shown(part);
        return Err(format!(
            "{part:?} is no part of a repository: allowed are a-z and 0-9, with . _ __ - between them"
        ));
    }
    if repository.len() > MAX_REPOSITORY {
        return Err(format!("a repository of {} characters: at most {MAX_REPOSITORY} are allowed", repository.len()));
    }
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        let tag = shown(tag);
        return Err(format!("{tag:?} is no tag: allowed are up to {MAX_TAG} of A-Z a-z 0-9 _ . -, not . or - first"));
    }
    let version = match digest {
        Some(digest) => Version::Digest(digest),
        None => Version::Tag(tag.unwrap_or(LATEST).to_owned()),
    };
    // Names of hosts are the same in any case.
    Ok(Reference { registry: registry.to_ascii_lowercase(), repository: repository.to_owned(), version })
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: shown(text), problem })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, repository, version } = self;
        match version {
            Version::Tag(tag) => write!(f, "{registry}/{repository}:{tag}"),
            Version::Digest(digest) => write!(f, "{registry}/{repository}@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn references_are_read_as_container_tools_write_them() {
        let by_digest = format!("ghcr.io/a/b@{DIGEST}");
        let both = format!("ghcr.io/a/b:1.0@{DIGEST}");
        let table = [
            ("registry.example/acme/clock:1.0.1", "registry.example/acme/clock:1.0.1"),
            ("registry.example/clock", "registry.example/clock:latest"),
            ("Registry.Example/clock:1", "registry.example/clock:1"),
            ("localhost/clock:V_1", "localhost/clock:V_1"),
            ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
            ("[::1]:5000/a:x", "[::1]:5000/a:x"),
            ("10.0.0.7:5000/a__b-c.d--e:x", "10.0.0.7:5000/a__b-c.d--e:x"),
            (&by_digest, &by_digest),
            (&both, &by_digest),
        ];
        for (text, shown) in table {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn everything_else_is_refused_by_the_part_that_is_wrong() {
        let long = format!("r.example/{}", "a/".repeat(200) + "a");
        let tag = format!("r.example/a:{}", "x".repeat(129));
        let table = [
            ("", "the registry is not named"),
            ("clock", "the registry is not named"),
            ("clock:1.0", "the registry is not named"),
            ("acme/clock:1.0", "the registry is not named"),
            ("r.example", "the registry is not named"),
            ("r.example/", "\"\" is no part of a repository"),
            ("r.example/A:1", "\"A\" is no part"),
            ("r.example/a//b:1", "\"\" is no part"),
            ("r.example/../a:1", "\"..\" is no part"),
            ("r.example/a..b:1", "\"a..b\" is no part"),
            ("r.example/a___b:1", "\"a___b\" is no part"),
            ("r.example/-a:1", "\"-a\" is no part"),
            ("r.example/a b:1", "\"a b\" is no part"),
            ("r.example/a:", "\"\" is no tag"),
            ("r.example/a:.x", "\".x\" is no tag"),
            ("r.example/a:x/y", "\"x/y\" is no tag"),
            ("r.example:0/a:x", "\"r.example:0\" is no HOST"),
            ("r.example:70000/a:x", "\"r.example:70000\" is no HOST"),
            ("-r.example/a:x", "\"-r.example\" is no HOST"),
            ("http://r.example/a:x", "\"http:\" is no HOST"),
            ("user:word@r.example/a:x", "is no digest"),
            ("r.example/a@sha256:../../x", "\"sha256:../../x\" is no digest"),
            ("r.example/a@sha512:00", "\"sha512:00\" is no digest"),
            (&long, "at most 255"),
            (&tag, "is no tag"),
        ];
        for (text, expected) in table {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(text in "[a-z]{1,5}\\.[a-z]{1,3}(:[1-9][0-9]{0,3})?/[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?") {
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }

        #[test]
        fn nothing_makes_it_panic(text in ".{0,80}") {
            _ = text.parse::<Reference>();
        }
    }
}
