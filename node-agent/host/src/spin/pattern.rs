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
/// The most parts of a pattern, between slashes, and the most parameters: every request is compared with every pattern.
const PARTS: usize = 64;
const PARAMETERS: usize = 16;

/// A route such as `/exact`, `/hello/:name` or `/all/...`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    /// What is between its slashes.
    parts: Vec<Vec<Segment>>,
    /// It takes whatever comes behind.
    wildcard: bool,
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
}

/// A request's path, taken apart once for all patterns.
#[derive(Debug)]
pub(super) struct Path<'path> {
    /// Without slashes at its ends.
    text: &'path str,
    /// What is between its slashes, with where it begins: as much as a pattern can have, and one more.
    parts: Vec<(usize, &'path str)>,
}

impl<'path> Path<'path> {
    pub(super) fn new(path: &'path str) -> Self {
        let text = path.trim_matches('/');
        let mut begins = 0;
        let part = |part: &'path str| {
            let at = begins;
            begins += part.len() + 1;
            (at, part)
        };
        let parts = text.split('/').map(part).take(PARTS + 1).collect();
        Self { text, parts: if text.is_empty() { Vec::new() } else { parts } }
    }
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
        const SLASH: u8 = 5;
        let rank = |segment: &Segment| match segment {
            Segment::Exact(_) => 0,
            Segment::Parameter(_) => 1,
            Segment::Dot => 2,
        };
        let mut parts: Vec<Vec<u8>> = self.parts.iter().map(|part| part.iter().map(rank).collect()).collect();
        parts.extend(self.wildcard.then(|| vec![4]));
        let mut order = parts.join(&SLASH);
        order.push(3);
        order
    }

    /// Whether `path` matches, and what its parts are.
    pub(super) fn captures<'path>(&self, path: &Path<'path>) -> Option<Captures<'path>> {
        let (wanted, there) = (self.parts.len(), path.parts.len());
        if there < wanted || there > wanted && !self.wildcard {
            return None;
        }
        let mut captures = Captures::default();
        for (index, (segments, (_, part))) in self.parts.iter().zip(&path.parts).enumerate() {
            part_captures(segments, part, index + 1 == there, &mut captures)?;
        }
        if self.wildcard {
            let begins = path.parts.get(wanted).map_or(path.text.len(), |(begins, _)| *begins);
            captures.wildcard = Some(path.text.get(begins..).unwrap_or_default());
        }
        Some(captures)
    }
}

/// Whether one part of a path is what one part of a pattern says. A parameter may take nothing, but not at the path's end.
fn part_captures<'path>(
    segments: &[Segment],
    part: &'path str,
    is_last: bool,
    captures: &mut Captures<'path>,
) -> Option<()> {
    let mut rest = part;
    let mut segments = segments.iter().peekable();
    while let Some(segment) = segments.next() {
        rest = match segment {
            Segment::Exact(text) => rest.strip_prefix(text.as_str())?,
            Segment::Dot => rest.strip_prefix('.')?,
            Segment::Parameter(_) if rest.is_empty() && is_last => return None,
            Segment::Parameter(name) => {
                let dotted = segments.peek() == Some(&&Segment::Dot);
                let end = if dotted { rest.find('.') } else { None }.unwrap_or(rest.len());
                let (value, after) = rest.split_at_checked(end)?;
                // Of two parameters of one name the last counts.
                captures.named.retain(|(other, _)| other != name);
                captures.named.push((name.clone(), value));
                after
            }
        };
    }
    rest.is_empty().then_some(())
}

/// With a slash before it, and one slash less after it.
fn based(text: &str) -> String {
    let absolute = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    match absolute.strip_suffix('/') {
        Some(shorter) => shorter.to_owned(),
        None => absolute,
    }
}

fn parse(text: &str) -> Result<(Vec<Vec<Segment>>, bool), &'static str> {
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
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).map(parse_part).collect::<Result<_, _>>()?;
    let is_parameter = |segment: &&Segment| matches!(segment, Segment::Parameter(_));
    match parts.iter().flatten().filter(is_parameter).count() {
        _ if parts.len() > PARTS => Err("it has more than 64 parts"),
        parameters if parameters > PARAMETERS => Err("it has more than 16 parameters"),
        _ => Ok((parts, wildcard)),
    }
}

fn parse_part(part: &str) -> Result<Vec<Segment>, &'static str> {
    if part == "..." {
        return Err("... is only allowed at its end");
    }
    let mut segments = Vec::new();
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
    Ok(segments)
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        match parse(&text) {
            Ok((parts, wildcard)) => Ok(Self { text, parts, wildcard }),
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
        let captures = pattern.captures(&Path::new(path))?;
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
