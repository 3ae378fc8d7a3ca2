//! Tokens that are signed here: JWT with ES256, as registries and API servers take them.

use anyhow::{Result, anyhow};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::KeyPair;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::Value;

/// Signs tokens.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// One with a key of the curve P-256.
    pub(crate) fn new(key: &KeyPair) -> Result<Self> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &random)
            .map_err(|error| anyhow!("a key that is none: {error}"))?;
        Ok(Self { key, random })
    }

    /// The token of a header, which is encoded already, and of claims.
    pub(crate) fn sign(&self, header: &str, claims: &Value) -> Result<String> {
        let signed = format!("{header}.{}", encoded(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).map_err(|_| anyhow!("a token is not signed"))?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// As it is in a token.
pub(crate) fn encoded(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}
