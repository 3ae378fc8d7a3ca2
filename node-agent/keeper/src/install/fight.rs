//! When to stop putting back an entry that somebody else keeps removing. No IO here.

use std::time::{Duration, Instant};

/// An entry that is gone this soon after it was written was undone.
const SOON: Duration = Duration::from_secs(10);

/// How often in a row it may be undone.
const TIMES: u32 = 3;

/// How long to leave it then.
const AGAIN: Duration = Duration::from_secs(5 * 60);

/// What happened to our entry in one file.
#[derive(Debug, Default)]
pub struct Fight {
    file: String,
    written: Option<Instant>,
    undone: u32,
    until: Option<Instant>,
}

impl Fight {
    /// Whether an entry that is missing in `file` may be written.
    pub fn may_write(&mut self, file: &str, now: Instant) -> bool {
        if self.file != file {
            *self = Self { file: file.to_owned(), ..Self::default() };
        }
        if let Some(until) = self.until {
            if now >= until {
                self.until = None;
            }
            return now >= until;
        }
        // Counted once, even if nothing comes of this attempt.
        match self.written.take() {
            Some(written) if now.duration_since(written) < SOON => self.undone += 1,
            Some(_) => self.undone = 0,
            None => {}
        }
        if self.undone < TIMES {
            return true;
        }
        // The next attempt is a single one.
        self.undone = TIMES - 1;
        self.until = Some(now + AGAIN);
        false
    }

    /// It was written.
    pub fn wrote(&mut self, now: Instant) {
        self.written = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Undone `after` so many seconds each time: which attempts were allowed.
    fn attempts(after: &[u64]) -> Vec<bool> {
        let (mut fight, mut now) = (Fight::default(), Instant::now());
        let mut attempt = |seconds: &u64| {
            now += Duration::from_secs(*seconds);
            let may = fight.may_write("a", now);
            if may {
                fight.wrote(now);
            }
            may
        };
        after.iter().map(&mut attempt).collect()
    }

    #[test]
    fn three_times_in_a_row_end_it_for_five_minutes() {
        assert_eq!(attempts(&[0, 1, 1, 1]), [true, true, true, false]);
        assert_eq!(
            attempts(&[0, 1, 1, 1, 299, 1, 1]),
            [true, true, true, false, false, true, false],
            "then one attempt"
        );
        assert_eq!(
            attempts(&[0, 1, 1, 1, 300, 11, 1, 1]),
            [true, true, true, false, true, true, true, true],
            "it held"
        );
        assert_eq!(attempts(&[0, 1, 1, 11, 1, 1]), [true; 6], "not in a row");
    }

    #[test]
    fn an_attempt_that_wrote_nothing_is_not_undone() {
        let (mut fight, now) = (Fight::default(), Instant::now());
        assert!(fight.may_write("a", now));
        fight.wrote(now);
        assert!((0..5).all(|_| fight.may_write("a", now)));
    }

    #[test]
    fn another_file_is_another_fight() {
        let (mut fight, now) = (Fight::default(), Instant::now());
        for _ in 0..3 {
            assert!(fight.may_write("a", now));
            fight.wrote(now);
        }
        assert!(!fight.may_write("a", now));
        assert!(fight.may_write("b", now));
    }
}
