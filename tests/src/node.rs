//! A node without a cluster: a keeper, a host, and the CNI plugin started as a runtime does.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Component, netns::Netns, process, program};

/// Longer than a keeper takes to start.
const START: Duration = Duration::from_secs(10);

/// A node's folders, with a keeper if one was started.
pub struct Node {
    folder: TempDir,
    keeper: Option<Child>,
    host: Option<Child>,
}

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// How long it took.
    pub took: Duration,
}

/// A pod's sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox<'a> {
    /// The pod's UID, which is its name too.
    pub pod: &'a str,
    /// The container id.
    pub id: &'a str,
    /// The namespace's path; empty when it is gone.
    pub netns: PathBuf,
    /// The pod's annotations.
    pub annotations: Value,
}

impl<'a> Sandbox<'a> {
    /// A sandbox with this annotation `pillion.dev/sidecars`.
    pub fn new(pod: &'a str, id: &'a str, netns: &Netns, sidecars: &str) -> Self {
        let annotations = json!({"pillion.dev/sidecars": sidecars});
        Self { pod, id, netns: netns.path().into(), annotations }
    }
}

/// What came before in the chain, with blanks that no serializer would make.
pub const PREVIOUS: &str = r#"{"cniVersion":"1.0.0",  "ips":[ {"address":"10.9.8.7/24"} ],"dns":{}}"#;

impl Node {
    /// A node without a keeper.
    ///
    /// # Errors
    ///
    /// No temporary folder.
    pub fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        std::fs::create_dir(folder.path().join("catalog"))?;
        Ok(Self { folder, keeper: None, host: None })
    }

    /// A node with a keeper.
    ///
    /// # Errors
    ///
    /// A keeper that does not start.
    pub fn with_keeper() -> Result<Self> {
        let mut node = Self::new()?;
        node.start_keeper()?;
        Ok(node)
    }

    /// Where namespaces can be put.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket of the plugin.
    pub fn cni_socket(&self) -> PathBuf {
        self.folder.path().join("keeper/cni.sock")
    }

    /// What keeper and host logged.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("keeper.log") + &read("host.log")
    }

    /// Puts a component into the node's catalog.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn add(&self, component: &Component) -> Result<()> {
        let file = self.folder.path().join("catalog").join(format!("{}.yaml", component.name()));
        Ok(std::fs::write(file, component.yaml())?)
    }

    /// Starts a host, in the place of the one before.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_host(&mut self) -> Result<()> {
        self.kill_host()?;
        let at = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(at("host.log"))?;
        let mut command = Command::new(program::binary()?);
        for variable in program::VARIABLES {
            command.env_remove(variable);
        }
        command.arg("host").arg("--catalog").arg(at("catalog")).arg("--keeper-socket").arg(at("host/keeper.sock"));
        command.arg("--store").arg(crate::place::shared_store()?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.host = Some(command.spawn()?);
        Ok(())
    }

    /// Kills the host as a fault would, with its worker.
    ///
    /// # Errors
    ///
    /// It cannot be killed.
    pub fn kill_host(&mut self) -> Result<()> {
        if let Some(mut host) = self.host.take() {
            let workers = process::children(host.id());
            host.kill()?;
            host.wait()?;
            let end = Instant::now() + START;
            while workers.iter().any(|worker| process::runs(*worker)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// The host's worker.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn worker(&self) -> Result<u32> {
        let host = self.host.as_ref().context("there is no host")?.id();
        process::children(host).into_iter().next().context("the host has no worker")
    }

    /// Starts a keeper, in the place of the one before.
    ///
    /// # Errors
    ///
    /// It does not listen in time.
    pub fn start_keeper(&mut self) -> Result<()> {
        self.kill_keeper()?;
        let at = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(at("keeper.log"))?;
        let mut command = Command::new(program::named("pillion-keeper")?);
        command.arg("--cni-socket").arg(self.cni_socket()).arg("--host-socket").arg(at("host/keeper.sock"));
        command.arg("--state").arg(at("state")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A socket of the one before is there still, and nobody listens at it.
        _ = std::fs::remove_file(self.cni_socket());
        self.keeper = Some(command.spawn()?);
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.cni_socket()).is_err() {
            ensure!(began.elapsed() < START, "the keeper does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills the keeper as a fault would.
    ///
    /// # Errors
    ///
    /// It cannot be killed.
    pub fn kill_keeper(&mut self) -> Result<()> {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.kill()?;
            keeper.wait()?;
        }
        Ok(())
    }

    /// Asks the keeper to end, as the kubelet does, and waits.
    ///
    /// # Errors
    ///
    /// It cannot be asked.
    pub fn end_keeper(&mut self) -> Result<()> {
        let mut keeper = self.keeper.take().context("there is no keeper")?;
        process::signal(keeper.id(), Signal::TERM)?;
        keeper.wait()?;
        Ok(())
    }

    /// The keeper's process number.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn keeper(&self) -> Result<u32> {
        self.keeper.as_ref().map(Child::id).context("there is no keeper")
    }

    /// Starts the plugin for a sandbox, as a runtime does.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cni(&self, command: &str, sandbox: &Sandbox<'_>) -> Result<Said> {
        let config = format!(
            r#"{{"cniVersion":"1.0.0","name":"pods","type":"pillion-cni","socket":{},"prevResult":{PREVIOUS},"runtimeConfig":{}}}"#,
            json!(self.cni_socket()),
            json!({"io.kubernetes.cri.pod-annotations": sandbox.annotations}),
        );
        self.cni_with(command, sandbox, &config)
    }

    /// The same with another configuration.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cni_with(&self, command: &str, sandbox: &Sandbox<'_>, config: &str) -> Result<Said> {
        let pod = sandbox.pod;
        let began = Instant::now();
        let mut child = Command::new(program::named("pillion-cni")?)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID={pod}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // A plugin may end before it has read everything.
        _ = child.stdin.take().context("no standard input")?.write_all(config.as_bytes());
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8(output.stdout)?;
        Ok(Said { success: output.status.success(), stdout, took: began.elapsed() })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.kill_host();
        _ = self.kill_keeper();
        if std::thread::panicking() {
            eprintln!("what keeper and host logged:\n{}", self.log());
        }
    }
}

impl Said {
    /// The code and text of an error.
    ///
    /// # Errors
    ///
    /// It was none.
    pub fn error(&self) -> Result<(u64, String)> {
        ensure!(!self.success, "it succeeded: {}", self.stdout);
        let error: Value = serde_json::from_str(&self.stdout).with_context(|| self.stdout.clone())?;
        let code = error.get("code").and_then(Value::as_u64).context("no code")?;
        Ok((code, error.get("msg").and_then(Value::as_str).context("no msg")?.to_owned()))
    }
}
