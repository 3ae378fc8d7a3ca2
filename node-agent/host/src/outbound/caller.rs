//! Who calls out, for the log: a call that is denied or fails is otherwise known to the guest alone.

use std::sync::Arc;

use http::Uri;
use wasmtime_wasi_http::Error;

use crate::{
    log::{Origin, tell},
    warnings::Warnings,
};

/// The guests of one binding.
#[derive(Debug)]
pub struct Caller {
    origin: Arc<Origin>,
    warnings: Warnings,
}

impl Caller {
    /// Guests of `origin`.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self { origin, warnings: Warnings::default() }
    }

    /// Tells of a call that failed before its answer's head.
    pub(super) fn tell(&self, to: &str, error: &Error) {
        let Some(untold) = self.warnings.take() else { return };
        let (cause, advice) = (error.to_string(), advice(error));
        tell!(WARN, &self.origin, to, cause, advice, untold = untold.count(), "call out failed");
    }

    /// Tells of an answer whose body broke off.
    pub(super) fn tell_cut(&self, to: &str, error: &Error) {
        let Some(untold) = self.warnings.take() else { return };
        let cause = error.to_string();
        tell!(WARN, &self.origin, to, cause, untold = untold.count(), "call out broke off");
    }
}

/// What a guest calls, without what may be secret in it: the path and the query.
pub(super) fn to(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    // User information is refused, and may be a password.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}", uri.scheme_str().unwrap_or_default())
}

/// What would help.
fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::HttpRequestDenied => {
            Some("to allow it, name SCHEME://HOST:PORT in spec.allowedOutboundHosts of the component")
        }
        Error::DestinationIpProhibited => Some(
            "it leads next to the host: only an entry of spec.allowedOutboundHosts that names that address, or localhost, allows it",
        ),
        Error::ConnectionLimitReached => Some("one request may have 16 calls out at once, and a node a number of them"),
        Error::HttpProtocolError | Error::Hyper(_) => {
            Some("the server may speak HTTP/2 only: calls out speak HTTP/1.1")
        }
        Error::Tls(_) => Some("only authorities that browsers trust are trusted"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_call_leads_is_told_without_what_may_be_secret() {
        for (uri, expected) in [
            ("http://a.test:8080/path?token=s", "http://a.test:8080"),
            ("https://user:password@a.test/", "https://a.test"),
            ("/path", "://"),
        ] {
            assert_eq!(to(&uri.parse().unwrap()), expected);
        }
    }

    #[test]
    fn what_is_denied_says_which_setting_allows_it() {
        assert!(advice(&Error::HttpRequestDenied).unwrap().contains("spec.allowedOutboundHosts"));
        assert_eq!(advice(&Error::DnsTimeout), None);
    }
}
