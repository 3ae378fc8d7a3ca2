//! The program, run to its end.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process;

/// Longer than any command that tests run to its end.
const COMMAND: Duration = Duration::from_secs(120);

/// Variables of the program: those of whoever runs the tests must not change what they test.
pub const VARIABLES: [&str; 5] =
    ["PILLION_STORE", "PILLION_LOG", "PILLION_LOG_FORMAT", "PILLION_COMPILER_CPU_SECONDS", "RUST_BACKTRACE"];

/// The built program: `PILLION_BIN`, or `pillion` in the folder that this test was built into.
///
/// # Errors
///
/// A program that was not built.
pub fn binary() -> Result<PathBuf> {
    env::var_os("PILLION_BIN").map_or_else(|| named("pillion"), |path| Ok(PathBuf::from(path)))
}

/// A built program, by its name, in the folder that this test, or bench, was built into.
///
/// # Errors
///
/// A program that was not built.
pub fn named(name: &str) -> Result<PathBuf> {
    let this = env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let folder = folder.parent().filter(|_| folder.ends_with("deps")).unwrap_or(folder);
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not there: `make test` builds it", path.display());
    Ok(path)
}

/// A command with nothing of this test's environment but its `PATH`: a proxy's variables would lead calls out of the machine.
pub fn clean(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs `pillion` with these arguments to its end.
///
/// # Errors
///
/// A program that is not there or does not end.
pub async fn pillion<S: AsRef<OsStr>>(args: &[S]) -> Result<Ended> {
    pillion_with(args, &[]).await
}

/// The same, with variables.
///
/// # Errors
///
/// A program that is not there or does not end.
pub async fn pillion_with<S: AsRef<OsStr>>(args: &[S], variables: &[(&str, &str)]) -> Result<Ended> {
    let mut command = Command::new(binary()?);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.args(args).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn()?;
    let pid = child.id();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = tokio::time::timeout(COMMAND, output).await else {
        process::signal(pid, Signal::KILL)?;
        bail!("the command did not end within {COMMAND:?}");
    };
    let output = output??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}
