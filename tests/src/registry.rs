//! An OCI registry: docker-registry, what is pushed to it, and a proxy in front of it that makes faults.
//!
//! | module | holds |
//! |---|---|
//! | `access` | what was asked of the registry, from its access log |
//! | `artifact` | content to be pushed, also content that is wrong |
//! | `daemon` | the program `docker-registry` |
//! | `fault` | faults, and what they make of an answer |
//! | `proxy` | the proxy that makes them |
//! | `remote` | a client that pushes |
//! | `server` | servers in this process |
//! | `setup` | the registry's configuration |
//! | `spin` | artifacts as Spin writes them |
//! | `tls` | a private authority and its certificates |
//! | `token` | a server of tokens |
//!
//! Everything listens on 127.0.0.1 only, docker-registry too: Go's `listen` takes one address. Its names are `localhost:PORT`, as
//! people write them, and `127.0.0.1:PORT`. The first works where a client tries all addresses of a name, also if `::1` comes
//! first, since [`crate::place::free_port`] takes ports that are free on both; not where `localhost` is `::1` alone. The second
//! needs no resolver: the fixtures use it.

mod access;
mod artifact;
mod daemon;
mod fault;
mod proxy;
mod remote;
mod setup;
mod spin;
mod token;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

pub use self::{
    access::{Requests, Served},
    artifact::{Artifact, Platform, digest},
    fault::Fault,
    proxy::{FaultProxy, Seen},
    spin::{SpinComponent, spin_lock},
    token::{TokenRequest, TokenServer},
};
use self::{daemon::Daemon, remote::Remote, setup::Setup};
use crate::tls::Authority;
use crate::wait::eventually;

/// Longer than docker-registry takes to start; it takes some hundredths of a second.
const START: Duration = Duration::from_secs(10);

/// Its access log is at rest when nothing was written for so long.
const REST: Duration = Duration::from_millis(50);

/// docker-registry, running, with a storage of its own. It ends when this is dropped.
pub struct Registry {
    daemon: Option<Daemon>,
    folder: TempDir,
    remote: Remote,
    authority: Option<Authority>,
    tokens: Option<TokenServer>,
}

impl Registry {
    /// Starts one that speaks plain HTTP and asks nobody who they are.
    ///
    /// # Errors
    ///
    /// A program that is not there or does not start.
    pub async fn start() -> Result<Self> {
        Setup::new()?.start().await
    }

    /// Starts one that wants a password: basic authentication, checked against an htpasswd file.
    ///
    /// # Errors
    ///
    /// A program that is not there or does not start.
    pub async fn with_htpasswd(user: &str, password: &str) -> Result<Self> {
        Setup::new()?.htpasswd(user, password)?.start().await
    }

    /// Starts one that wants tokens, and the server that issues them for a password.
    ///
    /// # Errors
    ///
    /// A program that is not there or does not start.
    pub async fn with_token_server(user: &str, password: &str) -> Result<Self> {
        Setup::new()?.token_server(user, password)?.start().await
    }

    /// Starts one that speaks HTTPS, with a certificate of a private authority for `localhost`, 127.0.0.1 and ::1.
    ///
    /// # Errors
    ///
    /// A program that is not there or does not start.
    pub async fn with_tls() -> Result<Self> {
        Setup::new()?.tls()?.start().await
    }

    /// Starts one that speaks HTTPS and wants a password.
    ///
    /// # Errors
    ///
    /// A program that is not there or does not start.
    pub async fn with_tls_and_htpasswd(user: &str, password: &str) -> Result<Self> {
        Setup::new()?.tls()?.htpasswd(user, password)?.start().await
    }

    /// Its port; the same after [`Registry::restart`].
    pub fn port(&self) -> u16 {
        self.remote.port
    }

    /// Its name in references: `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port())
    }

    /// Its name in references without a name to be resolved: `127.0.0.1:PORT`.
    pub fn numeric_host(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The certificate of the authority to be trusted, in PEM.
    ///
    /// # Errors
    ///
    /// A registry without TLS.
    pub fn ca(&self) -> Result<&Path> {
        Ok(self.authority.as_ref().context("this registry was not started with TLS")?.certificate())
    }

    /// The server that issues tokens.
    ///
    /// # Errors
    ///
    /// A registry without one.
    pub fn token_server(&self) -> Result<&TokenServer> {
        self.tokens.as_ref().context("this registry was not started with a token server")
    }

    /// What it logged so far, over all starts.
    pub fn log(&self) -> String {
        read(&self.log_file())
    }

    /// What was asked of it so far, over all starts. An entry is written after its answer is out, so this waits until nothing was
    /// written for 50 ms: ask when nobody pulls.
    pub async fn requests(&self) -> Requests {
        let mut last = (self.access_log().len(), Instant::now());
        while last.1.elapsed() < REST {
            tokio::time::sleep(REST / 5).await;
            let now = self.access_log().len();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        Requests::read(&self.access_log())
    }

    /// Where it keeps the bytes of a blob or manifest. A test may change or remove the file: the registry notices neither, and
    /// serves what is there under the old digest.
    ///
    /// # Errors
    ///
    /// A digest that it does not hold.
    pub fn stored(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a digest begins with sha256:")?;
        let folder = storage(self.folder.path()).join("docker/registry/v2/blobs/sha256");
        let file = folder.join(hex.get(..2).unwrap_or_default()).join(hex).join("data");
        ensure!(file.is_file(), "the registry does not hold {digest}");
        Ok(file)
    }

    /// Ends it; nobody listens at its port then.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Starts it again, at the same port and with the same storage, whether or not it runs.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon = None;
        let daemon =
            self.daemon.insert(Daemon::start(&config(self.folder.path()), &self.log_file(), &self.access_file())?);
        let remote = &self.remote;
        let answers = eventually("docker-registry answers", START, || async { remote.answers().await }).await;
        // One that ended while somebody else answers at its port is an error too.
        daemon.check().and(answers).with_context(|| self.log())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("registry.log")
    }

    fn access_file(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    fn access_log(&self) -> String {
        read(&self.access_file())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("docker-registry's last lines:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A `config.json` as Docker and image pull secrets have it, with one password.
pub fn docker_config(host: &str, user: &str, password: &str) -> Value {
    json!({"auths": {host: {"auth": BASE64_STANDARD.encode(format!("{user}:{password}"))}}})
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

fn config(folder: &Path) -> PathBuf {
    folder.join("config.yml")
}

fn storage(folder: &Path) -> PathBuf {
    folder.join("storage")
}

#[cfg(test)]
mod tests;
