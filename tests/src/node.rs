//! A node without a cluster: a keeper, a host, and the CNI plugin started as a runtime does.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{PermissionsExt, chown},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Component, control::Access, netns::Netns, process, program};

/// Longer than a keeper takes to start.
const START: Duration = Duration::from_secs(10);

/// The user that hosts run as.
pub const HOST: u32 = 65_532;

/// A node's folders, with what was started on it.
pub struct Node {
    folder: TempDir,
    /// In memory: what the host keeps of Secrets.
    secrets: TempDir,
    /// The pod of the agent: the one that is there, or the newer of two.
    agent: Agent,
    /// What its hosts follow instead of the catalog.
    control: Option<Access>,
    /// Variables of hosts that are started from now on.
    pub environment: Vec<(&'static str, &'static str)>,
}

/// What runs in one pod of the agent. It is killed when it is dropped.
pub struct Agent {
    number: u32,
    keeper: Option<Child>,
    host: Option<Child>,
}

impl Agent {
    fn new(number: u32) -> Self {
        Self { number, keeper: None, host: None }
    }

    fn folder(&self, node: &Path) -> PathBuf {
        node.join(format!("agent-{}", self.number))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for mut process in [self.host.take(), self.keeper.take()].into_iter().flatten() {
            _ = process.kill();
            _ = process.wait();
        }
    }
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
    /// The pod's UID.
    pub pod: &'a str,
    /// Its namespace and its name.
    pub name: (&'a str, &'a str),
    /// The container id.
    pub id: &'a str,
    /// The namespace's path; empty when it is gone.
    pub netns: PathBuf,
    /// The pod's annotations.
    pub annotations: Value,
}

impl<'a> Sandbox<'a> {
    /// A sandbox with this annotation `pillion.dev/sidecars`, of a pod of the namespace `shop` whose UID is its name.
    pub fn new(pod: &'a str, id: &'a str, netns: &Netns, sidecars: &str) -> Self {
        let annotations = json!({"pillion.dev/sidecars": sidecars});
        Self { pod, name: ("shop", pod), id, netns: netns.path().into(), annotations }
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
        let (folder, secrets) = (TempDir::new()?, TempDir::new_in("/dev/shm")?);
        chown(secrets.path(), Some(HOST), Some(HOST))?;
        std::fs::create_dir(folder.path().join("catalog"))?;
        // The host is another user.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        Ok(Self { folder, secrets, agent: Agent::new(0), control: None, environment: Vec::new() })
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

    /// A node with keeper and host, whose catalog has the component `hello`.
    ///
    /// # Errors
    ///
    /// See [`Node::with_keeper`].
    pub fn with_hello() -> Result<Self> {
        let mut node = Self::with_keeper()?;
        node.add(&Component::guest("hello", "hello-wasip2")?)?;
        node.start_host()?;
        Ok(node)
    }

    /// Where namespaces can be put.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the host keeps what is secret.
    pub fn secrets(&self) -> &Path {
        self.secrets.path()
    }

    /// The socket of the plugin.
    pub fn cni_socket(&self) -> PathBuf {
        self.folder.path().join("keeper/cni.sock")
    }

    /// The socket of the host.
    pub fn host_socket(&self) -> PathBuf {
        self.agent.folder(self.folder.path()).join("keeper.sock")
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
        let catalog = self.folder.path().join("catalog");
        let component = component.clone().copied_to(self.folder.path())?;
        Ok(std::fs::write(catalog.join(format!("{}.yaml", component.name())), component.yaml())?)
    }

    /// Puts a component of a registry into the node's catalog. What the host knows of registries is in `registries.yaml` in
    /// [`Node::folder`], if that is there when it starts.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn add_image(&self, name: &str, reference: &str) -> Result<()> {
        let catalog = self.folder.path().join("catalog");
        Ok(std::fs::write(catalog.join(format!("{name}.yaml")), Component::image(name, reference).yaml())?)
    }

    /// Has hosts that are started from now on follow control. Their store is in this node's folder: they keep there what they were told.
    ///
    /// # Errors
    ///
    /// The store's folder cannot be made.
    pub fn follow(&mut self, access: Access) -> Result<()> {
        let store = self.folder.path().join("store");
        if !store.exists() {
            std::fs::create_dir(&store)?;
            std::os::unix::fs::chown(&store, Some(HOST), Some(HOST))?;
        }
        self.control = Some(access);
        Ok(())
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
        // By its descriptor: the folders that lead to it may be closed to that user.
        let program = File::open(program::binary()?)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0("pillion").uid(HOST).gid(HOST).current_dir("/");
        for variable in program::VARIABLES {
            command.env_remove(variable);
        }
        command.envs(self.environment.iter().cloned());
        command.arg("host").arg("--keeper-socket").arg(self.host_socket());
        match &self.control {
            None => {
                command.arg("--catalog").arg(at("catalog")).arg("--store").arg(crate::place::host_store(HOST)?);
            }
            Some(Access { url, authority, token }) => {
                command.arg("--control").arg(url).arg("--control-ca").arg(authority);
                command.arg("--control-token").arg(token).arg("--store").arg(at("store"));
                command.arg("--secrets").arg(self.secrets());
            }
        }
        if at("registries.yaml").exists() {
            command.arg("--registries").arg(at("registries.yaml"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent.host = Some(command.spawn()?);
        Ok(())
    }

    /// Kills the host as a fault would, with its worker.
    ///
    /// # Errors
    ///
    /// It cannot be killed.
    pub fn kill_host(&mut self) -> Result<()> {
        if let Some(mut host) = self.agent.host.take() {
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

    /// The host's process number: its supervisor.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn host(&self) -> Result<u32> {
        self.agent.host.as_ref().map(Child::id).context("there is no host")
    }

    /// The host's worker.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn worker(&self) -> Result<u32> {
        process::children(self.host()?).into_iter().next().context("the host has no worker")
    }

    /// Starts a keeper, in the place of the one before, and waits until it is the keeper.
    ///
    /// # Errors
    ///
    /// It is not in time.
    pub fn start_keeper(&mut self) -> Result<()> {
        self.start_keeper_with(&[])
    }

    /// The same through another program, such as `prlimit`.
    ///
    /// # Errors
    ///
    /// See [`Node::start_keeper`].
    pub fn start_keeper_with(&mut self, wrapper: &[&str]) -> Result<()> {
        self.kill_keeper()?;
        self.spawn_keeper(wrapper)?;
        self.wait_for_keeper()
    }

    fn spawn_keeper(&mut self, wrapper: &[&str]) -> Result<()> {
        let at = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(at("keeper.log"))?;
        let keeper = program::named("pillion-keeper")?;
        let mut words = wrapper.iter().map(OsString::from).chain([keeper.into_os_string()]);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words).arg("--cni-socket").arg(self.cni_socket()).arg("--host-socket").arg(self.host_socket());
        command.arg("--host-uid").arg(HOST.to_string());
        // The node is what this test is in. The first process may be one that nobody may look at.
        command.arg("--node-netns").arg(format!("/proc/{}/ns/net", std::process::id()));
        command.arg("--state").arg(at("state")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        std::fs::create_dir_all(self.agent.folder(self.folder.path()))?;
        self.agent.keeper = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until the newest agent's keeper is the keeper.
    fn wait_for_keeper(&self) -> Result<()> {
        let kept = self.agent.folder(self.folder.path()).join("generation");
        let is_keeper = || {
            let generation: u64 = std::fs::read_to_string(&kept).ok()?.trim().parse().ok()?;
            self.status().ok()?.get("generation")?.as_u64().filter(|of_keeper| *of_keeper == generation)
        };
        let began = Instant::now();
        while is_keeper().is_none() {
            ensure!(began.elapsed() < START, "this is not the keeper: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What the keeper says of itself.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn status(&self) -> Result<Value> {
        self.status_with(&[])
    }

    /// The readiness probe of the newest agent.
    fn probe(&self) -> Result<Value> {
        let folder = self.agent.folder(self.folder.path());
        self.status_with(&["--instance".as_ref(), folder.as_os_str()])
    }

    fn status_with(&self, arguments: &[&OsStr]) -> Result<Value> {
        let mut command = Command::new(program::named("pillion-keeper")?);
        command.args(["status", "-o", "json", "--cni-socket"]).arg(self.cni_socket()).args(arguments);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Replaces the pod of the agent by a newer one, as a DaemonSet with `maxSurge` does: the newer one starts beside the old one,
    /// which ends when the newer one is ready.
    ///
    /// # Errors
    ///
    /// The newer one is not ready in time.
    pub fn replace_agent(&mut self) -> Result<()> {
        let old = self.start_next_agent()?;
        self.end_agent(old)
    }

    /// Starts a newer pod of the agent beside the one that is there, and gives that.
    ///
    /// # Errors
    ///
    /// The newer one is not ready in time.
    pub fn start_next_agent(&mut self) -> Result<Agent> {
        let next = Agent::new(self.agent.number + 1);
        let old = std::mem::replace(&mut self.agent, next);
        self.spawn_keeper(&[])?;
        self.start_host()?;
        let began = Instant::now();
        while let Err(error) = self.probe() {
            ensure!(began.elapsed() < START, "{error}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(old)
    }

    /// Ends a pod of the agent as the kubelet does.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn end_agent(&self, mut agent: Agent) -> Result<()> {
        let processes = [agent.host.take(), agent.keeper.take()];
        for mut process in processes.into_iter().flatten() {
            process::signal(process.id(), Signal::TERM)?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts another agent's keeper again, as the kubelet does with a container that failed.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn restart_keeper_of(&mut self, agent: &mut Agent) -> Result<()> {
        if let Some(mut keeper) = agent.keeper.take() {
            keeper.kill()?;
            keeper.wait()?;
        }
        std::mem::swap(&mut self.agent, agent);
        let started = self.spawn_keeper(&[]);
        std::mem::swap(&mut self.agent, agent);
        started
    }

    /// Kills the keeper as a fault would.
    ///
    /// # Errors
    ///
    /// It cannot be killed.
    pub fn kill_keeper(&mut self) -> Result<()> {
        if let Some(mut keeper) = self.agent.keeper.take() {
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
        let mut keeper = self.agent.keeper.take().context("there is no keeper")?;
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
        self.agent.keeper.as_ref().map(Child::id).context("there is no keeper")
    }

    /// Starts the plugin for a sandbox, as a runtime does.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cni(&self, command: &str, sandbox: &Sandbox<'_>) -> Result<Said> {
        self.cni_with(command, sandbox, &self.config(sandbox))
    }

    fn config(&self, sandbox: &Sandbox<'_>) -> String {
        format!(
            r#"{{"cniVersion":"1.0.0","name":"pods","type":"pillion-cni","socket":{},"prevResult":{PREVIOUS},"runtimeConfig":{}}}"#,
            json!(self.cni_socket()),
            json!({"io.kubernetes.cri.pod-annotations": sandbox.annotations}),
        )
    }

    /// The same with another configuration.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cni_with(&self, command: &str, sandbox: &Sandbox<'_>, config: &str) -> Result<Said> {
        Self::run_plugin(&program::named("pillion-cni")?, command, sandbox, config)
    }

    /// The same with another plugin.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cni_of(&self, plugin: &Path, command: &str, sandbox: &Sandbox<'_>) -> Result<Said> {
        Self::run_plugin(plugin, command, sandbox, &self.config(sandbox))
    }

    fn run_plugin(plugin: &Path, command: &str, sandbox: &Sandbox<'_>, config: &str) -> Result<Said> {
        let Sandbox { pod: uid, name: (namespace, pod), .. } = sandbox;
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_UID={uid}");
        let began = Instant::now();
        let mut child = Command::new(plugin)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", arguments)
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
