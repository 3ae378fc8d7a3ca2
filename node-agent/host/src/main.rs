//! `pillion`: see `pillion --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages. To clear one takes milliseconds, in the middle of somebody's request, and what is touched
    // of it is little: without them an idle worker needs half of the memory. Children inherit this; where the kernel has no such
    // switch it has no huge pages either.
    _ = rustix::thread::disable_transparent_huge_pages(true);
    pillion_host::sys::keep_inherited_descriptors();
    pillion_host::commands::main()
}
