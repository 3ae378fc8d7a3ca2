//! A wall clock of a program's own, which can be set while it runs: libfaketime's. The monotonic clock stays what it is.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;
use tempfile::TempDir;

/// As the package libfaketime has it; the loader knows what `$LIB` is.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// A clock that programs can be given.
pub struct Clock(TempDir);

impl Clock {
    /// One that is right.
    ///
    /// # Errors
    ///
    /// No temporary folder.
    pub fn new() -> Result<Self> {
        let clock = Self(TempDir::new()?);
        clock.set("+0")?;
        Ok(clock)
    }

    /// Sets it, by how much it is wrong: `+1h`, `-1h`, `+0`.
    ///
    /// # Errors
    ///
    /// Its file cannot be written.
    pub fn set(&self, wrong: &str) -> Result<()> {
        // Whole at once: it is read all the time.
        let new = self.0.path().join("new");
        fs::write(&new, wrong)?;
        fs::rename(new, self.file())?;
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("offset")
    }

    /// Gives it to a program that is not started yet.
    pub(crate) fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", self.file());
        command.envs([
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ]);
    }
}
