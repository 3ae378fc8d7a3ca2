//! A program that runs for as long as the cluster does, with its log in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::process;

/// How many lines of a log are shown.
const TAIL: usize = 30;

/// A running program. The cluster ends it, with whatever it started.
pub(super) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

/// A command with nothing of this test's environment but its `PATH`: a proxy's variables would lead calls out of the machine.
pub(super) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

impl Daemon {
    /// Starts a command whose log is `folder/name.log`.
    pub(super) fn start(folder: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("{name} cannot be started: `make test` installs it"))?;
        Ok(Self { name: name.into(), child, log })
    }

    /// An error if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.tail());
        }
        Ok(())
    }

    /// The end of its log, under its name.
    pub(super) fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(TAIL).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        let state = if process::runs(self.child.id()) { "runs" } else { "ended" };
        format!("--- {}, which {state}\n{}\n", self.name, lines.join("\n"))
    }

    /// Ends it at once: nothing that it would still write is needed.
    pub(super) fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
