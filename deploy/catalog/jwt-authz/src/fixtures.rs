//! Keys and tokens for the tests.
//!
//! Only the HS256 secret is known. The private keys behind the others were thrown away once they had signed a token each,
//! which is good until 2100.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use exchange::Head;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &[u8] = b"a secret of the tests, 32 bytes.";

const RSA_MODULUS: &str = "49kFL-9_G02dKhKllhLjO2CXFEweQMEyc9CNg0hIflc1ca8Rv-\
    cd7AsnGCv3YoDKfhy47NHi90EdE39cgzp82Xfcup7ie81dA5DUXQwn_Xv_r9AftnnLn4MbRR4Tn656khWceVIBL8Tes2aUjvJy-NPjY_ggnzxhkC\
    pfqhFZMun8w9g861Rt-g8v1bQpLV08rk7yTgT5HozEtAjC1ZFWycMCH3gjJLbBuj_ApHCXpToQSdCFlMKbytvw1AdGc1bIyWDKqX168bI54-\
    xoYjFLA-Ruj-GIlHcN2LYOCBrlz2kKpXdT8q16Pg0Ya5sCMnNkbVPKl08JwDhuufqUD3Kx8Q";

/// Of `bob`, signed with the key `rsa`.
pub const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiZGVtbyIsInN1YiI6ImJvYiI\
    sImV4cCI6NDEwMjQ0NDgwMH0.S5W99LoUBrGeRM2-tOmQ3GW5jco_h3czE2GvekVopY5jZEa-nej5DRF3TtFCX8GCZ93A_QQ8BxM4yiR0dIDpMIl\
    LLlITb2Yu-_3-uwNGWJ5uu6zi1Y706AqdUX7DCRoreI7a3jvv6gce99u1SPJWmE6vX4KWRj9SN03wIUR0QSdKBXimiv0kTOQaliugDSULqN-\
    0haqECYbZG0x33em0iLXeEbLRq3UVwiutsoCdXYPNh8S0Qj90z4kadqC7KPomI3de9lrb9b0VWIMhSkNgIZtFDL774AsoCRS7wjcZzs1zykHua8X\
    25BL8av_tMdYpUpglRuycmCaG4WZ9DILTYQ";

/// The key `hmac`.
pub fn hmac_jwk() -> Value {
    json!({"kty": "oct", "kid": "hmac", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET)})
}

/// The key `rsa`.
pub fn rsa_jwk() -> Value {
    json!({"kty": "RSA", "kid": "rsa", "n": RSA_MODULUS, "e": "AQAB"})
}

/// The key of component.yaml, `demo`: ES256.
pub fn example_jwk() -> Value {
    let set: Value = serde_json::from_str(&example("JWKS").unwrap()).unwrap();
    set["keys"][0].clone()
}

/// All three.
pub fn key_set() -> String {
    json!({"keys": [hmac_jwk(), rsa_jwk(), example_jwk()]}).to_string()
}

/// An environment with all three keys, with these variables changed.
pub fn environment(changes: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let changes: Vec<(String, String)> =
        changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    move |name| match changes.iter().find(|(changed, _)| changed == name) {
        Some((_, value)) => Some(value.clone()),
        None if name == "JWKS" => Some(key_set()),
        None if name == "ISSUER" => Some("https://issuer.example".to_owned()),
        None if name == "AUDIENCE" => Some("demo".to_owned()),
        None => None,
    }
}

/// The environment of component.yaml.
pub fn example(name: &str) -> Option<String> {
    let component: Value = serde_saphyr::from_str(include_str!("../component.yaml")).unwrap();
    let variables = component["spec"]["env"].as_array().unwrap();
    variables.iter().find(|variable| variable["name"] == name)?["value"].as_str().map(str::to_owned)
}

/// The token of README.md.
pub fn example_token() -> String {
    let line = include_str!("../README.md").lines().find_map(|line| line.trim().strip_prefix("TOKEN="));
    line.unwrap().to_owned()
}

/// Claims that pass.
pub fn valid_claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "demo", "sub": "carol", "exp": 4_102_444_800_u64})
}

/// A token of these claims, signed with the key `hmac`.
pub fn mint(claims: &Value) -> String {
    mint_with(&json!({"alg": "HS256", "kid": "hmac"}), claims)
}

/// The same with this header.
pub fn mint_with(header: &Value, claims: &Value) -> String {
    sign(header, claims, SECRET)
}

/// A token signed with HMAC and this secret, whatever its header says.
pub fn sign(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encoded(header), encoded(claims));
    let code = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(&message).finalize().into_bytes();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(code))
}

/// A request that brings this token.
pub fn bearer(token: &str) -> Head {
    Head { headers: vec![("authorization".into(), format!("Bearer {token}").into_bytes())], ..Head::default() }
}
