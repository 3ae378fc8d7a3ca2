//! The `spin-*` headers of a request.
//!
//! Names and values: `crates/trigger-http/src/headers.rs` of spinframework/spin; as there (`wasi.rs`), what is no valid header
//! is left out. Spin adds them beside what the caller sent under the same names; here [`strip`] takes those away first.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::routes::Found;

/// What every request gets once.
const NAMES: [&str; 7] = [
    "spin-full-url",
    "spin-path-info",
    "spin-matched-route",
    "spin-base-path",
    "spin-raw-component-route",
    "spin-component-route",
    "spin-client-addr",
];
/// The beginning of the headers of a pattern's parameters.
const PATH_MATCH: &str = "spin-path-match-";

/// A request as its caller made it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'request> {
    /// `http` or `https`.
    pub scheme: &'request str,
    /// The `Host` header, or the authority.
    pub authority: &'request str,
    /// The path and the query.
    pub path_and_query: &'request str,
    /// Who called.
    pub client: SocketAddr,
}

/// The headers that a guest gets beside those that the caller sent.
pub fn spin_headers(found: &Found<'_>, seen: &Seen<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let Seen { scheme, authority, path_and_query, client } = seen;
    let [full_url, path_info, matched_route, base_path, raw_component_route, component_route, client_addr] = NAMES;
    let fixed = [
        (full_url, format!("{scheme}://{authority}{path_and_query}")),
        (path_info, found.path_info.clone()),
        (matched_route, found.pattern.matched()),
        (base_path, "/".to_owned()),
        (raw_component_route, found.pattern.as_str().to_owned()),
        (component_route, found.pattern.prefix().to_owned()),
        (client_addr, client.to_string()),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (HeaderName::from_static(name), value));
    let named = found.captures.iter().filter_map(|(name, value)| {
        let name = format!("{PATH_MATCH}{}", name.replace('_', "-"));
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value.clone()))
    });
    fixed
        .chain(named)
        .filter_map(|(name, value)| Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?)))
        .collect()
}

/// Takes away what a caller sent under the names of [`spin_headers`]: a guest believes them.
pub fn strip(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| NAMES.contains(&name.as_str()) || name.as_str().starts_with(PATH_MATCH);
    let sent: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in sent {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            locked::{Handler, Route},
            routes::Router,
        },
        *,
    };

    fn headers(pattern: &str, path: &str, path_and_query: &str) -> Vec<(String, String)> {
        let pattern = Some(pattern.to_owned().try_into().unwrap());
        let router = Router::new(&[Route { pattern, handler: Handler::Component("a".into()) }]);
        let client = "127.0.0.1:8777".parse().unwrap();
        let seen = Seen { scheme: "https", authority: "spin.example", path_and_query, client };
        let text = |value: HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
        let headers = spin_headers(&router.find(path).unwrap(), &seen);
        headers.into_iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    #[test]
    fn a_guest_is_told_what_spin_tells() {
        let expected = [
            ("spin-full-url", "https://spin.example/foo/42/bar?a=b&c"),
            ("spin-path-info", "/bar"),
            ("spin-matched-route", "/foo/:user_Id/..."),
            ("spin-base-path", "/"),
            ("spin-raw-component-route", "/foo/:user_Id/..."),
            ("spin-component-route", "/foo/:user_Id"),
            ("spin-client-addr", "127.0.0.1:8777"),
            ("spin-path-match-user-id", "42"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers("/foo/:user_Id/...", "/foo/42/bar", "/foo/42/bar?a=b&c"), expected);
    }

    #[test]
    fn what_is_no_header_is_left_out() {
        let names: Vec<_> = headers("/:a b/:c", "/1/\u{7f}", "/\n").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, NAMES[1..]);
    }

    #[test]
    fn a_caller_cannot_forge_them() {
        let mut headers = HeaderMap::new();
        for name in NAMES.into_iter().chain(["spin-path-match-id", "spin-other", "accept"]) {
            headers.append(name, HeaderValue::from_static("1"));
            headers.append(name, HeaderValue::from_static("2"));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!((left, headers.len()), (vec!["accept", "spin-other"], 4));
    }
}
