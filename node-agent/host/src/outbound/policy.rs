//! Whether a call is allowed: first by what is called, then by each address it resolves to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pillion_protocol::hosts::{AllowedHost, HostPattern, Scheme};

/// What a guest calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) host: Host,
    pub(super) port: u16,
}

/// The host that a guest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    /// In lower case, without a dot at its end.
    Name(String),
}

impl Host {
    /// Reads the host of a URI's authority.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Some(Self::Address(canonical(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Name(name))
    }
}

/// An IPv4 address inside an IPv6 one is that IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The entries that allow what is called; none if it is not allowed.
pub(super) fn allowing<'a>(allowed: &'a [AllowedHost], target: &Target) -> Vec<&'a AllowedHost> {
    let matches = |entry: &&AllowedHost| {
        entry.scheme.is_none_or(|scheme| scheme == target.scheme)
            && entry.port.is_none_or(|port| port == target.port)
            && match (&entry.host, &target.host) {
                (HostPattern::Any, _) => true,
                (HostPattern::Address(entry), Host::Address(called)) => canonical(*entry) == *called,
                (HostPattern::Name(entry), Host::Name(called)) => entry == called,
                (HostPattern::Below(parent), Host::Name(called)) => {
                    called.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                }
                _ => false,
            }
    };
    allowed.iter().filter(matches).collect()
}

/// Whether `address`, to which the called host resolved, may be connected to, given the entries that allow the call. A name that
/// somebody else controls must not lead to what is next to us.
pub(super) fn may_connect(entries: &[&AllowedHost], address: IpAddr) -> bool {
    let address = canonical(address);
    !is_special(address)
        || entries.iter().any(|entry| match &entry.host {
            HostPattern::Address(named) => canonical(*named) == address,
            HostPattern::Name(name) => name == "localhost" && address.is_loopback(),
            HostPattern::Any | HostPattern::Below(_) => false,
        })
}

/// Whether an address is next to us.
pub(super) fn is_next_to_us(address: IpAddr) -> bool {
    is_special(canonical(address))
}

/// Whether an entry leads to what is next to us, which only who runs the component may open, not who wrote it.
pub(super) fn leads_next_to_us(entry: &AllowedHost) -> bool {
    match &entry.host {
        HostPattern::Address(named) => is_special(canonical(*named)),
        HostPattern::Name(name) => name == "localhost",
        HostPattern::Any | HostPattern::Below(_) => false,
    }
}

/// What clouds serve to their machines alone, beside what is link-local: credentials, certificates, settings.
const OF_CLOUDS_V4: [Ipv4Addr; 3] = [
    // Azure: certificates and extensions' settings.
    Ipv4Addr::new(168, 63, 129, 16),
    // Alibaba.
    Ipv4Addr::new(100, 100, 100, 200),
    // Oracle.
    Ipv4Addr::new(192, 0, 0, 192),
];
const OF_CLOUDS_V6: [Ipv6Addr; 2] = [
    // AWS: metadata (::254), EKS' pod identity (::23), names (::53), time (::123).
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0),
    // Google.
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0),
];

/// Loopback, link-local and clouds' own (where they keep credentials), unspecified, multicast, broadcast, and IPv6's ways to write IPv4.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets().first() == Some(&0)
                || OF_CLOUDS_V4.contains(&v4)
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                // NAT64 as networks use it: where the IPv4 address is within depends on the network.
                || matches!(v6.segments(), [0x64, 0xff9b, 1, ..])
                || OF_CLOUDS_V6.iter().any(|cloud| v6.segments().iter().take(4).eq(cloud.segments().iter().take(4)))
                || embedded(v6).is_some_and(|v4| is_special(IpAddr::V4(v4)))
        }
    }
}

/// The IPv4 address inside a NAT64 (64:ff9b::/96), 6to4 (2002::/16), Teredo (2001::/32, inverted),
/// translated (::ffff:0:a.b.c.d) or IPv4-compatible address.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b) {
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => Some(v4(g, h)),
        (0x2001, 0) => Some(v4(!g, !h)),
        (0, 0) if [c, d, e, f] == [0, 0, 0xffff, 0] => Some(v4(g, h)),
        (0x2002, _) => Some(v4(b, c)),
        (0, 0) if [c, d, e, f] == [0; 4] => Some(v4(g, h)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(entries: &[&str]) -> Vec<AllowedHost> {
        entries.iter().map(|entry| entry.parse().unwrap()).collect()
    }

    fn target(url: &str) -> Target {
        let url: http::Uri = url.parse().unwrap();
        let scheme = if url.scheme_str() == Some("https") { Scheme::Https } else { Scheme::Http };
        let host = Host::parse(url.host().unwrap()).unwrap();
        Target { scheme, host, port: url.port_u16().unwrap_or(scheme.port()) }
    }

    #[test]
    fn what_is_called_must_be_named() {
        let table: [(&[&str], &str, bool); 21] = [
            (&[], "http://example.com", false),
            (&["http://example.com"], "http://example.com", true),
            (&["http://example.com"], "http://EXAMPLE.com.", true),
            (&["http://example.com"], "https://example.com", false),
            (&["http://example.com"], "http://example.com:8080", false),
            (&["http://example.com:*"], "http://example.com:8080", true),
            (&["*://example.com"], "https://example.com:8443", true),
            (&["http://example.com"], "http://a.example.com", false),
            (&["http://*.example.com"], "http://a.example.com", true),
            (&["http://*.example.com"], "http://a.b.example.com", true),
            (&["http://*.example.com"], "http://example.com", false),
            (&["http://*.example.com"], "http://evilexample.com", false),
            (&["http://example.com"], "http://example.com.evil.test", false),
            (&["http://10.0.0.7"], "http://10.0.0.7", true),
            (&["http://10.0.0.7"], "http://[::ffff:10.0.0.7]", true),
            (&["http://10.0.0.7"], "http://10.0.0.8", false),
            (&["http://[::1]:9000"], "http://[::1]:9000", true),
            (&["*://*:*"], "https://anything.example:1234", true),
            (&["http://*"], "http://10.0.0.7", true),
            (&["http://*"], "https://10.0.0.7", false),
            (&["http://localhost:3000"], "http://127.0.0.1:3000", false),
        ];
        for (entries, url, expected) in table {
            assert_eq!(!allowing(&hosts(entries), &target(url)).is_empty(), expected, "{entries:?} {url}");
        }
    }

    #[test]
    fn what_is_next_to_us_is_told_from_what_is_not() {
        let next = |entry: &str| leads_next_to_us(&entry.parse().unwrap());
        for entry in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://[::1]",
            "http://169.254.169.254",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(next(entry), "{entry}");
        }
        for entry in ["http://example.com", "*://*:*", "http://10.0.0.7", "https://*.example.com"] {
            assert!(!next(entry), "{entry}");
        }
    }

    #[test]
    fn what_it_resolves_to_is_asked_again() {
        let table: [(&[&str], &str, bool); 35] = [
            (&["http://example.com"], "93.184.216.34", true),
            (&["http://example.com"], "10.0.0.7", true),
            (&["http://example.com"], "127.0.0.1", false),
            (&["http://example.com"], "127.9.9.9", false),
            (&["http://example.com"], "169.254.169.254", false),
            (&["http://example.com"], "0.0.0.0", false),
            (&["http://example.com"], "224.0.0.1", false),
            (&["http://example.com"], "255.255.255.255", false),
            (&["http://example.com"], "::1", false),
            (&["http://example.com"], "::ffff:127.0.0.1", false),
            (&["http://example.com"], "64:ff9b::a9fe:a9fe", false),
            (&["http://example.com"], "2002:7f00:1::", false),
            (&["http://example.com"], "fe80::1", false),
            (&["http://example.com"], "fd00:ec2::254", false),
            (&["*://*:*"], "169.254.170.23", false),
            (&["*://*:*"], "168.63.129.16", false),
            (&["*://*:*"], "100.100.100.200", false),
            (&["*://*:*"], "192.0.0.192", false),
            (&["*://*:*"], "fd00:ec2::23", false),
            (&["*://*:*"], "fd00:ec2::53", false),
            (&["*://*:*"], "fd00:ec2::123", false),
            (&["*://*:*"], "fd20:ce::254", false),
            (&["*://*:*"], "64:ff9b:1::a9fe:a9fe", false),
            (&["*://*:*"], "64:ff9b:1:a9fe:a9:fe00:808:808", false),
            (&["*://*:*"], "::ffff:0:169.254.169.254", false),
            (&["*://*:*"], "2001:0:1:2:3:4:5601:5601", false),
            (&["*://*:*"], "64:ff9b::808:808", true),
            (&["*://*:*"], "fd00:ec3::254", true),
            (&["*://*:*"], "168.63.129.17", true),
            (&["http://168.63.129.16"], "168.63.129.16", true),
            (&["*://*:*"], "127.0.0.1", false),
            (&["http://localhost"], "127.0.0.1", true),
            (&["http://localhost"], "::1", true),
            (&["http://localhost"], "169.254.169.254", false),
            (&["http://169.254.169.254"], "169.254.169.254", true),
        ];
        for (entries, address, expected) in table {
            let entries = hosts(entries);
            let entries: Vec<_> = entries.iter().collect();
            assert_eq!(may_connect(&entries, address.parse().unwrap()), expected, "{entries:?} {address}");
        }
    }
}
