//! How many slots the address space holds. A pool reserves 4 GiB of addresses for each memory, so that generated code needs no checks
//! of bounds: a limit on addresses (`ulimit -v`), or a kernel that gives a process 39 bits of them (512 GiB), leaves less than usual.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::settings;

/// Addresses that everything else of the process needs: 2 GiB of mapped native code, the heap, threads.
const OTHERS: u64 = 4 << 30;

/// The fewest slots that are served from: with fewer, a component of as many memories as are allowed would never get them.
const FEWEST: u32 = 2;

/// What a process can still reserve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// By the limit on its addresses; `None` without one.
    limit: Option<Left>,
    /// Between what is mapped: each pool needs one piece.
    gaps: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    limit: u64,
    left: u64,
}

/// The address space is too small for guests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is too little address space for guests: {what}, and at least {} GiB are needed, for {FEWEST} instances at once: {todo}",
    gib(2 * settings::pool_bytes(FEWEST) + OTHERS)
)]
pub struct TooFewAddresses {
    what: String,
    todo: &'static str,
}

/// Rounded up.
fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30)
}

impl Addresses {
    /// Of this process, as it is now. Where the kernel does not tell, nothing is known to be in the way.
    pub fn of_this_process() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self::new(&maps, getrlimit(Resource::As).current)
    }

    /// As `/proc/PID/maps` and the limit on addresses say.
    fn new(maps: &str, limit: Option<u64>) -> Self {
        let mapped: Vec<_> = maps.lines().filter_map(range).filter(|(start, _)| start >> 63 == 0).collect();
        let before = std::iter::once(0).chain(mapped.iter().map(|(_, end)| *end));
        let gaps = before.zip(&mapped).map(|(end, (start, _))| start.saturating_sub(end));
        let used: u64 = mapped.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
        let limit = limit.map(|limit| Left { limit, left: limit.saturating_sub(used).saturating_sub(OTHERS) });
        Self { limit, gaps: gaps.collect() }
    }

    /// How many slots, at most `most`, the pools of two engines can have.
    ///
    /// # Errors
    ///
    /// Fewer than anybody can be served from.
    pub fn slots(&self, most: u32) -> Result<u32, TooFewAddresses> {
        let (mut fits, mut misfits) = (0, most.saturating_add(1));
        while misfits - fits > 1 {
            let middle = fits + (misfits - fits) / 2;
            match self.hold(middle) {
                true => fits = middle,
                false => misfits = middle,
            }
        }
        if fits >= FEWEST { Ok(fits) } else { Err(self.too_few()) }
    }

    fn hold(&self, slots: u32) -> bool {
        let pool = settings::pool_bytes(slots);
        let limited = self.limit.is_some_and(|limit| pool.saturating_mul(2) > limit.left);
        let pieces: u64 = self.gaps.iter().map(|gap| gap.saturating_sub(OTHERS) / pool).sum();
        !limited && (self.gaps.is_empty() || pieces >= 2)
    }

    fn too_few(&self) -> TooFewAddresses {
        match self.limit {
            Some(Left { limit, left }) if settings::pool_bytes(FEWEST).saturating_mul(2) > left => TooFewAddresses {
                what: format!("this process may have {} MiB of it (RLIMIT_AS, \"ulimit -v\")", limit >> 20),
                todo: "raise that limit, or take it away: addresses are not memory",
            },
            _ => TooFewAddresses {
                what: format!(
                    "the kernel has {} GiB of it left in one piece",
                    self.gaps.iter().max().unwrap_or(&0) >> 30
                ),
                todo: "run on a kernel that gives processes 39 bits of addresses or more",
            },
        }
    }
}

/// Where a mapping begins and ends.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program at two thirds of what there is, its libraries and its stack at the top, as Linux does it.
    fn maps(bits: u32) -> String {
        let top = 1u64 << bits;
        let (program, libraries) = (top / 3 * 2, top - (1 << 30));
        format!(
            "{program:x}-{:x} r-xp 00000000 fe:00 1  /usr/bin/pillion\n{libraries:x}-{:x} rw-p 00000000 00:00 0\n{:x}-{:x} rw-p 00000000 00:00 0  [stack]\n\
             ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n",
            program + (100 << 20),
            libraries + (100 << 20),
            top - (2 << 20),
            top - (1 << 20),
        )
    }

    #[test]
    fn the_pools_of_both_engines_fit_into_the_address_space() {
        let gib = |gib: u64| Some(gib << 30);
        let table = [
            ("x86", maps(47), None, Ok(2_000)),
            ("arm64 with 48 bits", maps(48), None, Ok(2_000)),
            ("arm64 with 39 bits", maps(39), None, Ok(20)),
            ("riscv64 with 38 bits", maps(38), None, Ok(10)),
            ("nothing is known", String::new(), None, Ok(2_000)),
            ("400 GiB", maps(47), gib(400), Ok(24)),
            ("40 GiB", maps(47), gib(40), Ok(2)),
            ("the lower one counts", maps(39), gib(40), Ok(2)),
            ("4 GiB", maps(47), gib(4), Err("4096 MiB of it (RLIMIT_AS, \"ulimit -v\"), and at least 37 GiB")),
            ("36 bits", maps(36), None, Ok(2)),
            ("35 bits", maps(35), None, Err("the kernel has 21 GiB of it left in one piece, and at least 37 GiB")),
        ];
        for (what, maps, limit, expected) in table {
            let slots = Addresses::new(&maps, limit).slots(2_000);
            match (slots, expected) {
                (Ok(slots), Ok(expected)) => assert_eq!(slots, expected, "{what}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{what}: {error}"),
                (slots, _) => panic!("{what}: {slots:?}"),
            }
        }
        assert_eq!(Addresses::new(&maps(47), None).slots(5), Ok(5), "no more than is asked for");
        assert_eq!(Addresses::of_this_process().slots(100), Ok(100), "here");
    }
}
