//! Whom a request is for: one valid authority, the same for guests, routes and logs. What two readers could understand differently is
//! refused before any of them sees it.

use std::net::Ipv6Addr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header,
    uri::{Authority, Uri},
};

use super::problem::Problem;

/// The settings that a client sends which offers to go on with HTTP/2.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Refuses what no guest can answer, and makes `Host` the authority that counts. hyper has refused malformed heads before.
///
/// # Errors
///
/// What is to be said to the caller.
pub(super) fn check<B>(request: &mut Request<B>, port: u16) -> Result<(), Problem> {
    let (method, version) = (request.method(), request.version());
    if *method == Method::CONNECT {
        return Err(Problem::BadRequest("CONNECT is not served: an endpoint is no proxy"));
    }
    let authority = authority(version, request.uri(), request.headers())?;
    let host = match authority {
        Some(authority) => HeaderValue::from_str(authority.as_str()),
        // HTTP/1.0 needs no Host, and an empty one is valid; wasi:http needs an authority.
        None => HeaderValue::from_str(&format!("localhost:{port}")),
    };
    let host = host.map_err(|_| INVALID)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    // An offer to go on with another protocol may be ignored, RFC 9110 section 7.8.
    headers.remove(header::UPGRADE);
    headers.remove(HTTP2_SETTINGS);
    Ok(())
}

const INVALID: Problem = Problem::BadRequest(
    "the Host header or the request's authority is not a valid host: expected a name, an IPv4 address or an IPv6 address in brackets, with or without a port",
);

/// The authority that counts; `None` where the request names none and need not.
fn authority(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Problem::BadRequest("the request has several Host headers"));
    }
    let host = host.map(|host| host.to_str().map_err(|_| INVALID)).transpose()?;
    let target = uri.authority().map(|target| valid(target.as_str())).transpose()?;
    if host.is_none() && target.is_none() && version != Version::HTTP_10 {
        return Err(Problem::BadRequest("the request has no Host header"));
    }
    let host = host.filter(|host| !host.is_empty()).map(valid).transpose()?;
    if version >= Version::HTTP_2
        && let (Some(host), Some(target)) = (&host, &target)
        && !is_same(host, target)
    {
        return Err(Problem::BadRequest("the Host header and the request's authority differ"));
    }
    // An absolute target counts and Host is then ignored, RFC 9112 section 3.2.2.
    Ok(target.or(host))
}

/// Whether two authorities are the same in `http`: case does not matter, and 80 is what no port means.
fn is_same(one: &Authority, other: &Authority) -> bool {
    let port = |authority: &Authority| authority.port_u16().unwrap_or(80);
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

/// Reads `host [":" port]` of RFC 3986 section 3.2, without what it allows and URLs do not: escapes, addresses of future versions.
fn valid(text: &str) -> Result<Authority, Problem> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(INVALID)?;
            address.parse::<Ipv6Addr>().map_err(|_| INVALID)?;
            (text.get(..address.len() + 2).ok_or(INVALID)?, port)
        }
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b)) {
                return Err(INVALID);
            }
            (name, port)
        }
    };
    // A port may be empty; then there is none.
    let text = match port.strip_prefix(':') {
        Some(digits) if !digits.is_empty() => {
            let is_port = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok();
            if !is_port {
                return Err(INVALID);
            }
            text
        }
        Some(_) => name,
        None if port.is_empty() => name,
        None => return Err(INVALID),
    };
    text.parse().map_err(|_| INVALID)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `Host` that counts afterwards, or what is wrong.
    fn checked(version: Version, target: &str, headers: &[(&str, &str)]) -> Result<String, &'static str> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        match check(&mut request, 8080) {
            Ok(()) => {
                assert!(
                    !request.headers().contains_key("upgrade") && !request.headers().contains_key("http2-settings")
                );
                Ok(request.headers()["host"].to_str().unwrap().to_owned())
            }
            Err(Problem::BadRequest(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        let of = |host: &str| checked(Version::HTTP_11, "/", &[("host", host)]);
        for host in ["a", "a.example:80", "A_b-c.example.", "127.0.0.1:8080", "[::1]", "[::1]:65535", "a:0", "x+y"] {
            assert_eq!(of(host).as_deref(), Ok(host));
        }
        assert_eq!(of("a:").as_deref(), Ok("a"));
        assert_eq!(of("").as_deref(), Ok("localhost:8080"));
        for host in [
            "a/show?",
            "a/show#",
            "a?b",
            "a#b",
            "a b",
            "[::1",
            "::1",
            "[::1]a",
            "[::1]:",
            "[a]",
            "[::1%25eth0]",
            "a:99999",
            "a:+1",
            "a:b",
            "a:1:2",
            "a%2fb",
            "u:p@a",
            "u@a",
            ":80",
            "a\\b",
            "a\"b",
            "<a>",
            "a,b/c",
            "a|b",
            "a^b",
            "\u{fc}",
        ] {
            if host == "[::1]:" {
                assert_eq!(of(host).as_deref(), Ok("[::1]"));
            } else {
                assert!(of(host).is_err(), "{host}");
            }
        }
    }

    #[test]
    fn an_absolute_target_counts_and_the_host_is_then_ignored() {
        let h1 = |target: &str, host: &str| checked(Version::HTTP_11, target, &[("host", host)]);
        assert_eq!(h1("http://a.example:81/x", "b").as_deref(), Ok("a.example:81"));
        assert_eq!(h1("http://localhost/", "localhost:80").as_deref(), Ok("localhost"));
        assert!(h1("http://a/", "b c").is_err(), "one that is not valid is an error nevertheless");
        assert!(h1("http://u:p@a/", "a").is_err());
        let h2 =
            |authority: &str, host: &str| checked(Version::HTTP_2, &format!("http://{authority}/"), &[("host", host)]);
        assert!(h2("a", "b").is_err());
        assert_eq!(h2("a", "A:80").as_deref(), Ok("a"));
        assert_eq!(checked(Version::HTTP_2, "http://a/", &[]).as_deref(), Ok("a"));
    }

    #[test]
    fn what_could_be_read_two_ways_is_refused_and_an_upgrade_is_ignored() {
        let (v10, v11) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(checked(v10, "/", &[]).as_deref(), Ok("localhost:8080"));
        assert!(checked(v11, "/", &[]).unwrap_err().contains("no Host"));
        assert!(checked(v11, "/", &[("host", "a"), ("host", "a")]).unwrap_err().contains("several Host"));
        let offer = [
            ("host", "a"),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
        ];
        assert_eq!(checked(v11, "/", &offer).as_deref(), Ok("a"));
        let mut connect = Request::builder().method("CONNECT").uri("a:80").header("host", "a").body(()).unwrap();
        assert!(check(&mut connect, 80).is_err());
    }
}
