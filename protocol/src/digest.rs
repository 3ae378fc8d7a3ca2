//! Digests that address content.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::shown;

/// The SHA-256 of some bytes, written `sha256:` and 64 lower-case hexadecimal digits, as OCI images do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: expected \"sha256:\" and 64 hexadecimal digits in lower case")]
pub struct DigestError(String);

impl Digest {
    /// The digest that a SHA-256 gave.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The SHA-256's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without `sha256:`: a file name that cannot leave its folder.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// Reads 64 hexadecimal digits without `sha256:`.
    ///
    /// # Errors
    ///
    /// Anything but 64 digits of `0-9` and `a-f`.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(DigestError(shown(text))),
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix("sha256:").ok_or_else(|| DigestError(shown(text)))?;
        Self::from_hex(digits).map_err(|_| DigestError(shown(text)))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_digits_are_a_digest() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        let (short, upper) = ("sha256:00", format!("sha256:{}", "0A".repeat(32)));
        let climbs = format!("sha256:../../{}", "0".repeat(58));
        for bad in ["", "sha256:", short, &upper, &climbs, "sha512:00", &good[7..]] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
