//! Commands that run to their end.

use std::{
    io::{Seek, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

pub(super) use crate::program::clean as command;

/// Runs a command to its end and gives what it prints.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?} cannot be started", command.get_program()))?;
    let said = || {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().display();
        let arguments: Vec<_> = command.get_args().collect();
        format!("{program} {arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    };
    ensure!(output.status.success(), "{}", said());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same, with a text as its standard input.
pub(super) fn feed(command: &mut Command, text: &str) -> Result<String> {
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    run(command.stdin(Stdio::from(file)))
}
