//! Programs that run for as long as what they are a part of, each with its log in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{process, wait::wait_until};

/// How many lines of a log are shown.
const TAIL: usize = 30;

/// Longer than any of them takes to be ready.
const START: Duration = Duration::from_secs(60);

/// Running programs. They are ended when this is dropped, the last one first.
pub(super) struct Daemons {
    folder: PathBuf,
    running: Vec<Daemon>,
}

struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemons {
    /// None yet. Their logs will be in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), running: Vec::new() }
    }

    /// Starts a command whose log is `folder/name.log`. One of this name that ran before keeps its part of the log.
    pub(super) fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = self.folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("{name} cannot be started: `make test` installs it"))?;
        self.running.push(Daemon { name: name.into(), child, log });
        Ok(())
    }

    /// An error if one of them has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(Daemon::check)
    }

    /// Waits for something, or for the end of one of the programs, which is an error.
    pub(super) async fn until(&mut self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let look = || match self.check().and_then(|()| done()) {
            Err(error) => Some(Err(error)),
            Ok(done) => done.then_some(Ok(())),
        };
        wait_until(what, START, look).await?
    }

    /// The ends of their logs.
    pub(super) fn log(&self) -> String {
        self.running.iter().map(Daemon::tail).collect()
    }

    /// Ends those of a name at once: nothing that they would still write is needed.
    pub(super) fn end(&mut self, name: &str) {
        self.running.iter_mut().filter(|daemon| daemon.name == name).for_each(Daemon::end);
        self.running.retain(|daemon| daemon.name != name);
    }

    /// Ends all.
    pub(super) fn end_all(&mut self) {
        self.running.iter_mut().rev().for_each(Daemon::end);
        self.running.clear();
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl Daemon {
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.tail());
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(TAIL).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        let state = if process::runs(self.child.id()) { "runs" } else { "ended" };
        format!("--- {}, which {state}\n{}\n", self.name, lines.join("\n"))
    }

    fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
