//! The grammar of Spin's `allowed_outbound_hosts`, which is wider than ours.
//!
//! It is `crates/outbound-networking-config/src/allowed_hosts.rs` of spinframework/spin. An entry is read so that it allows
//! what it allows there, or is refused; it never allows more. Errors do not repeat the entry: a template may have put a secret
//! into it.

use std::net::IpAddr;

use pillion_protocol::hosts::AllowedHost;

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Everything at once, as manifests once wrote it.
    #[error("is not allowed: write *://*:* if every host is meant")]
    AllowAll,
    /// No `://`.
    #[error("has no scheme: expected SCHEME://HOST or SCHEME://HOST:PORT")]
    NoScheme,
    /// A scheme that this host does not speak.
    #[error("has another scheme than http, https and *: this host speaks http and https only")]
    Scheme,
    /// The application itself.
    #[error(
        "is the application itself (self, self.alt or *.spin.internal): calls within an application are not served"
    )]
    Itself,
    /// More than an authority.
    #[error("has a path: allowed are a scheme, a host and a port")]
    Path,
    /// `*://HOST`: each scheme has another port.
    #[error("has the scheme * and no port: write one, or :* for every port")]
    NoPort,
    /// Something else that is no host or port.
    #[error(
        "has no host and port that this host knows: the host is a name, an address, *.NAME or *, the port 1 to 65535 or *; \
         networks and ranges of ports are not known"
    )]
    Form,
}

/// Reads an entry whose template was expanded.
pub(super) fn parse(entry: &str) -> Result<AllowedHost, HostError> {
    let entry = entry.trim();
    if entry == "insecure:allow-all" {
        return Err(HostError::AllowAll);
    }
    let (scheme, rest) = entry.split_once("://").ok_or(HostError::NoScheme)?;
    if !matches!(scheme, "http" | "https" | "*") {
        return Err(HostError::Scheme);
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if let Some((before, _)) = rest.split_once('/') {
        // An address before it makes it a network, such as 10.0.0.0/8.
        return Err(if before.parse::<IpAddr>().is_ok() { HostError::Form } else { HostError::Path });
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (rest, ""),
    };
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if matches!(name.as_str(), "self" | "self.alt" | "spin.internal") || name.ends_with(".spin.internal") {
        return Err(HostError::Itself);
    }
    match (scheme, port) {
        ("*", "") => Err(HostError::NoPort),
        (_, "") => format!("{scheme}://{host}").parse().map_err(|_| HostError::Form),
        _ => format!("{scheme}://{host}:{port}").parse().map_err(|_| HostError::Form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_allows_what_it_allows_in_spin() {
        let table = [
            ("https://x", "https://x:443"),
            ("http://x:80", "http://x:80"),
            (" http://x/ ", "http://x:80"),
            ("http://x:8080/", "http://x:8080"),
            ("http://x:", "http://x:80"),
            ("https://*", "https://*:443"),
            ("https://*:*", "https://*:*"),
            ("*://*:*", "*://*:*"),
            ("*://x:8080", "*://x:8080"),
            ("https://*.example.com", "https://*.example.com:443"),
            ("http://10.0.0.7:9000", "http://10.0.0.7:9000"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            ("http://[::1]", "http://[::1]:80"),
            ("http://selfish", "http://selfish:80"),
        ];
        for (entry, expected) in table {
            assert_eq!(parse(entry).unwrap().to_string(), expected, "{entry}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_what_is_wrong() {
        let table = [
            ("insecure:allow-all", HostError::AllowAll),
            ("", HostError::NoScheme),
            ("*", HostError::NoScheme),
            ("example.com:80", HostError::NoScheme),
            ("redis://*:*", HostError::Scheme),
            ("postgres://db:5432", HostError::Scheme),
            ("HTTP://x", HostError::Scheme),
            ("{http,https}://x", HostError::Scheme),
            ("http://self", HostError::Itself),
            ("https://self:443", HostError::Itself),
            ("http://self.alt", HostError::Itself),
            ("*://self:*", HostError::Itself),
            ("http://inner.spin.internal", HostError::Itself),
            ("http://*.spin.internal:80", HostError::Itself),
            ("http://Inner.Spin.Internal.", HostError::Itself),
            ("http://x/path", HostError::Path),
            ("http://x:80/path", HostError::Path),
            ("http://x//", HostError::Path),
            ("*://x", HostError::NoPort),
            ("http://10.0.0.0/8:80", HostError::Form),
            ("http://10.0.0.0/8", HostError::Form),
            ("http://x:80..90", HostError::Form),
            ("http://x:0", HostError::Form),
            ("http://x:65536", HostError::Form),
            ("http://a.*.b", HostError::Form),
            ("http://a@b", HostError::Form),
            ("http://", HostError::Form),
        ];
        for (entry, expected) in table {
            assert_eq!(parse(entry), Err(expected), "{entry}");
        }
    }
}
