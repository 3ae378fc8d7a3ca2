//! The grammar of `allowedOutboundHosts`. Whether a call is allowed is decided where calls are made, by these rules.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::shown;

/// One entry: `SCHEME://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedHost {
    /// The scheme; `None` for `*`.
    pub scheme: Option<Scheme>,
    /// The host.
    pub host: HostPattern,
    /// The port; `None` for any.
    pub port: Option<u16>,
}

/// A scheme that guests can call out with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

/// The host of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `*`
    Any,
    /// `*.example.com`: every name below it, not itself. Holds `example.com`.
    Below(String),
    /// A name, in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// One entry of `allowedOutboundHosts`, as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Allowance {
    /// A host. Of what an artifact asks for itself, only what such entries allow counts.
    Host(AllowedHost),
    /// `artifact`: whatever the artifact asks for, but for what is next to the host.
    Artifact,
}

/// A text that is no [`AllowedHost`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no allowed host: expected SCHEME://HOST or SCHEME://HOST:PORT with scheme http, https or *, \
         host a name, an address, *.NAME or *, and port 1 to 65535 or *; \
         or artifact, for whatever a Spin application asks for"
)]
pub struct AllowedHostError(String);

impl Scheme {
    /// The scheme's own port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

fn host_pattern(text: &str) -> Option<HostPattern> {
    let domain = |name: &str| {
        let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
    };
    if text == "*" {
        Some(HostPattern::Any)
    } else if let Some(name) = text.strip_prefix("*.") {
        domain(name).map(HostPattern::Below)
    } else if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        inside.parse().ok().map(|address| HostPattern::Address(IpAddr::V6(address)))
    } else if let Ok(address) = text.parse() {
        Some(HostPattern::Address(IpAddr::V4(address)))
    } else {
        domain(text).map(HostPattern::Name)
    }
}

fn parse(text: &str) -> Option<AllowedHost> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = match scheme {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        "*" => None,
        _ => return None,
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let port = match port {
        Some("*") => None,
        Some(number) => Some(number.parse().ok().filter(|&n: &u16| n > 0)?),
        None => scheme.map(Scheme::port),
    };
    Some(AllowedHost { scheme, host: host_pattern(host)?, port })
}

/// How [`Allowance::Artifact`] is written.
const ARTIFACT: &str = "artifact";

impl AllowedHost {
    /// What both entries allow: an entry, too, or nothing.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let scheme = either(self.scheme, other.scheme)?;
        let port = either(self.port, other.port)?;
        Some(Self { scheme, host: self.host.and(&other.host)?, port })
    }
}

/// What both allow, of which `None` allows everything; the outer `None` where they have nothing in common.
fn either<T: Copy + PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) => (one == other).then_some(Some(one)),
        (one, other) => Some(one.or(other)),
    }
}

impl HostPattern {
    fn and(&self, other: &Self) -> Option<Self> {
        let is_below = |name: &str, parent: &str| name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
        match (self, other) {
            (Self::Any, narrower) | (narrower, Self::Any) => Some(narrower.clone()),
            (Self::Below(parent), Self::Name(name)) | (Self::Name(name), Self::Below(parent)) => {
                is_below(name, parent).then(|| Self::Name(name.clone()))
            }
            (Self::Below(one), Self::Below(other)) if is_below(one, other) => Some(Self::Below(one.clone())),
            (Self::Below(one), Self::Below(other)) if is_below(other, one) => Some(Self::Below(other.clone())),
            (Self::Address(one), Self::Address(other)) => {
                (one.to_canonical() == other.to_canonical()).then_some(Self::Address(*one))
            }
            (one, other) => (one == other).then(|| one.clone()),
        }
    }
}

impl TryFrom<String> for Allowance {
    type Error = AllowedHostError;

    fn try_from(text: String) -> Result<Self, AllowedHostError> {
        if text == ARTIFACT { Ok(Self::Artifact) } else { text.parse().map(Self::Host) }
    }
}

impl From<Allowance> for String {
    fn from(allowance: Allowance) -> Self {
        match allowance {
            Allowance::Host(host) => host.to_string(),
            Allowance::Artifact => ARTIFACT.to_owned(),
        }
    }
}

impl FromStr for AllowedHost {
    type Err = AllowedHostError;

    fn from_str(text: &str) -> Result<Self, AllowedHostError> {
        parse(text).ok_or_else(|| AllowedHostError(shown(text)))
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Some(scheme) => write!(f, "{scheme}://")?,
            None => f.write_str("*://")?,
        }
        match &self.host {
            HostPattern::Any => f.write_str("*")?,
            HostPattern::Below(name) => write!(f, "*.{name}")?,
            HostPattern::Name(name) => f.write_str(name)?,
            HostPattern::Address(IpAddr::V4(address)) => write!(f, "{address}")?,
            HostPattern::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

impl TryFrom<String> for AllowedHost {
    type Error = AllowedHostError;

    fn try_from(text: String) -> Result<Self, AllowedHostError> {
        text.parse()
    }
}

impl From<AllowedHost> for String {
    fn from(host: AllowedHost) -> Self {
        host.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_with_the_schemes_own_port() {
        let table = [
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost", "http://localhost:80"),
            ("https://API.example.com", "https://api.example.com:443"),
            ("https://*.example.com", "https://*.example.com:443"),
            ("*://*:*", "*://*:*"),
            ("*://db.example", "*://db.example:*"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            ("http://[::1]", "http://[::1]:80"),
            ("http://10.0.0.7:*", "http://10.0.0.7:*"),
        ];
        for (text, shown) in table {
            assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_text() {
        let bad = [
            "",
            "localhost",
            "localhost:3000",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:70000",
            "http://a/b",
            "http://a?b",
            "http://*.",
            "http://a.*.b",
            "http://*a",
            "http://a@b",
            "http://[::1",
            "http://::1",
            "HTTP://a",
            "http://a b",
        ];
        for text in bad {
            let error = text.parse::<AllowedHost>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn what_two_entries_allow_both_is_an_entry() {
        let table = [
            ("*://*:*", "https://a.example", Some("https://a.example:443")),
            ("http://*", "*://a.example:*", Some("http://a.example:80")),
            ("http://a.example", "http://a.example", Some("http://a.example:80")),
            ("http://a.example", "https://a.example", None),
            ("http://a.example", "http://a.example:8080", None),
            ("http://a.example", "http://b.example", None),
            ("https://*.example.com", "https://api.example.com", Some("https://api.example.com:443")),
            ("https://*.example.com", "https://example.com", None),
            ("https://*.example.com", "https://evilexample.com", None),
            ("https://*.example.com", "https://*.eu.example.com", Some("https://*.eu.example.com:443")),
            ("https://*.example.com", "https://*.example.org", None),
            ("http://*", "http://10.0.0.7", Some("http://10.0.0.7:80")),
            ("http://10.0.0.7", "http://[::ffff:10.0.0.7]", Some("http://10.0.0.7:80")),
            ("http://10.0.0.7", "http://10.0.0.8", None),
            ("http://*.7", "http://10.0.0.7", None),
        ];
        for (one, other, expected) in table {
            let [one, other] = [one, other].map(|text| text.parse::<AllowedHost>().unwrap());
            let both = one.and(&other).map(|both| both.to_string());
            assert_eq!(both.as_deref(), expected, "{one} and {other}");
            assert_eq!(other.and(&one).is_some(), expected.is_some(), "{other} and {one}");
        }
    }

    #[test]
    fn an_entry_may_be_what_the_artifact_asks_for() {
        let read = |text: &str| Allowance::try_from(text.to_owned());
        assert_eq!(read("artifact"), Ok(Allowance::Artifact));
        assert_eq!(read("http://artifact").map(String::from), Ok("http://artifact:80".to_owned()));
        for text in ["Artifact", "artifact:80", " artifact", "artefact"] {
            assert!(read(text).unwrap_err().to_string().contains("or artifact, for whatever"), "{text}");
        }
    }
}
