//! What commands write. Names, errors and answers in it are others' text: neither a terminal nor whoever reads it is led astray by it.
//! Nothing else in `commands` writes to standard output or standard error.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::{Display, Write};

use pillion_protocol::text::{is_plain, plain_but};
use serde::Serialize;

/// Before each further line of one text: others' text cannot look like a line of ours.
const FURTHER: &str = "\n    ";

/// Writes a line to standard output.
pub(super) fn out(line: impl Display) {
    println!("{}", shown(&line.to_string()));
}

/// Writes a line to standard error.
pub(super) fn err(line: impl Display) {
    eprintln!("{}", shown(&line.to_string()));
}

/// Writes a line of JSON to standard output.
///
/// # Errors
///
/// What cannot be JSON.
pub(super) fn json(value: &impl Serialize) -> serde_json::Result<()> {
    println!("{}", escaped(&serde_json::to_string(value)?));
    Ok(())
}

/// Text for people.
fn shown(text: &str) -> String {
    plain_but(text.trim_end(), &['\n', '\t']).replace('\n', FURTHER)
}

/// JSON with escapes for what acts on a terminal: the same values.
fn escaped(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut escaped, c| {
        match is_plain(c) {
            true => escaped.push(c),
            false => _ = write!(escaped, "\\u{:04x}", u32::from(c)),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{7f}";

    #[test]
    fn others_text_is_shown_and_does_nothing() {
        assert_eq!(shown(HOSTILE), "\u{fffd}]0;title\u{fffd}\u{fffd}31m\u{fffd}\u{fffd}");
        assert_eq!(shown("error: it is\n  served   yes\n"), "error: it is\n      served   yes");
    }

    #[test]
    fn json_is_the_same_value_and_does_nothing() {
        let json = escaped(&serde_json::to_string(HOSTILE).unwrap());
        assert!(json.is_ascii() && !json.contains(|c: char| c.is_control()), "{json:?}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), HOSTILE);
    }
}
