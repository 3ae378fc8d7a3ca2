//! The environment: every variable, what it may hold, and what an error about it says.
//!
//! Nothing that loosens a check is a default. A variable that was forgotten or misspelt stops everything, with an error that
//! names it, rather than letting anyone through.

use crate::{
    identity::{ClaimHeader, ClaimHeaderError},
    keys::{self, Key, KeySetError},
};

/// Everything that is set.
pub struct Config {
    /// `JWKS`: what signatures are checked with; at least one key.
    pub keys: Vec<Key>,
    /// `ISSUER`: whose tokens are taken.
    pub issuers: Accepted,
    /// `AUDIENCE`: whom a token must be meant for.
    pub audiences: Accepted,
    /// `LEEWAY_SECONDS`: how far clocks may be apart, 0–600, by default 60.
    pub leeway_seconds: u64,
    /// `FORWARD_CLAIMS`: claims that a 200 carries as headers.
    pub forwarded: Vec<ClaimHeader>,
}

/// What a claim may be.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Anything, or not there at all: written `*`.
    Any,
    /// One of these.
    OneOf(Vec<String>),
}

/// What is wrong with the environment. Each text names the variable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is not set, or empty.
    #[error("{variable} is not set: it holds {holds}")]
    Missing {
        /// Which one.
        variable: &'static str,
        /// What it should hold.
        holds: &'static str,
    },
    /// `JWKS` is none.
    #[error("JWKS: {0}")]
    Keys(#[from] KeySetError),
    /// `*` beside names.
    #[error("{variable}: * stands alone: it means that the claim is not checked")]
    NotAlone {
        /// Which one.
        variable: &'static str,
    },
    /// `LEEWAY_SECONDS` is none.
    #[error("LEEWAY_SECONDS: {0:?} is not a number of seconds: allowed is 0 to 600")]
    Leeway(String),
    /// `FORWARD_CLAIMS` names what cannot be a header.
    #[error("FORWARD_CLAIMS: {0}")]
    Forward(#[from] ClaimHeaderError),
}

impl Config {
    /// Reads all of it.
    pub fn read(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |variable| env(variable).filter(|value| !value.trim().is_empty());
        let required = |variable, holds| set(variable).ok_or(ConfigError::Missing { variable, holds });

        let keys = keys::read(&required("JWKS", "a JWK set as JSON")?)?;
        let issuers = required("ISSUER", "the token's issuer, several with commas, or * for any")?;
        let audiences = required("AUDIENCE", "the token's audience, several with commas, or * for any")?;
        let leeway_seconds = match set("LEEWAY_SECONDS") {
            None => 60,
            Some(text) => match text.trim().parse() {
                Ok(seconds @ 0..=600) => seconds,
                _ => return Err(ConfigError::Leeway(text)),
            },
        };
        Ok(Self {
            keys,
            issuers: Accepted::read("ISSUER", &issuers)?,
            audiences: Accepted::read("AUDIENCE", &audiences)?,
            leeway_seconds,
            forwarded: ClaimHeader::read_list(&set("FORWARD_CLAIMS").unwrap_or_default())?,
        })
    }
}

impl Accepted {
    fn read(variable: &'static str, text: &str) -> Result<Self, ConfigError> {
        let names: Vec<String> =
            text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        match names.as_slice() {
            // Commas alone.
            [] => Err(ConfigError::Missing { variable, holds: "a name, several with commas, or * for any" }),
            [name] if name == "*" => Ok(Self::Any),
            names if names.iter().any(|name| name == "*") => Err(ConfigError::NotAlone { variable }),
            _ => Ok(Self::OneOf(names)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::environment;

    fn error(changes: &[(&str, &str)]) -> String {
        Config::read(&environment(changes)).err().unwrap().to_string()
    }

    #[test]
    fn lists_are_split_and_defaults_are_strict() {
        let config = Config::read(&environment(&[("AUDIENCE", " a, b ,"), ("ISSUER", "*")])).unwrap();
        assert_eq!(config.audiences, Accepted::OneOf(vec!["a".into(), "b".into()]));
        assert_eq!(config.issuers, Accepted::Any);
        assert_eq!(config.leeway_seconds, 60);
        assert!(config.forwarded.is_empty());
    }

    #[test]
    fn each_error_names_its_variable() {
        let table = [
            ("JWKS", "", "JWKS is not set"),
            ("JWKS", "secret-that-is-no-json", "JWKS: no JSON: line 1, column 1"),
            ("JWKS", r#"{"keys": []}"#, "JWKS: no usable key"),
            ("ISSUER", " ", "ISSUER is not set"),
            ("AUDIENCE", "", "AUDIENCE is not set"),
            ("AUDIENCE", ",", "AUDIENCE is not set"),
            ("AUDIENCE", "a, *", "AUDIENCE: * stands alone"),
            ("LEEWAY_SECONDS", "-1", "LEEWAY_SECONDS: \"-1\" is not a number"),
            ("LEEWAY_SECONDS", "601", "allowed is 0 to 600"),
            ("FORWARD_CLAIMS", "a\r\nb", "FORWARD_CLAIMS: "),
        ];
        for (variable, value, expected) in table {
            let error = error(&[(variable, value)]);
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
