//! A cluster of one node, in a temporary folder: etcd, Kubernetes' API server and kubelet, containerd with runc, and a chain of CNI
//! plugins whose last is `pillion-cni`.
//!
//! Nothing else runs: no scheduler, so pods name their node; no controllers, so there are pods only; no DNS and no services.
//! Pods have the image `pillion.test/busybox:1`. The keeper and the host are those of a [`Node`](crate::node::Node).
//!
//! | file | holds |
//! |---|---|
//! | `daemon` | a program that runs for as long as the cluster |
//! | `image` | the image of all pods |
//! | `machine` | what is changed outside of the folder, and how all is ended |
//! | `pod` | pods, as they are written |
//! | `sandbox` | pods, as they run |
//! | `settings` | the configuration files |

mod daemon;
mod image;
mod machine;
mod pod;
mod sandbox;
mod settings;

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use self::{daemon::Daemon, machine::NODE_ADDRESS, pod::NODE};
pub use self::{pod::Pod, sandbox::Sandbox};
use crate::{place, process, program, wait::wait_until};

/// The version that `tests/cluster/build` builds.
const KUBERNETES: &str = "kubernetes-1.34.4";

/// Locked by whoever has the machine's one cluster, and names its folder.
const LOCK: &str = "/run/pillion-test-cluster.lock";

/// How the folder's name begins.
const FOLDER: &str = "pillion-cluster-";

/// Longer than any of the cluster's programs takes to be ready.
const START: Duration = Duration::from_secs(60);

/// Longer than a pod takes to get anywhere. The kubelet tries again after ten to fifteen seconds, and longer each time.
const POD: &str = "--timeout=90s";

/// Longer than that: the seconds after which a command that hangs is ended.
const COMMAND: &str = "120";

/// A running cluster. When it is dropped, everything in it ends; if the test panics, the ends of its logs are printed.
pub struct Cluster {
    daemons: Vec<Daemon>,
    programs: PathBuf,
    folder: PathBuf,
    /// Held for as long as the cluster runs: there can be one on a machine at a time.
    _lock: File,
}

impl Cluster {
    /// Starts a cluster whose plugin asks the keeper at `cni_socket`. Waits for another test's cluster to end first.
    ///
    /// # Errors
    ///
    /// No root, a program that is missing, or one that ends early: with the end of its log.
    pub async fn start(cni_socket: &Path) -> Result<Self> {
        let programs = place::cache()?.join("tools").join(KUBERNETES);
        let built = ["kube-apiserver", "kubelet", "kubectl"].iter().all(|name| programs.join(name).is_file());
        ensure!(built, "{} is not complete: `make test` builds it, tests/cluster/build too", programs.display());
        let (folder, lock) = make_folder()?;
        let mut cluster = Self { daemons: Vec::new(), programs, folder, _lock: lock };
        let begun = cluster.begin(cni_socket).await;
        begun.with_context(|| format!("the cluster does not start:\n{}", cluster.log()))?;
        Ok(cluster)
    }

    /// Runs `pillion-keeper install-cni` or `uninstall-cni` on the cluster's node.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn plugin(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program::named("pillion-keeper")?);
        command.args(arguments).arg("--bin-dir").arg(self.folder.join("cni/bin"));
        let output = command.arg("--conf-dir").arg(self.folder.join("cni/conf")).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn begin(&mut self, cni_socket: &Path) -> Result<()> {
        let folder = self.folder.clone();
        let at = |name: &str| folder.join(name);
        machine::prepare(&folder)?;
        settings::containerd(&folder)?;
        settings::cni(&folder)?;
        self.plugin(&["install-cni", "--once", "--cni-socket", &cni_socket.to_string_lossy()])?;
        let (etcd, api, kubelet) = (place::free_port()?, place::free_port()?, place::free_port()?);
        settings::access(&folder, api)?;
        settings::kubelet(&folder, kubelet)?;

        let etcd = format!("http://127.0.0.1:{etcd}");
        let mut command = daemon::command("etcd");
        command.arg("--data-dir").arg(at("etcd")).args([
            "--listen-client-urls",
            &etcd,
            "--advertise-client-urls",
            &etcd,
        ]);
        // It votes for itself only, so it need not wait for others.
        command.args([
            "--listen-peer-urls",
            "http://127.0.0.1:0",
            "--heartbeat-interval",
            "10",
            "--election-timeout",
            "100",
        ]);
        self.run("etcd", &mut command)?;

        // The key of its own certificate, which it makes itself, signs tokens too: no pod gets one.
        let key = at("certificates/apiserver.key");
        let mut command = daemon::command(self.programs.join("kube-apiserver"));
        command.args(["--etcd-servers", &etcd, "--bind-address", "127.0.0.1", "--secure-port", &api.to_string()]);
        command.args(["--advertise-address", NODE_ADDRESS, "--service-cluster-ip-range", "10.213.78.0/24"]);
        command.arg("--cert-dir").arg(at("certificates")).arg("--token-auth-file").arg(at("tokens.csv"));
        command.args(["--authorization-mode", "RBAC", "--service-account-issuer", "https://pillion.test"]);
        command.arg("--service-account-key-file").arg(&key).arg("--service-account-signing-key-file").arg(&key);
        command.args([
            "--disable-admission-plugins",
            "ServiceAccount",
            "--kubelet-preferred-address-types",
            "InternalIP",
        ]);
        self.run("kube-apiserver", &mut command)?;

        let mut command = daemon::command("containerd");
        self.run("containerd", command.arg("--config").arg(at("containerd.toml")))?;
        fs::create_dir(at("image"))?;
        let archive = image::write(&at("image"))?;
        self.until("containerd", |_| std::os::unix::net::UnixStream::connect(at("containerd.sock")).is_ok()).await?;
        let mut command = daemon::command("ctr");
        command.arg("--address").arg(at("containerd.sock")).args(["--namespace", "k8s.io", "images", "import"]);
        run(command.args(["--snapshotter", "native"]).arg(archive))?;

        self.until("the API server", |cluster| cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok()).await?;
        let mut command = daemon::command(self.programs.join("kubelet"));
        command.arg("--config").arg(at("kubelet.yaml")).arg("--kubeconfig").arg(at("kubeconfig"));
        command.arg("--root-dir").arg(at("kubelet")).arg("--cert-dir").arg(at("kubelet/certificates"));
        command.args(["--hostname-override", NODE, "--node-ip", NODE_ADDRESS, "--v=2"]);
        self.run("kubelet", &mut command)?;
        let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        self.until("the node", |cluster| {
            cluster.kubectl(&["get", "node", NODE, "-o", ready]).is_ok_and(|status| status == "True")
        })
        .await
    }

    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.daemons.push(Daemon::start(&self.folder, name, command)?);
        Ok(())
    }

    /// Waits for something, or for the end of one of the programs, which is an error.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let look = || match self.daemons.iter_mut().try_for_each(Daemon::check) {
            Err(error) => Some(Err(error)),
            Ok(()) => done(self).then_some(Ok(())),
        };
        wait_until(what, START, look).await?
    }

    /// The ends of the logs of all programs.
    pub fn log(&self) -> String {
        self.daemons.iter().map(Daemon::tail).collect()
    }

    /// Runs `kubectl` and gives what it prints.
    ///
    /// # Errors
    ///
    /// What it says when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.kubectl_command().args(arguments))
    }

    fn kubectl_command(&self) -> Command {
        let mut command = daemon::command("timeout");
        command.arg(COMMAND).arg(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(self.folder.join("kubeconfig"));
        command.arg("--cache-dir").arg(self.folder.join("kubectl"));
        command
    }

    /// Creates or changes what a YAML text holds.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(yaml.as_bytes())?;
        file.rewind()?;
        run(self.kubectl_command().args(["apply", "--filename", "-"]).stdin(Stdio::from(file))).map(drop)
    }

    /// Creates pods.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn create(&self, pods: &[Pod]) -> Result<()> {
        let manifests: Vec<String> = pods.iter().map(|pod| pod.manifest().to_string()).collect();
        self.apply(&manifests.join("\n---\n"))
    }

    /// Runs a command in a pod's container and gives what it prints.
    ///
    /// # Errors
    ///
    /// It fails, or there is no such container.
    pub fn exec(&self, pod: &str, container: &str, arguments: &[&str]) -> Result<String> {
        run(self.kubectl_command().args(["exec", pod, "--container", container, "--"]).args(arguments))
    }

    /// What a pod's container printed.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn logs(&self, pod: &str, container: &str) -> Result<String> {
        self.kubectl(&["logs", pod, "--container", container])
    }

    /// A part of a pod, by its path: `{.status.podIP}`.
    ///
    /// # Errors
    ///
    /// There is no such pod.
    pub fn part(&self, pod: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", "pod", pod, "--output", &format!("jsonpath={path}")])
    }

    /// Waits until a pod is in a phase, for example `Running`.
    ///
    /// # Errors
    ///
    /// It is not in time; with the pod's events.
    pub fn wait_for_phase(&self, pod: &str, phase: &str) -> Result<()> {
        let pod_name = format!("pod/{pod}");
        let waited = self.kubectl(&["wait", &pod_name, &format!("--for=jsonpath={{.status.phase}}={phase}"), POD]);
        waited.map(drop).with_context(|| format!("{pod}'s events:\n{}", self.events(pod).unwrap_or_default()))
    }

    /// A pod's events, one a line: the reason and the message.
    ///
    /// # Errors
    ///
    /// The API server does not answer.
    pub fn events(&self, pod: &str) -> Result<String> {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        let format = r#"jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}"#;
        self.kubectl(&["get", "events", &selector, "--output", format])
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It is not gone in time.
    pub fn delete(&self, pod: &str) -> Result<()> {
        self.kubectl(&["delete", "pod", pod, POD]).map(drop)
    }

    /// The sandbox of a pod that runs.
    ///
    /// # Errors
    ///
    /// It has none.
    pub fn sandbox(&self, pod: &str) -> Result<Sandbox> {
        sandbox::of(&self.folder, pod)
    }

    /// Kills the process that keeps a pod's sandbox; the kubelet then makes another sandbox.
    ///
    /// # Errors
    ///
    /// The pod does not run.
    pub fn kill_pause(&self, pod: &str) -> Result<()> {
        process::signal(self.sandbox(pod)?.pause, Signal::KILL)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the ends of the cluster's logs:\n{}", self.log());
        }
        for daemon in self.daemons.iter_mut().rev() {
            daemon.end();
        }
        machine::end(&self.folder);
    }
}

/// Makes a folder once no other cluster runs. One whose test was killed is ended first.
fn make_folder() -> Result<(PathBuf, File)> {
    let lock = File::options().create(true).truncate(false).read(true).write(true).open(LOCK);
    let mut lock = lock.with_context(|| format!("{LOCK}: a cluster needs root"))?;
    lock.lock()?;
    let mut before = String::new();
    lock.read_to_string(&mut before)?;
    if before.contains(FOLDER) {
        machine::end(Path::new(&before));
    }
    let folder = TempDir::with_prefix(FOLDER)?.keep();
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(folder.to_string_lossy().as_bytes())?;
    Ok((folder, lock))
}

/// Runs a command to its end and gives what it prints.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?} cannot be started", command.get_program()))?;
    let said = || {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().display();
        let arguments: Vec<_> = command.get_args().collect();
        format!("{program} {arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    };
    ensure!(output.status.success(), "{}", said());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
