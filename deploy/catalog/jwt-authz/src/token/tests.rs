//! One table per way in which a token can be wrong.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::get_current_timestamp;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{self, RSA_TOKEN, environment, example_token, mint, mint_with, sign, valid_claims};

fn checked(token: &str) -> Result<Claims, Refusal> {
    checked_in(token, &[])
}

fn checked_in(token: &str, changes: &[(&str, &str)]) -> Result<Claims, Refusal> {
    check(token, &Config::read(&environment(changes)).unwrap())
}

fn with(name: &str, value: Value) -> String {
    let mut claims = valid_claims();
    claims[name] = value;
    mint(&claims)
}

fn without(name: &str) -> String {
    let mut claims = valid_claims();
    claims.as_object_mut().unwrap().remove(name);
    mint(&claims)
}

#[test]
fn tokens_of_all_three_algorithms_pass() {
    assert_eq!(checked(&mint(&valid_claims())).unwrap()["sub"], "carol");
    assert_eq!(checked(RSA_TOKEN).unwrap()["sub"], "bob");
    assert_eq!(checked(&example_token()).unwrap()["sub"], "alice");
}

#[test]
fn a_changed_token_of_any_algorithm_is_refused() {
    for token in [mint(&valid_claims()), RSA_TOKEN.to_owned(), example_token()] {
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        claims["sub"] = "mallory".into();
        let forged = URL_SAFE_NO_PAD.encode(claims.to_string());
        assert_eq!(checked(&format!("{}.{forged}.{}", parts[0], parts[2])), Err(Refusal::Signature));
        for signature in ["", "AA", &URL_SAFE_NO_PAD.encode([0; 64]), &URL_SAFE_NO_PAD.encode([0; 256])] {
            assert_eq!(checked(&format!("{}.{}.{signature}", parts[0], parts[1])), Err(Refusal::Signature));
        }
    }
}

#[test]
fn no_token_chooses_its_algorithm() {
    let claims = valid_claims();
    // Signed with the public key as if it were a secret: the classic confusion.
    let modulus = URL_SAFE_NO_PAD.decode(fixtures::rsa_jwk()["n"].as_str().unwrap()).unwrap();
    let confused = sign(&json!({"alg": "HS256", "kid": "rsa"}), &claims, &modulus);
    assert_eq!(checked(&confused), Err(Refusal::OtherAlgorithm));
    for alg in ["RS256", "ES256", "HS512", "EdDSA"] {
        assert_eq!(
            checked(&mint_with(&json!({"alg": alg, "kid": "hmac"}), &claims)),
            Err(Refusal::OtherAlgorithm),
            "{alg}"
        );
    }
    for alg in ["none", "None", "nOnE", "", "HS257"] {
        let signed = mint_with(&json!({"alg": alg, "kid": "hmac"}), &claims);
        let unsigned = format!("{}.", signed.rsplit_once('.').unwrap().0);
        assert_eq!((checked(&signed), checked(&unsigned)), (Err(Refusal::Malformed), Err(Refusal::Malformed)), "{alg}");
    }
    assert_eq!(checked(&mint_with(&json!({"kid": "hmac"}), &claims)), Err(Refusal::Malformed));
}

#[test]
fn the_key_is_the_one_that_the_token_names() {
    let claims = valid_claims();
    assert_eq!(checked(&mint_with(&json!({"alg": "HS256", "kid": "other"}), &claims)), Err(Refusal::UnknownKey));
    assert_eq!(checked(&mint_with(&json!({"alg": "HS256"}), &claims)), Err(Refusal::NoKeyNamed));
    let only = json!({"keys": [fixtures::hmac_jwk()]}).to_string();
    assert!(checked_in(&mint_with(&json!({"alg": "HS256"}), &claims), &[("JWKS", &only)]).is_ok());
}

#[test]
fn a_key_that_the_token_brings_is_not_used() {
    let secret = [7; 32];
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret)});
    let header = json!({"alg": "HS256", "kid": "hmac", "jwk": jwk, "jku": "https://evil.example"});
    assert_eq!(checked(&sign(&header, &valid_claims(), &secret)), Err(Refusal::Signature));
}

#[test]
fn critical_headers_are_refused() {
    let header = json!({"alg": "HS256", "kid": "hmac", "crit": ["b64"], "b64": false});
    assert_eq!(checked(&mint_with(&header, &valid_claims())), Err(Refusal::Critical));
}

#[test]
fn times_are_kept_within_the_leeway() {
    let now = get_current_timestamp();
    let strict = [("LEEWAY_SECONDS", "0")];
    assert_eq!(checked(&with("exp", json!(now - 120))), Err(Refusal::Expired));
    assert!(checked(&with("exp", json!(now - 30))).is_ok());
    assert_eq!(checked_in(&with("exp", json!(now - 30)), &strict), Err(Refusal::Expired));
    assert_eq!(checked(&with("nbf", json!(now + 120))), Err(Refusal::Early));
    assert!(checked(&with("nbf", json!(now + 30))).is_ok());
    assert_eq!(checked_in(&with("nbf", json!(now + 30)), &strict), Err(Refusal::Early));
}

#[test]
fn claims_that_are_checked_must_be_there_and_of_their_type() {
    for token in [without("exp"), without("iss"), without("aud")] {
        assert_eq!(checked(&token), Err(Refusal::Claims));
    }
    for bad in [json!("4102444800"), json!(null), json!(-1), json!({}), json!([4102444800_u64])] {
        assert_eq!(checked(&with("exp", bad.clone())), Err(Refusal::Claims), "{bad}");
    }
    assert_eq!(checked(&with("nbf", json!("0"))), Err(Refusal::Claims));
    assert_eq!(checked(&mint(&json!([1]))), Err(Refusal::Claims));
    assert_eq!(checked(&with("aud", json!(7))), Err(Refusal::Claims));
    assert_eq!(checked(&with("iss", json!(["https://issuer.example", "evil"]))), Err(Refusal::Claims));
}

#[test]
fn issuer_and_audience_are_compared_whole() {
    for issuer in ["https://issuer.example/", "https://issuer.exampl", "HTTPS://ISSUER.EXAMPLE", "", "*"] {
        assert_eq!(checked(&with("iss", json!(issuer))), Err(Refusal::Issuer), "{issuer}");
    }
    for audience in [json!("other"), json!([]), json!(["other", "demo2"]), json!("*")] {
        assert_eq!(checked(&with("aud", audience.clone())), Err(Refusal::Audience), "{audience}");
    }
    assert!(checked(&with("aud", json!(["other", "demo"]))).is_ok());
    assert!(checked_in(&with("aud", json!("b")), &[("AUDIENCE", "a, b")]).is_ok());
}

#[test]
fn an_asterisk_leaves_a_claim_unchecked() {
    let any = [("ISSUER", "*"), ("AUDIENCE", "*")];
    for token in [without("iss"), without("aud"), with("iss", json!("x")), with("aud", json!("x"))] {
        assert!(checked_in(&token, &any).is_ok());
    }
    assert_eq!(checked_in(&without("exp"), &any), Err(Refusal::Claims));
}

#[test]
fn what_is_no_token_is_malformed() {
    for token in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "e30.e30.e30", "é.é.é"] {
        assert_eq!(checked(token), Err(Refusal::Malformed), "{token}");
    }
}

#[test]
fn no_refusal_needs_quoting() {
    use Refusal::*;
    let all = [
        Malformed,
        Critical,
        NoKeyNamed,
        UnknownKey,
        OtherAlgorithm,
        Signature,
        Expired,
        Early,
        Issuer,
        Audience,
        Refusal::Claims,
    ];
    for refusal in all {
        assert!(refusal.to_string().bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'));
    }
}
