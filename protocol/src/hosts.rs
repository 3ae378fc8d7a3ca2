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

/// A text that is no [`AllowedHost`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no allowed host: expected SCHEME://HOST or SCHEME://HOST:PORT with scheme http, https or *, \
         host a name, an address, *.NAME or *, and port 1 to 65535 or *"
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
}
