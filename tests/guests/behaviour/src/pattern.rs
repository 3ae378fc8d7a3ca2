//! A body of any length that a test can check without holding it.

use crate::PIECE;

/// A prime, so that no power of two hides a shift.
const PERIOD: usize = 251;

/// The byte at `offset` of a body is `offset % 251`.
pub struct Pattern {
    bytes: Vec<u8>,
    left: u64,
    offset: u64,
}

impl Pattern {
    pub fn new(bytes: u64) -> Self {
        Self { bytes: (0..PIECE + PERIOD).map(|n| (n % PERIOD) as u8).collect(), left: bytes, offset: 0 }
    }

    /// The next piece, at most [`PIECE`] bytes; `None` at the end.
    pub fn next_piece(&mut self) -> Option<&[u8]> {
        let length = self.left.min(PIECE as u64);
        if length == 0 {
            return None;
        }
        let start = (self.offset % PERIOD as u64) as usize;
        self.left -= length;
        self.offset += length;
        Some(&self.bytes[start..start + length as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_at_an_offset_is_the_offset_modulo_251() {
        let mut pattern = Pattern::new(2 * PIECE as u64 + 7);
        let mut all = Vec::new();
        while let Some(piece) = pattern.next_piece() {
            all.extend_from_slice(piece);
        }
        assert_eq!(all.len(), 2 * PIECE + 7);
        assert!(all.iter().enumerate().all(|(n, b)| *b as usize == n % 251));
    }
}
