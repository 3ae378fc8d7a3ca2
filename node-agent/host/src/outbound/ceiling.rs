//! What an artifact asks for, within what the resource allows: who wrote a component does not decide where it may call out to.
//! Decides, and does no IO.

use pillion_protocol::hosts::{Allowance, AllowedHost};

use super::policy::leads_next_to_us;

/// The hosts that the resource names itself: what a component that asks for nothing may call.
pub fn named(allowed: &[Allowance]) -> Vec<AllowedHost> {
    let host = |allowance: &Allowance| match allowance {
        Allowance::Host(host) => Some(host.clone()),
        Allowance::Artifact => None,
    };
    allowed.iter().filter_map(host).collect()
}

/// What of one entry that an artifact asks for is allowed. What is next to the host (localhost, loopback, link-local with clouds' metadata)
/// is only what the resource names: neither `*` nor `artifact` opens it.
pub fn within(asked: &AllowedHost, allowed: &[Allowance]) -> Vec<AllowedHost> {
    let both = |allowance: &Allowance| match allowance {
        Allowance::Host(host) => asked.and(host).filter(|both| !leads_next_to_us(both) || leads_next_to_us(host)),
        Allowance::Artifact => Some(asked.clone()).filter(|asked| !leads_next_to_us(asked)),
    };
    let mut within: Vec<AllowedHost> = Vec::new();
    for both in allowed.iter().filter_map(both) {
        // Nothing wider can come than what is asked for.
        if both == *asked {
            return vec![both];
        }
        if !within.contains(&both) {
            within.push(both);
        }
    }
    within
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_gets_what_it_asks_for_within_what_is_allowed() {
        let table: [(&str, &[&str], &[&str]); 15] = [
            // Nothing is allowed: there is no way out, whatever is asked for.
            ("*://*:*", &[], &[]),
            ("https://a.example", &[], &[]),
            ("https://a.example", &["https://a.example"], &["https://a.example:443"]),
            ("https://a.example", &["https://b.example"], &[]),
            ("*://*:*", &["https://a.example", "http://b.example:*"], &["https://a.example:443", "http://b.example:*"]),
            ("https://*.example.com", &["*://*:*", "https://a.example.com"], &["https://*.example.com:443"]),
            ("https://a.example", &["artifact"], &["https://a.example:443"]),
            ("*://*:*", &["https://a.example", "artifact"], &["*://*:*"]),
            // What is next to us has to be named.
            ("http://169.254.169.254", &["*://*:*", "artifact"], &[]),
            ("http://localhost:3000", &["*://*:*", "artifact"], &[]),
            ("http://127.0.0.1:*", &["http://127.0.0.1:80"], &["http://127.0.0.1:80"]),
            ("http://localhost:3000", &["http://localhost:3000"], &["http://localhost:3000"]),
            ("http://*:*", &["http://localhost:3000"], &["http://localhost:3000"]),
            // A name is another thing than the address that it leads to.
            ("http://localhost:3000", &["http://127.0.0.1:3000"], &[]),
            ("http://*", &["http://10.0.0.7:*", "http://10.0.0.7"], &["http://10.0.0.7:80"]),
        ];
        for (asked, allowed, expected) in table {
            let allowed: Vec<_> = allowed.iter().map(|text| text.to_string().try_into().unwrap()).collect();
            let within: Vec<_> = within(&asked.parse().unwrap(), &allowed).iter().map(ToString::to_string).collect();
            assert_eq!(within, expected, "{asked} within {allowed:?}");
        }
    }

    #[test]
    fn a_component_that_asks_for_nothing_has_what_is_named() {
        let allowed = ["artifact", "https://a.example"].map(|text| text.to_owned().try_into().unwrap());
        assert_eq!(named(&allowed), ["https://a.example".parse().unwrap()]);
    }
}
