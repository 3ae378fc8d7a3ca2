//! `kubectl`, as the cluster's administrator.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    access,
    command::{command, feed, run},
};

/// The seconds after which a command that hangs is ended: longer than any of them waits.
const END: &str = "120";

/// How it is called.
pub(super) struct Kubectl {
    program: PathBuf,
    folder: PathBuf,
}

impl Kubectl {
    /// For the API server whose kubeconfig is in `folder`.
    pub(super) fn new(programs: &Path, folder: &Path) -> Self {
        Self { program: programs.join("kubectl"), folder: folder.into() }
    }

    /// Runs it and gives what it prints.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments))
    }

    /// The same, with a text as its standard input.
    pub(super) fn feed(&self, arguments: &[&str], text: &str) -> Result<String> {
        feed(self.command().args(arguments), text)
    }

    fn command(&self) -> Command {
        let mut command = command("timeout");
        command.arg(END).arg(&self.program);
        command.arg("--kubeconfig").arg(self.folder.join(access::KUBECONFIG));
        command.arg("--cache-dir").arg(self.folder.join("kubectl"));
        command
    }
}
