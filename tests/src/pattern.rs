//! Long bodies that are checked without being held: the byte at offset `i` is `i mod 251`, as the guests' `/stream` sends it.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{Stream, stream};
use http_body::Frame;

/// A prime, so that no power of two hides a shift.
const PERIOD: usize = 251;

/// The largest piece that is checked at once.
const PIECE: usize = 1 << 20;

/// The pattern's first bytes.
pub fn bytes(length: usize) -> Bytes {
    (0..length).map(|offset| u8::try_from(offset % PERIOD).unwrap_or(0)).collect()
}

/// A body of `length` bytes in pieces of 64 KiB.
pub fn body(length: u64) -> impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + 'static {
    const STEP: usize = 64 << 10;
    let pattern = bytes(STEP + PERIOD);
    let pieces = (0..length).step_by(STEP).map(move |offset| {
        let start = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
        let left = usize::try_from(length - offset).unwrap_or(STEP).min(STEP);
        Ok(Frame::data(pattern.slice(start..start + left)))
    });
    stream::iter(pieces)
}

/// Checks a body as it comes.
pub struct Check {
    pattern: Bytes,
    offset: u64,
}

impl Default for Check {
    fn default() -> Self {
        Self { pattern: bytes(PIECE + PERIOD), offset: 0 }
    }
}

impl Check {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// Bytes that are not the pattern's.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            let start = usize::try_from(self.offset % PERIOD as u64)?;
            let expected = self.pattern.slice(start..start + piece.len());
            ensure!(
                expected == piece,
                "the body is not the pattern in the {} bytes from {} on",
                piece.len(),
                self.offset
            );
            self.offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.offset
    }
}
