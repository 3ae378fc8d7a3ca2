//! Names of components and bindings.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name of a component: a DNS label (RFC 1123), 1–63 characters of `a-z`, `0-9` and `-`, no `-` at either end.
///
/// It is a label and not a whole domain name, because a binding is reached as `http://NAME.pillion.internal`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

/// A text that is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name: allowed are 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or a digit")]
pub struct NameError(String);

/// The most bytes of a wrong text that an error repeats.
const SHOWN: usize = 80;

/// At most [`SHOWN`] characters of `text`, so that a hostile text does not flood a log.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner = text.bytes().all(|b| letter(b) || b == b'-');
        let ends = text.bytes().next().is_some_and(letter) && text.bytes().next_back().is_some_and(letter);
        if inner && ends && text.len() <= 63 { Ok(Self(text.into())) } else { Err(NameError(shown(text))) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_label_is_a_name_and_nothing_else() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "clock", "jwt-authz", "a--b", "9-9", &longest] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", "a\n", "a/b", &too_long] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn an_error_repeats_a_long_text_only_in_part() {
        assert!("x".repeat(1_000_000).to_uppercase().parse::<Name>().unwrap_err().to_string().len() < 300);
    }
}
