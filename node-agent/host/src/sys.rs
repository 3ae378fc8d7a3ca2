//! The only `unsafe` of this crate: loading native code, the scheduling class of threads, descriptors by their number, handlers of
//! faults.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

use serde::{Deserialize, Serialize};
use wasmtime::{Engine, component::Component};

/// Maps the native code in `file` into this process.
///
/// The caller vouches for the file: [`crate::store`] hands out only files that this node's compiler wrote, whose SHA-256 was
/// checked, from a directory that nobody else can write.
///
/// # Errors
///
/// Native code of another engine, version or kind of machine; a file that cannot be mapped.
pub fn load_native_code(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    // By its descriptor: the file that was checked is the file that is mapped.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the store verified the bytes behind this very descriptor against the digest that it recorded when its own compiler
    // child wrote them, and native code is only ever renamed into place or unlinked, never changed in place.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Keeps the descriptors that were inherited from whoever started this process, beside standard input, output and error, from its
/// children. Our own are close-on-exec from the start.
pub fn keep_inherited_descriptors() {
    // SAFETY: the call sets a flag on descriptors and touches no memory. Where the kernel lacks it (before 5.11) nothing changes.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Whether the other side of the connection `socket` has closed its half, or all of it, also while there is something to read.
pub fn is_closed_by_peer(socket: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: socket, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the call reads and writes the one `pollfd` that it is given, which lives until it returns. Of the descriptor only the
    // number is used: one that is closed by now is answered with POLLNVAL.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1
}

/// Whether closing the connection `socket` resets it, in place of the ordinary end. To be called only while it is open.
pub fn reset_on_close(socket: RawFd, reset: bool) {
    let linger = libc::linger { l_onoff: libc::c_int::from(reset), l_linger: 0 };
    let length = libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap_or_default();
    // SAFETY: the call reads the one `linger` that it is given, which lives until it returns. Of the descriptor only the number is used.
    // It fails only for what is no socket.
    unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length) };
}

/// How a thread gives way to others. There is no way back without a privilege: see sched(7) and RLIMIT_NICE in setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ThreadClass {
    /// `SCHED_IDLE`: it runs when no ordinary thread wants the core.
    Idle,
    /// Ordinary, with this nice value: 19 has a seventieth of an ordinary thread's weight, 4 two fifths.
    Nice(u8),
}

/// Moves the calling thread to `class`.
///
/// # Errors
///
/// What sched_setscheduler(2) or setpriority(2) says.
pub fn lower_this_thread(class: ThreadClass) -> io::Result<()> {
    if let ThreadClass::Nice(value) = class {
        // Whoever was started with a higher one keeps it: there is no way back.
        let (now, wanted) = (rustix::process::getpriority_process(None)?, i32::from(value));
        return if now < wanted { Ok(rustix::process::setpriority_process(None, wanted)?) } else { Ok(()) };
    }
    // The kernel's `sched_param`. Not by the C library: musl's function only says that it is not there.
    let priority: libc::c_int = 0;
    // SAFETY: the call reads `priority`, which lives until it returns, and changes no memory of ours.
    match unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `action` on the thread whose fault ends this process, right before it does.
///
/// `action` runs in a signal handler: it must neither take memory nor a lock.
///
/// # Errors
///
/// What sigaction(2) says.
pub fn on_fault(action: fn()) -> io::Result<()> {
    use signal_hook::{
        consts::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP},
        low_level::emulate_default_handler,
    };
    for signal in [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP] {
        let handle = move || {
            action();
            // For the other two the standard library's handler comes next: it says that a stack overflowed, and ends the process.
            if !matches!(signal, SIGBUS | SIGSEGV) {
                _ = emulate_default_handler(signal);
            }
        };
        // SAFETY: `action` is as its caller has promised, and what follows is meant for signal handlers.
        unsafe { signal_hook_registry::register_unchecked(signal, move |_| handle()) }?;
    }
    Ok(())
}
