//! What control says, put together from pieces. One line that is longer than a message may be is passed over: those after it are for others.

use std::mem;

use pillion_protocol::{
    id::ComponentId,
    pod::PodUid,
    stream::{Key, MAX_MESSAGE},
};

/// How much is kept of a line that is too long: what it is about stands at its beginning.
const HEAD: usize = 1 << 10;

/// Puts lines together.
#[derive(Default)]
pub(super) struct Lines {
    kept: Vec<u8>,
    /// All bytes of the line so far, those that are not kept included.
    bytes: usize,
}

/// A line that was said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Whole, with its end.
    Whole(Vec<u8>),
    /// Longer than a message may be.
    TooLong {
        /// What it is about, if its beginning says so.
        about: Option<Key>,
        /// How long it was.
        bytes: usize,
    },
}

impl Lines {
    /// The lines that end in `chunk`.
    pub(super) fn take(&mut self, chunk: &[u8]) -> Vec<Line> {
        let mut ended = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.bytes = self.bytes.saturating_add(piece.len());
            if self.bytes <= MAX_MESSAGE {
                self.kept.extend_from_slice(piece);
            } else {
                let room = HEAD.saturating_sub(self.kept.len()).min(piece.len());
                self.kept.extend_from_slice(piece.get(..room).unwrap_or_default());
                // What it had taken is given back.
                self.kept.truncate(HEAD);
                self.kept.shrink_to_fit();
            }
            if piece.ends_with(b"\n") {
                let (kept, bytes) = (mem::take(&mut self.kept), mem::take(&mut self.bytes));
                ended.push(match bytes <= MAX_MESSAGE {
                    true => Line::Whole(kept),
                    false => Line::TooLong { about: about(&kept), bytes },
                });
            }
        }
        ended
    }
}

/// What a line is about that begins so: the first id or UID in it.
fn about(head: &[u8]) -> Option<Key> {
    let head = String::from_utf8_lossy(head);
    let text_of = |field: &str| head.split_once(&format!("\"{field}\":\""))?.1.split_once('"').map(|(text, _)| text);
    let component = text_of("id").and_then(|id| id.parse::<ComponentId>().ok()).map(Key::Component);
    component.or_else(|| text_of("uid")?.parse::<PodUid>().ok().map(Key::Pod))
}

#[cfg(test)]
mod tests {
    use pillion_protocol::{
        component::{ComponentSpec, Image, Variable},
        stream::{ToNode, Version, WantedPod},
    };

    use super::*;

    const END: &[u8] = b"{\"type\":\"complete\"}\n";

    fn whole(line: &[u8]) -> Line {
        Line::Whole(line.to_vec())
    }

    #[test]
    fn a_line_is_whole_wherever_it_was_cut() {
        let said = b"{\"type\":\"complete\"}\n{\"type\":\"heartbeat\"}\n";
        let expected: Vec<_> = said.split_inclusive(|byte| *byte == b'\n').map(whole).collect();
        for cut in 0..=said.len() {
            let mut lines = Lines::default();
            let mut whole = lines.take(&said[..cut]);
            whole.extend(lines.take(&said[cut..]));
            assert_eq!(whole, expected, "cut at {cut}");
        }
    }

    #[test]
    fn half_a_line_says_nothing() {
        let mut lines = Lines::default();
        assert!(lines.take(b"{\"type\":\"podEnded\",\"uid\":\"u\"}").is_empty());
        assert!(lines.take(&vec![b'x'; 2 * MAX_MESSAGE]).is_empty(), "without an end");
        assert!(lines.kept.capacity() <= 2 * HEAD, "nor is it kept: {}", lines.kept.capacity());
    }

    #[test]
    fn the_longest_line_is_read_and_a_longer_one_passed_over() {
        for (length, is_read) in [(MAX_MESSAGE, true), (MAX_MESSAGE + 1, false)] {
            let mut line = vec![b'x'; length];
            line[length - 1] = b'\n';
            let said = [&line[..], END].concat();
            for piece in [1 << 14, said.len()] {
                let mut lines = Lines::default();
                let ended: Vec<_> = said.chunks(piece).flat_map(|chunk| lines.take(chunk)).collect();
                let first = if is_read { whole(&line) } else { Line::TooLong { about: None, bytes: length } };
                assert!(ended == [first, whole(END)], "{length} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_says_what_it_is_about() {
        let mut spec = ComponentSpec::new(Image::Reference("r.example/clock:1".parse().unwrap()));
        spec.env.push(Variable { name: "V".into(), value: "\u{1}".repeat(MAX_MESSAGE / 6) });
        let version = Version("v".into());
        let component =
            ToNode::Component { id: "shop/clock".parse().unwrap(), version: version.clone(), wanted: spec.into() };
        let wanted: WantedPod = serde_json::from_value(serde_json::json!({
            "pod": {"uid": "u-1", "namespace": "shop", "name": "cart-0"}, "sidecars": "clock=8081",
            "refused": {"clock": {"reason": "unknown", "message": "x".repeat(MAX_MESSAGE)}},
        }))
        .unwrap();
        let table = [(component, "component/shop/clock"), (ToNode::Pod { version, wanted }, "pod/u-1")];
        for (told, expected) in table {
            let mut line = serde_json::to_vec(&told).unwrap();
            line.push(b'\n');
            let ended = Lines::default().take(&line);
            let [Line::TooLong { about: Some(about), bytes }] = &ended[..] else { panic!("{ended:?}") };
            assert_eq!((String::from(about.clone()), *bytes), (expected.to_owned(), line.len()));
        }
        assert_eq!(about(br#"{"type":"component","id":"../x","#), None);
    }
}
