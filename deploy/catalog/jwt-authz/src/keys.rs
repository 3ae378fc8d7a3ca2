//! The JWK set (RFC 7517) that tokens are checked with.
//!
//! A key decides its algorithm; what the token says is compared with that and never followed. Keys that are for something
//! else are passed over, as the RFC asks, but a set without a single usable key is a mistake.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::signature;

/// RFC 7518 §3.2: as long as the hash, at least.
const SHORTEST_SECRET: usize = 32;
/// RFC 7518 §3.3: 2,048 bits, at least.
const SHORTEST_MODULUS: usize = 256;

/// A key that checks signatures, under the one algorithm that it is for.
pub struct Key {
    /// Its `kid`.
    pub id: Option<String>,
    /// What it is for.
    pub algorithm: Algorithm,
    /// The key itself.
    pub verifying: DecodingKey,
}

/// What is wrong with a key set. No text says what a key holds: some are secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is no JSON.
    #[error("no JSON: line {line}, column {column}")]
    Syntax {
        /// Where it ceases to be.
        line: usize,
        /// Where it ceases to be.
        column: usize,
    },
    /// It is JSON, but no JWK set.
    #[error("no JWK set: expected {{\"keys\": [...]}}")]
    Shape,
    /// It holds nothing to check a signature with.
    #[error("no usable key: {}", if reasons.is_empty() { "the set is empty".to_owned() } else { reasons.join("; ") })]
    NothingUsable {
        /// Why not, key by key.
        reasons: Vec<String>,
    },
}

/// Every usable key of a JWK set, at least one.
pub fn read(text: &str) -> Result<Vec<Key>, KeySetError> {
    let set: Value = serde_json::from_str(text)
        .map_err(|error| KeySetError::Syntax { line: error.line(), column: error.column() })?;
    let members = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Shape)?;
    let mut keys = Vec::new();
    let mut reasons = Vec::new();
    for (index, member) in members.iter().enumerate() {
        match Jwk::deserialize(member).map_err(|_| "a member is of the wrong type").and_then(Key::new) {
            Ok(key) => keys.push(key),
            Err(reason) => reasons.push(format!("key {}: {reason}", index + 1)),
        }
    }
    if keys.is_empty() { Err(KeySetError::NothingUsable { reasons }) } else { Ok(keys) }
}

/// The members of a JWK that matter here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    alg: Option<String>,
    kid: Option<String>,
    #[serde(rename = "use")]
    public_key_use: Option<String>,
    key_ops: Option<Vec<String>>,
    /// The secret of an `oct` key.
    k: Option<String>,
    /// Modulus and exponent of an `RSA` key.
    n: Option<String>,
    e: Option<String>,
    /// Curve and point of an `EC` key.
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    fn new(jwk: Jwk) -> Result<Self, &'static str> {
        if jwk.public_key_use.as_deref().is_some_and(|used| used != "sig") {
            return Err("its use is not sig");
        }
        if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return Err("its key_ops do not hold verify");
        }
        let (algorithm, name, verifying) = match jwk.kty.as_str() {
            "oct" => {
                let secret = octets(jwk.k.as_deref(), "k is missing or no base64url")?;
                if secret.len() < SHORTEST_SECRET {
                    return Err("its secret is shorter than 32 bytes");
                }
                (Algorithm::HS256, "HS256", DecodingKey::from_secret(&secret))
            }
            "RSA" => {
                let n = octets(jwk.n.as_deref(), "n is missing or no base64url")?;
                let e = octets(jwk.e.as_deref(), "e is missing or no base64url")?;
                if n.iter().skip_while(|byte| **byte == 0).count() < SHORTEST_MODULUS {
                    return Err("its modulus is shorter than 2048 bits");
                }
                (Algorithm::RS256, "RS256", DecodingKey::from_rsa_raw_components(&n, &e))
            }
            "EC" if jwk.crv.as_deref() == Some("P-256") => {
                let x = octets(jwk.x.as_deref(), "x is missing or no base64url")?;
                let y = octets(jwk.y.as_deref(), "y is missing or no base64url")?;
                // SEC 1 §2.3.3: an uncompressed point.
                let point = [&[4], x.as_slice(), y.as_slice()].concat();
                (Algorithm::ES256, "ES256", DecodingKey::from_ec_der(&point))
            }
            "EC" => return Err("its curve is not P-256"),
            _ => return Err("its kty is none of oct, RSA, EC"),
        };
        if jwk.alg.as_deref().is_some_and(|alg| alg != name) {
            return Err("its alg is not the one of HS256, RS256, ES256 that fits its kty");
        }
        signature::verifier(&algorithm, &verifying).map_err(|_| "its numbers are no key")?;
        Ok(Self { id: jwk.kid, algorithm, verifying })
    }
}

fn octets(text: Option<&str>, otherwise: &'static str) -> Result<Vec<u8>, &'static str> {
    text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(otherwise)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    fn reason(jwk: Value) -> String {
        read(&json!({"keys": [jwk]}).to_string()).err().unwrap().to_string()
    }

    #[test]
    fn each_key_is_for_the_algorithm_of_its_type() {
        let keys = read(&fixtures::key_set()).unwrap();
        let found: Vec<_> = keys.iter().map(|key| (key.id.as_deref(), key.algorithm)).collect();
        let expected =
            [(Some("hmac"), Algorithm::HS256), (Some("rsa"), Algorithm::RS256), (Some("demo"), Algorithm::ES256)];
        assert_eq!(found, expected);
    }

    #[test]
    fn keys_for_something_else_are_passed_over() {
        let set = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "ed"},
            {"kty": 7},
            fixtures::hmac_jwk(),
        ]});
        assert_eq!(read(&set.to_string()).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_key_set_says_so() {
        assert_eq!(read("{\n oops").err().unwrap(), KeySetError::Syntax { line: 2, column: 2 });
        for text in ["[]", "{}", "7", r#"{"keys": {}}"#] {
            assert_eq!(read(text).err().unwrap(), KeySetError::Shape, "{text}");
        }
        assert_eq!(read(r#"{"keys": []}"#).err().unwrap().to_string(), "no usable key: the set is empty");
    }

    #[test]
    fn a_key_that_cannot_be_used_says_why() {
        let with = |mut jwk: Value, name: &str, value: Value| {
            jwk[name] = value;
            jwk
        };
        let (hmac, rsa, ec) = (fixtures::hmac_jwk(), fixtures::rsa_jwk(), fixtures::example_jwk());
        let table = [
            (with(hmac.clone(), "k", json!("c2hvcnQ")), "shorter than 32 bytes"),
            (with(hmac.clone(), "k", json!("a b")), "k is missing or no base64url"),
            (with(hmac.clone(), "alg", json!("RS256")), "its alg is not"),
            (with(hmac.clone(), "alg", json!("none")), "its alg is not"),
            (with(hmac.clone(), "use", json!("enc")), "use is not sig"),
            (with(hmac, "key_ops", json!(["sign"])), "key_ops do not hold verify"),
            (with(rsa.clone(), "alg", json!("HS256")), "its alg is not"),
            (with(rsa.clone(), "alg", json!("PS256")), "its alg is not"),
            (with(rsa.clone(), "n", json!("AQAB")), "shorter than 2048 bits"),
            (with(rsa, "e", json!("AA")), "no key"),
            (with(ec.clone(), "crv", json!("P-384")), "curve is not P-256"),
            (with(ec.clone(), "y", ec["x"].clone()), "no key"),
            (with(ec, "x", Value::Null), "x is missing"),
        ];
        for (jwk, expected) in table {
            let reason = reason(jwk);
            assert!(reason.starts_with("no usable key: key 1: ") && reason.contains(expected), "{reason}");
        }
    }
}
