//! The headers that a 200 carries: who the caller is.
//!
//! Every configured header is always there, empty if the token lacks the claim. A proxy that copies them then overwrites
//! what the caller may have sent under the same name.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The claims of a token that passed every check.
pub type Claims = Map<String, Value>;

/// A claim and the header that carries it.
#[derive(Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    claim: String,
    header: String,
}

/// A claim that cannot be forwarded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimHeaderError {
    /// Its name is no part of a header's.
    #[error("{0:?} cannot be a header's name: allowed are letters, digits, - and _")]
    Name(String),
    /// Another has the same header.
    #[error("{0:?} would share its header with another claim")]
    Twice(String),
}

impl ClaimHeader {
    /// Reads `email, preferred_username`.
    pub fn read_list(text: &str) -> Result<Vec<Self>, ClaimHeaderError> {
        let mut list: Vec<Self> = Vec::new();
        for claim in text.split(',').map(|claim| claim.trim_matches(' ')).filter(|claim| !claim.is_empty()) {
            if !claim.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(ClaimHeaderError::Name(claim.to_owned()));
            }
            // Many proxies drop headers with underscores.
            let header = format!("x-auth-claims-{}", claim.to_ascii_lowercase().replace('_', "-"));
            if list.iter().any(|other| other.header == header) {
                return Err(ClaimHeaderError::Twice(claim.to_owned()));
            }
            list.push(Self { claim: claim.to_owned(), header });
        }
        Ok(list)
    }
}

/// `x-auth-subject` and the forwarded claims, names and values.
pub fn headers(claims: &Claims, forwarded: &[ClaimHeader]) -> Vec<(String, String)> {
    let value = |claim: &str| claims.get(claim).map(header_value).unwrap_or_default();
    let forwarded = forwarded.iter().map(|ClaimHeader { claim, header }| (header.clone(), value(claim)));
    std::iter::once(("x-auth-subject".to_owned(), value("sub"))).chain(forwarded).collect()
}

/// A claim as a header's value: texts as they are, lists with commas, numbers, `true`, `false` and objects as JSON.
fn header_value(claim: &Value) -> String {
    match claim {
        Value::Null => String::new(),
        Value::String(text) => encoded(text, ""),
        Value::Array(elements) => {
            let elements: Vec<String> = elements
                .iter()
                .map(|element| match element {
                    Value::String(text) => encoded(text, ","),
                    other => encoded(&other.to_string(), ","),
                })
                .collect();
            elements.join(",")
        }
        other => encoded(&other.to_string(), ""),
    }
}

/// Percent-encodes (RFC 3986 §2.1) what no header may hold or what would be read differently: everything but visible ASCII
/// and blanks between it, `%` itself, and `also`.
fn encoded(text: &str, also: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        let inner_blank = byte == b' ' && index != 0 && index != last;
        let plain = (byte.is_ascii_graphic() && byte != b'%' && !also.as_bytes().contains(&byte)) || inner_blank;
        if plain {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_of_any_type_is_a_header() {
        let table = [
            (json!("alice"), "alice"),
            (json!("read write"), "read write"),
            (json!(["admin", "dev,ops"]), "admin,dev%2Cops"),
            (json!([1, true]), "1,true"),
            (json!(42), "42"),
            (json!(true), "true"),
            (json!({"a": 1}), "{\"a\":1}"),
            (json!(null), ""),
        ];
        for (claim, expected) in table {
            assert_eq!(header_value(&claim), expected);
        }
    }

    #[test]
    fn no_claim_ends_its_header_or_passes_for_another() {
        let table = [
            ("a\r\nx-admin: 1", "a%0D%0Ax-admin: 1"),
            ("a\0b\tc\x7f", "a%00b%09c%7F"),
            ("zoë", "zo%C3%AB"),
            ("100%", "100%25"),
            (" alice ", "%20alice%20"),
            (" ", "%20"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(header_value(&json!(text)), expected);
        }
    }

    #[test]
    fn every_configured_header_is_there_even_without_its_claim() {
        let forwarded = ClaimHeader::read_list("email, preferred_username").unwrap();
        let claims = json!({"sub": "alice", "email": "a@example.com", "secret": 1}).as_object().unwrap().clone();
        let headers = headers(&claims, &forwarded);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = [
            ("x-auth-subject", "alice"),
            ("x-auth-claims-email", "a@example.com"),
            ("x-auth-claims-preferred-username", ""),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn claims_that_make_no_header_are_errors() {
        let name = |claim: &str| ClaimHeaderError::Name(claim.to_owned());
        assert_eq!(ClaimHeader::read_list("https://example.com/roles"), Err(name("https://example.com/roles")));
        assert_eq!(ClaimHeader::read_list("a\nb"), Err(name("a\nb")));
        assert_eq!(ClaimHeader::read_list("a_b, A-B"), Err(ClaimHeaderError::Twice("A-B".into())));
    }
}
