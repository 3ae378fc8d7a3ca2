//! The pattern of a route, and which paths it matches.
//!
//! Spin (`crates/routes/src/lib.rs`) hands patterns to the crate routefinder 0.5. Followed here: slashes at both ends of a path
//! do not count; `:name` takes what is before the next `/` (or the `.` that follows it in the pattern) and nothing is decoded;
//! `/...` or `/*` at the end takes the rest, which may be nothing. Not followed: a pattern for which routefinder panics or
//! which it reads as another path is refused or meant as written.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::shown;

/// The most bytes of a pattern.
const BYTES: usize = 1024;

/// A route such as `/exact`, `/hello/:name` or `/all/...`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    segments: Vec<Segment>,
}

/// A text that is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no route: {why}; allowed is a path, with :NAME for one part of it and /... at its end for the rest"
)]
pub struct PatternError {
    text: String,
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// Text as it is, with the dot after it.
    Exact(String),
    Parameter(String),
    /// The dot after a parameter.
    Dot,
    Slash,
    /// Always the last.
    Wildcard,
}

/// What a path has where the pattern has names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Captures<'path> {
    pub(super) named: Vec<(String, &'path str)>,
    /// Without slashes at its end.
    pub(super) wildcard: Option<&'path str>,
}

impl Pattern {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As Spin tells it to a guest as the matched route: with a slash before it and none after it, so `/` is empty.
    pub fn matched(&self) -> String {
        based(&self.text)
    }

    /// As it was written, without `/...` at its end.
    pub fn prefix(&self) -> &str {
        self.text.strip_suffix("/...").unwrap_or(&self.text)
    }

    /// What patterns are sorted by, the one to try first first. Exact beats parameter beats wildcard at the first place where two
    /// differ, so that a longer prefix beats a shorter one; the end of a pattern beats a wildcard.
    pub(super) fn order(&self) -> Vec<u8> {
        let rank = |segment: &Segment| match segment {
            Segment::Exact(_) => 0,
            Segment::Parameter(_) => 1,
            Segment::Dot => 2,
            Segment::Wildcard => 4,
            Segment::Slash => 5,
        };
        self.segments.iter().map(rank).chain([3]).collect()
    }

    /// Whether `path` matches, and what its parts are.
    pub(super) fn captures<'path>(&self, path: &'path str) -> Option<Captures<'path>> {
        let mut captures = Captures::default();
        let mut rest = path.trim_matches('/');
        let mut segments = self.segments.iter().peekable();
        while let Some(segment) = segments.next() {
            rest = match segment {
                Segment::Exact(text) => rest.strip_prefix(text.as_str())?,
                Segment::Dot => rest.strip_prefix('.')?,
                Segment::Slash if rest.is_empty() && segments.peek() == Some(&&Segment::Wildcard) => rest,
                Segment::Slash => rest.strip_prefix('/')?,
                Segment::Parameter(_) if rest.is_empty() => return None,
                Segment::Parameter(name) => {
                    let dotted = segments.peek() == Some(&&Segment::Dot);
                    let end = rest.find(|c| c == '/' || (dotted && c == '.')).unwrap_or(rest.len());
                    let (value, after) = rest.split_at_checked(end)?;
                    // Of two parameters of one name the last counts.
                    captures.named.retain(|(other, _)| other != name);
                    captures.named.push((name.clone(), value));
                    after
                }
                Segment::Wildcard => {
                    captures.wildcard = Some(rest);
                    ""
                }
            };
        }
        rest.is_empty().then_some(captures)
    }
}

/// With a slash before it, and one slash less after it.
fn based(text: &str) -> String {
    let absolute = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    match absolute.strip_suffix('/') {
        Some(shorter) => shorter.to_owned(),
        None => absolute,
    }
}

fn parse(text: &str) -> Result<Vec<Segment>, &'static str> {
    if text.len() > BYTES {
        return Err("it has more than 1024 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it has a control character");
    }
    let based = based(text);
    let (path, wildcard) = match based.strip_suffix("/...").or_else(|| based.strip_suffix("/*")) {
        Some(path) => (path, true),
        None => (based.as_str(), false),
    };
    let mut segments = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == "..." {
            return Err("... is only allowed at its end");
        }
        if !segments.is_empty() {
            segments.push(Segment::Slash);
        }
        let mut pieces = part.split('.').peekable();
        while let Some(piece) = pieces.next() {
            let dot = pieces.peek().is_some();
            match piece.strip_prefix(':') {
                Some("") => return Err("a : has no name after it"),
                Some(name) => {
                    segments.push(Segment::Parameter(name.to_owned()));
                    segments.extend(dot.then_some(Segment::Dot));
                }
                None if piece.starts_with('*') => return Err("* is only allowed at its end, after a /"),
                None if dot => segments.push(Segment::Exact(format!("{piece}."))),
                None if piece.is_empty() => {}
                None => segments.push(Segment::Exact(piece.to_owned())),
            }
        }
    }
    if wildcard {
        segments.extend((!segments.is_empty()).then_some(Segment::Slash));
        segments.push(Segment::Wildcard);
    }
    Ok(segments)
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        match parse(&text) {
            Ok(segments) => Ok(Self { text, segments }),
            Err(why) => Err(PatternError { text: shown(&text), why }),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.to_owned().try_into().unwrap()
    }

    /// `None`, or the captures as `name=value` and the wildcard as `*=value`.
    fn matched(text: &str, path: &str) -> Option<String> {
        let pattern = pattern(text);
        let captures = pattern.captures(path)?;
        let named = captures.named.iter().map(|(name, value)| format!("{name}={value}"));
        Some(named.chain(captures.wildcard.map(|rest| format!("*={rest}"))).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_pattern_matches_as_in_spin() {
        let table = [
            ("/", "/", Some("")),
            ("", "/", Some("")),
            ("/", "/a", None),
            ("/exact", "/exact", Some("")),
            ("exact", "/exact", Some("")),
            ("/exact/", "/exact", Some("")),
            ("/exact", "/exact/", Some("")),
            ("/exact", "//exact//", Some("")),
            ("/exact", "/exactly", None),
            ("/exact", "/Exact", None),
            ("/exact", "/exact/more", None),
            ("/a//b", "/a/b", Some("")),
            ("/a/b", "/a//b", None),
            ("/hello/:name", "/hello/you", Some("name=you")),
            ("/hello/:name", "/hello/y%2Fu.txt", Some("name=y%2Fu.txt")),
            ("/hello/:name", "/hello", None),
            ("/hello/:name", "/hello/", None),
            ("/hello/:name", "/hello/you/there", None),
            ("/:a/x/:b", "/1/x/2", Some("a=1 b=2")),
            ("/:a/:a", "/1/2", Some("a=2")),
            ("/:a/:b/c", "/1//c", Some("a=1 b=")),
            ("/file/:name.json", "/file/a.json", Some("name=a")),
            ("/file/:name.json", "/file/a.b.json", None),
            ("/file/:name.json", "/file/a/b.json", None),
            ("/.hidden/a.b", "/.hidden/a.b", Some("")),
            ("/a/.b", "/a/.b", Some("")),
            ("/a/.b", "/a.b", None),
            ("/...", "/", Some("*=")),
            ("/...", "/a/b/", Some("*=a/b")),
            ("/*", "/a", Some("*=a")),
            ("...", "/a", Some("*=a")),
            ("/all/...", "/all", Some("*=")),
            ("/all/...", "/all/", Some("*=")),
            ("/all/...", "/all/a/b", Some("*=a/b")),
            ("/all/...", "/all//a", Some("*=/a")),
            ("/all/...", "/allowed", None),
            ("/u/:id/...", "/u/42/x", Some("id=42 *=x")),
            ("/u/:id/...", "/u", None),
            ("/a...", "/a...", Some("")),
            ("/ä/:n", "/ä/ö", Some("n=ö")),
        ];
        for (text, path, expected) in table {
            assert_eq!(matched(text, path).as_deref(), expected, "{text} {path}");
        }
    }

    #[test]
    fn a_malformed_pattern_is_refused_by_its_text() {
        let long = format!("/{}", "a".repeat(BYTES));
        for bad in ["/:", "/a/:/b", "/*/a", "/a/*b", "/a.*", "/.../a", "/a\nb", "/\0", &long] {
            let error = Pattern::try_from(bad.to_owned()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{:?} is no route", shown(bad))), "{error}");
            assert!(serde_json::from_value::<Pattern>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_guest_is_told_of_a_pattern_is_what_spin_tells() {
        let table =
            [("/", "", "/"), ("/a/", "/a", "/a/"), ("a", "/a", "a"), ("/a/...", "/a/...", "/a"), ("/...", "/...", "")];
        for (text, matched, prefix) in table {
            assert_eq!((pattern(text).matched().as_str(), pattern(text).prefix()), (matched, prefix), "{text}");
        }
    }
}
