//! A busy machine: a program that spins on each core, at the priority that every program begins with.

use std::{
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::Result;
use rustix::process::Signal;

use crate::process;

/// It ends by itself after so many seconds, should nobody end it.
const LONGEST: &str = "120";

/// Programs that spin. They end when this is dropped.
pub struct Spinning(Vec<Child>);

/// Whether they share their session, and with it the kernel's autogroup, with whom they disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// This test's.
    Same,
    /// One of their own.
    Another,
}

impl Spinning {
    /// One for each core.
    ///
    /// # Errors
    ///
    /// A shell that cannot be started.
    pub fn start(session: Session) -> Result<Self> {
        let mut programs = Self(Vec::new());
        for _ in 0..thread::available_parallelism()?.get() {
            let mut command = match session {
                Session::Same => Command::new("timeout"),
                Session::Another => {
                    let mut command = Command::new("setsid");
                    command.arg("timeout");
                    command
                }
            };
            command.args([LONGEST, "sh", "-c", "while :; do :; done"]);
            programs.0.push(command.stdin(Stdio::null()).spawn()?);
        }
        Ok(programs)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        for program in &mut self.0 {
            // `timeout` passes it on to the shell.
            _ = process::signal(program.id(), Signal::TERM);
            _ = program.wait();
        }
    }
}
