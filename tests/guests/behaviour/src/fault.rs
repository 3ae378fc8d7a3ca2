//! Ways to misbehave that need no host.

use std::hint::black_box;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Computes for ever without a host call.
    Loop,
    /// Takes and touches memory until an allocation fails, which is a trap.
    Alloc,
    /// The instruction `unreachable`.
    Trap,
    /// Waits for a timer of an hour. How is the caller's business: see [`crate::HOUR_NANOS`].
    Never,
}

const MIB: usize = 1024 * 1024;

/// Computes for ever.
pub fn spin_forever() -> ! {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// Computes until `nanos` of the clock `now` have passed.
pub fn spin_for(nanos: u64, now: impl Fn() -> u64) {
    let start = now();
    while now() - start < nanos {
        for n in 0..10_000u64 {
            black_box(n);
        }
    }
}

/// Takes and touches 1 MiB after the other, until there is none.
pub fn allocate_forever() -> ! {
    loop {
        std::mem::forget(mebibyte());
    }
}

/// Takes and touches `mib` MiB. Frees them again.
pub fn touch(mib: usize) {
    let held: Vec<_> = (0..mib).map(|_| mebibyte()).collect();
    black_box(&held);
}

/// Traps.
pub fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

fn mebibyte() -> Vec<u8> {
    // Not 0: zeroed memory would not be touched.
    black_box(vec![1; MIB])
}
