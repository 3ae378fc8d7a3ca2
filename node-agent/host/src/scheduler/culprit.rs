//! Which component a thread runs, for when a fault on that thread ends the whole process.

use std::{cell::Cell, io};

use pillion_protocol::digest::Digest;

use crate::sys;

thread_local! {
    static RUNS: Cell<Option<Digest>> = const { Cell::new(None) };
}

/// While it lives, its thread runs a guest of this component.
pub struct Running(Option<Digest>);

impl Running {
    /// A guest of this component begins to run on this thread.
    pub fn new(component: Digest) -> Self {
        Self(RUNS.replace(Some(component)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNS.set(self.0);
    }
}

/// When a fault ends this process, such as an abort or a bad address, says on standard output which component the thread ran: the
/// 32 bytes of its digest, or nothing. Being killed from outside is no component's doing.
///
/// Has to come before the engine is made, whose own handler takes what guests cause.
///
/// # Errors
///
/// What sigaction(2) says.
pub fn name_culprits() -> io::Result<()> {
    sys::on_fault(|| {
        if let Some(component) = RUNS.get() {
            // In a signal handler: one system call, and no memory is taken.
            _ = rustix::io::write(rustix::stdio::stdout(), component.as_bytes());
        }
    })
}
