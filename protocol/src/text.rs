//! Others' text, for people: a terminal must not do what it says, nor show it as something else; and how much of it is shown, and what it takes
//! in a message.

use std::{borrow::Cow, io};

use serde::Serialize;

/// Whether it is shown as what it is: not a control character (C0, DEL, C1), nor one that turns the direction of text or ends a line.
pub fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !(c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// `text` with U+FFFD in place of what is not plain.
pub fn plain(text: &str) -> Cow<'_, str> {
    plain_but(text, &[])
}

/// As [`plain`], but `kept` stays.
pub fn plain_but<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let stays = |c: char| is_plain(c) || kept.contains(&c);
    match text.chars().all(stays) {
        true => text.into(),
        false => text.chars().map(|c| if stays(c) { c } else { char::REPLACEMENT_CHARACTER }).collect(),
    }
}

/// The most characters of a reason: why something is refused, or has failed.
pub const MAX_REASON: usize = 1_000;

/// A reason as it is shown: at most [`MAX_REASON`] characters, the end of a longer one as `…`, ends of lines and tabs as spaces, and what
/// is not [`plain`] otherwise as U+FFFD.
///
/// ```
/// use pillion_protocol::text::{MAX_REASON, reason};
///
/// assert_eq!(reason("no\u{1b}[2J\nimage"), "no\u{fffd}[2J image");
/// assert_eq!(reason(&"x".repeat(1_000_000)).chars().count(), MAX_REASON);
/// ```
pub fn reason(text: &str) -> String {
    shown(text, MAX_REASON)
}

/// The same with at most so many characters.
pub fn shown(text: &str, most: usize) -> String {
    let is_longer = text.chars().nth(most).is_some();
    let kept = text.chars().take(if is_longer { most.saturating_sub(1) } else { most });
    let shown = kept.map(|c| match c {
        '\n' | '\r' | '\t' => ' ',
        c if is_plain(c) => c,
        _ => char::REPLACEMENT_CHARACTER,
    });
    shown.chain(is_longer.then_some('…').filter(|_| most > 0)).collect()
}

/// The bytes that something takes as JSON. Nothing of it is kept.
///
/// # Errors
///
/// What cannot be written as JSON.
pub fn encoded(content: &(impl Serialize + ?Sized)) -> Result<usize, serde_json::Error> {
    let mut counted = Counted(0);
    serde_json::to_writer(&mut counted, content)?;
    Ok(counted.0)
}

/// Counts what is written.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced_and_languages_are_not() {
        for (text, expected) in [
            ("plain", "plain"),
            ("Grüße, 世界 שלום 👩‍🔬", "Grüße, 世界 שלום 👩‍🔬"),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("a\nb\r\tc\u{7f}", "a\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("\u{202e}sey\u{2069}\u{200f}\u{61c}", "\u{fffd}sey\u{fffd}\u{fffd}\u{fffd}"),
            ("one\u{2028}two", "one\u{fffd}two"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
        assert_eq!(plain_but("a\tb\nc", &['\t']), "a\tb\u{fffd}c");
    }

    #[test]
    fn a_text_is_shown_whole_or_its_end_is_seen_to_be_missing() {
        let table = [
            ("", 3, ""),
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("äöüß", 3, "äö…"),
            ("\0\n\u{9b}", 3, "\u{fffd} \u{fffd}"),
            ("a", 0, ""),
        ];
        for (text, most, expected) in table {
            assert_eq!(shown(text, most), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_written(text: String) {
            prop_assert_eq!(encoded(&text).unwrap(), serde_json::to_vec(&text).unwrap().len());
        }

        /// Four bytes a character, and the quotes.
        #[test]
        fn a_reason_is_short_however_it_is_written(text in "(?s).{0,1200}") {
            let reason = reason(&text);
            prop_assert!(encoded(&reason).unwrap() <= 4 * MAX_REASON + 2);
            prop_assert!(!reason.chars().any(char::is_control));
            prop_assert!(text.starts_with(reason.trim_end_matches('…')) || !text.chars().all(is_plain));
        }
    }
}
