//! Who somebody is at a registry, and which of several credentials are for an artifact.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::reference::Reference;

/// Who somebody is at a registry.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Login {
    /// Nobody.
    #[default]
    Anonymous,
    /// A user name and a password, which may be a token of the registry's.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// What a registry gave somebody who logged in, to be exchanged for tokens: `identitytoken` of a docker config JSON.
    Identity {
        /// It.
        token: String,
    },
}

/// Never shows a password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => f.debug_struct("Basic").field("username", username).finish_non_exhaustive(),
            Self::Identity { .. } => f.debug_struct("Identity").finish_non_exhaustive(),
        }
    }
}

/// The key of a docker config JSON that is for `reference`: the longest that matches.
pub fn key_for<'a>(keys: impl Iterator<Item = &'a String>, reference: &Reference) -> Option<&'a str> {
    fn plain(key: &str) -> &str {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let bare = bare.trim_end_matches('/');
        bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare)
    }
    let is_for = |key: &&str| {
        let plain = match plain(key) {
            "index.docker.io" => "docker.io",
            other => other,
        };
        matches(plain, reference)
    };
    keys.map(String::as_str).filter(is_for).max_by_key(|key| plain(key).len())
}

/// Whether `pattern`, `HOST[:PORT][/PATH]` with `*` in the host's labels, is for this reference. As many labels, the same port,
/// and the path begins with the pattern's: as in the kubelet, but by whole parts of it.
pub fn matches(pattern: &str, reference: &Reference) -> bool {
    let (pattern_host, path) = pattern.split_once('/').map_or((pattern, ""), |(host, path)| (host, path));
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name.to_owned(), Some(port.to_owned())),
        _ => (host.to_owned(), None),
    };
    let ((wanted, wanted_port), (host, port)) = (split(pattern_host), split(reference.registry()));
    let same_host = wanted.split('.').count() == host.split('.').count()
        && wanted.split('.').zip(host.split('.')).all(|(wanted, label)| glob(wanted, label));
    let rest = reference.repository().strip_prefix(path);
    same_host
        && wanted_port == port
        && rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// Whether `text` is what `pattern` says, in which each `*` is any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_the_kubelet() {
        let table = [
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.us-east-1.amazonaws.com/a:1", true),
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.amazonaws.com/a:1", false),
            ("*.azurecr.io", "acme.azurecr.io/a/b:1", true),
            ("gcr.io", "eu.gcr.io/a:1", false),
            ("*-docker.pkg.dev", "europe-docker.pkg.dev/a:1", true),
            ("*-docker.pkg.dev", "docker.pkg.dev/a:1", false),
            ("app*.k8s.io/app1", "app7.k8s.io/app1/x:1", true),
            ("app*.k8s.io/app1", "app7.k8s.io/app17:1", false),
            ("r.example:5000", "r.example:5000/a:1", true),
            ("r.example", "r.example:5000/a:1", false),
            ("*", "r.example/a:1", false),
        ];
        for (pattern, reference, expected) in table {
            assert_eq!(matches(pattern, &reference.parse().unwrap()), expected, "{pattern} {reference}");
        }
    }
}
