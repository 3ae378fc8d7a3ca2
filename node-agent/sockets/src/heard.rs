//! What is heard of a neighbour of another version: the keeper, the host and the plugin of a node are replaced one after the other.
//!
//! A newer one may say more: further fields, which are not read, and further kinds of messages, which are passed over. What a kind that is known
//! carries may be added to, also where it carries nothing here.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// The longest kind that is quoted, in characters.
const KIND: usize = 40;

/// A message, if it is one that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// It is.
    Known(T),
    /// It is not.
    Unknown {
        /// Its kind.
        kind: String,
        /// Why it is not understood.
        why: String,
    },
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Heard<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let why = match T::deserialize(&value) {
            Ok(message) => return Ok(Self::Known(message)),
            Err(error) => error.to_string(),
        };
        let kind = match &value {
            Value::String(kind) => Some(kind),
            Value::Object(fields) => fields.keys().next().filter(|_| fields.len() == 1),
            _ => None,
        };
        let bare = kind.and_then(|kind| T::deserialize(Value::from(kind.as_str())).ok());
        let quoted = || kind.map_or_else(String::new, |kind| kind.chars().take(KIND).collect());
        Ok(bare.map_or_else(|| Self::Unknown { kind: quoted(), why }, Self::Known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Complete,
        Bind { port: u16 },
    }

    #[test]
    fn more_than_is_known_is_passed_over_and_what_is_known_is_heard() {
        let heard = |text: &str| serde_json::from_str::<Heard<Word>>(text).unwrap();
        assert_eq!(heard(r#""complete""#), Heard::Known(Word::Complete));
        assert_eq!(heard(r#"{"complete":{"pods":3}}"#), Heard::Known(Word::Complete));
        assert_eq!(heard(r#"{"bind":{"port":1,"newer":[{}]}}"#), Heard::Known(Word::Bind { port: 1 }));
        for (text, named) in [
            (r#""later""#, "later"),
            (r#"{"later":{"port":1}}"#, "later"),
            (r#"{"bind":{}}"#, "bind"),
            (r#"{"bind":1,"b":2}"#, ""),
            ("7", ""),
        ] {
            assert!(matches!(heard(text), Heard::Unknown { kind, why } if kind == named && !why.is_empty()), "{text}");
        }
        assert!(serde_json::from_str::<Heard<Word>>("{").is_err(), "what is not JSON is not a message");
    }
}
