//! The program `docker-registry`.

use std::{
    env,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A running docker-registry. It ends when this is dropped.
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it with a configuration. Its log goes to one file and its access log to another, after what they hold.
    pub(super) fn start(config: &Path, log: &Path, access: &Path) -> Result<Self> {
        let append = |file: &Path| File::options().create(true).append(true).open(file);
        let mut command = Command::new("docker-registry");
        // Variables named REGISTRY_* would change its configuration.
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        command.arg("serve").arg(config);
        command.stdin(Stdio::null()).stdout(append(access)?).stderr(append(log)?);
        let child = command.spawn().context("docker-registry cannot be started: `make test` installs it")?;
        Ok(Self { child })
    }

    /// An error if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("docker-registry ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // At once: it would wait for callers, and holds nothing that is not in its storage.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
