//! Lines that are not written yet, in two lanes: what the program itself says goes first.

use std::collections::VecDeque;

/// The most bytes of the program's own lines that wait.
const OWN: usize = 1 << 20;

/// The most bytes of guests' lines that wait.
pub(super) const GUESTS: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Lanes {
    own: Lane,
    guests: Lane,
    /// The program's own lines that found no room.
    lost: u64,
}

#[derive(Debug, Default)]
struct Lane {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Lane {
    fn push(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.into());
    }

    fn pop(&mut self) -> Option<Box<[u8]>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

impl Lanes {
    /// What the program says. Where there is no room it is lost, and counted.
    pub(super) fn push_own(&mut self, line: &[u8]) {
        match self.own.bytes + line.len() <= OWN {
            true => self.own.push(line),
            false => self.lost += 1,
        }
    }

    /// What a guest says. Whether there is room was asked before: see [`Self::of_guests`].
    pub(super) fn push_guests(&mut self, line: &[u8]) {
        self.guests.push(line);
    }

    /// The line to write next.
    pub(super) fn pop(&mut self) -> Option<Box<[u8]>> {
        self.own.pop().or_else(|| self.guests.pop())
    }

    /// Bytes of guests that wait.
    pub(super) fn of_guests(&self) -> usize {
        self.guests.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.own.lines.is_empty() && self.guests.lines.is_empty()
    }

    /// How many of the program's own lines were lost since this was asked; 0 as long as there is little room to say so.
    pub(super) fn take_lost(&mut self) -> u64 {
        if self.own.bytes <= OWN / 2 { std::mem::take(&mut self.lost) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_own_lines_go_first() {
        let mut lanes = Lanes::default();
        for line in [b"1", b"2"] {
            lanes.push_guests(line);
            lanes.push_own(line);
        }
        assert_eq!(lanes.of_guests(), 2);
        let popped: Vec<_> = std::iter::from_fn(|| lanes.pop()).collect();
        assert_eq!(popped, [b"1", b"2", b"1", b"2"].map(|line| Box::from(line.as_slice())));
        assert!(lanes.is_empty() && lanes.of_guests() == 0);
    }

    #[test]
    fn own_lines_without_room_are_lost_and_told_when_there_is_room() {
        let mut lanes = Lanes::default();
        let line = vec![0; OWN / 4];
        (0..6).for_each(|_| lanes.push_own(&line));
        assert_eq!(lanes.take_lost(), 0, "there is no room to say so");
        lanes.pop();
        lanes.pop();
        assert_eq!((lanes.take_lost(), lanes.take_lost()), (2, 0));
    }
}
