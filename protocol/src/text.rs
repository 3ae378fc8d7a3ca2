//! Others' text, for people: a terminal must not do what it says, nor show it as something else.

use std::borrow::Cow;

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

#[cfg(test)]
mod tests {
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
}
