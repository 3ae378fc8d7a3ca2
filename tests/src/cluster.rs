//! A cluster of one node, in a temporary folder: etcd, Kubernetes' API server and kubelet, containerd with runc. Also an API server
//! [alone](ApiServer).
//!
//! A [node](Cluster::start) has a chain of CNI plugins whose last is `pillion-cni`, with the keeper and the host of a
//! [`Node`](crate::node::Node), and nothing else: no scheduler, so pods name their node; no controllers, so there are pods only; no
//! DNS and no services. A [whole cluster](Cluster::whole) has all of these, and nothing of ours: that is for tests to install.
//!
//! | file | holds |
//! |---|---|
//! | `access` | keys, certificates, kubeconfigs |
//! | `api` | the API server |
//! | `claim` | the one cluster that a machine can have |
//! | `command` | commands that run to their end |
//! | `daemon` | programs that run for as long as the cluster |
//! | `folder` | the folder of an API server alone |
//! | `image` | container images |
//! | `kubectl` | `kubectl` |
//! | `library` | the libraries that programs in images need |
//! | `machine` | what is changed outside of the folder, and how all is ended |
//! | `mount` | mounts |
//! | `network` | links, namespaces, rules of services |
//! | `pod` | pods, as they are written |
//! | `sandbox` | pods, as they run |
//! | `settings` | the configuration files |
//! | `whole` | controllers, scheduler, services, names |

mod access;
mod api;
mod claim;
mod command;
mod daemon;
mod folder;
mod image;
mod kubectl;
mod library;
mod machine;
mod mount;
mod network;
mod pod;
mod sandbox;
mod settings;
mod whole;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use self::{
    api::Kind,
    claim::Claim,
    command::{command, run},
    daemon::Daemons,
    image::Image,
    network::NODE_ADDRESS,
    pod::NODE,
    whole::Whole,
};
pub use self::{
    api::{ApiServer, ISSUER},
    image::BUSYBOX,
    pod::Pod,
    sandbox::Sandbox,
};
use crate::{process, program};

/// Longer than a pod takes to get anywhere. The kubelet tries again after ten to fifteen seconds, and longer each time.
const POD: &str = "--timeout=90s";

/// What a container runs that is not told.
const WAIT: [&str; 2] = ["/bin/sleep", "2147483647"];

/// A running cluster. When it is dropped, everything in it ends; if the test panics, the ends of its logs are printed.
pub struct Cluster {
    daemons: Daemons,
    api: ApiServer,
    /// Dropped last: it puts back what is changed on the machine.
    claim: Claim,
}

impl Cluster {
    /// Starts a node whose plugin asks the keeper at `cni_socket`. Waits for another test's cluster to end first.
    ///
    /// # Errors
    ///
    /// No root, a program that is missing, or one that ends early: with the end of its log.
    pub async fn start(cni_socket: &Path) -> Result<Self> {
        let mut cluster = Self::launch(Kind::Node)?;
        cluster.plugin(&["install-cni", "--once", "--cni-socket", &cni_socket.to_string_lossy()])?;
        let begun = cluster.begin(None).await;
        begun.with_context(|| format!("the cluster does not start:\n{}", cluster.log()))?;
        Ok(cluster)
    }

    /// Starts a whole cluster: Deployments, DaemonSets, Services, names, service accounts. Waits for another test's cluster to end
    /// first.
    ///
    /// # Errors
    ///
    /// The same as of [`Cluster::start`].
    pub async fn whole() -> Result<Self> {
        let whole = Whole::find()?;
        let mut cluster = Self::launch(Kind::Whole)?;
        let begun = cluster.begin(Some(&whole)).await;
        begun.with_context(|| format!("the cluster does not start:\n{}", cluster.log()))?;
        Ok(cluster)
    }

    /// Makes the machine ready, and starts the API server, without waiting for it.
    fn launch(kind: Kind) -> Result<Self> {
        api::programs(&["kubelet"])?;
        let claim = Claim::make(kind)?;
        let folder = claim.folder();
        settings::containerd(folder)?;
        settings::cni(folder, kind)?;
        settings::kubelet(folder, kind)?;
        let (daemons, api) = (Daemons::new(folder), ApiServer::launch(folder, kind)?);
        Ok(Self { daemons, api, claim })
    }

    async fn begin(&mut self, whole: Option<&Whole>) -> Result<()> {
        let folder = self.claim.folder().to_owned();
        let at = |name: &str| folder.join(name);
        let mut containerd = command("containerd");
        self.daemons.run("containerd", containerd.arg("--config").arg(at("containerd.toml")))?;
        self.until("containerd", |_| UnixStream::connect(at("containerd.sock")).is_ok()).await?;
        self.load(Image::busybox(&folder)?, &WAIT)?;

        self.api.ready().await?;
        let mut kubelet = command(api::programs(&["kubelet"])?.join("kubelet"));
        kubelet.arg("--config").arg(at("kubelet.yaml")).arg("--kubeconfig").arg(self.api.kubeconfig());
        kubelet.arg("--root-dir").arg(at("kubelet")).arg("--cert-dir").arg(at("kubelet/certificates"));
        kubelet.args(["--hostname-override", NODE, "--node-ip", NODE_ADDRESS, "--v=2"]);
        self.daemons.run("kubelet", &mut kubelet)?;
        if let Some(whole) = whole {
            whole.run(&mut self.daemons, &folder)?;
            self.until("names and services", Whole::is_ready).await?;
        }
        let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let ready = ["get", "node", NODE, "--output", ready];
        self.until("the node", |api| api.kubectl(&ready).is_ok_and(|status| status == "True")).await
    }

    /// Waits for something, or for the end of one of the programs, which is an error.
    async fn until(&mut self, what: &str, done: impl Fn(&ApiServer) -> bool) -> Result<()> {
        let Self { daemons, api, .. } = self;
        daemons.until(what, || api.check().map(|()| done(api))).await
    }

    /// Runs `pillion-keeper install-cni` or `uninstall-cni` on the cluster's node.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn plugin(&self, arguments: &[&str]) -> Result<()> {
        let mut plugin = command(program::named("pillion-keeper")?);
        plugin.args(arguments).arg("--bin-dir").arg(self.cni_bin());
        run(plugin.arg("--conf-dir").arg(self.cni_conf())).map(drop)
    }

    /// The node's address, by which its pods reach what listens there.
    pub fn node_address(&self) -> &'static str {
        NODE_ADDRESS
    }

    /// The folder on the node that holds CNI plugins.
    pub fn cni_bin(&self) -> PathBuf {
        self.claim.folder().join("cni/bin")
    }

    /// The folder on the node that holds CNI configurations.
    pub fn cni_conf(&self) -> PathBuf {
        self.claim.folder().join("cni/conf")
    }

    /// Makes an image of files, each with its place in it, and of the shared libraries that they need. Its containers run `command`
    /// if they name none. The name begins with a host that has a dot, as `pillion.test/agent:1`; pods need
    /// `imagePullPolicy: Never`. It also has `/tmp`, and the users root and 65532.
    ///
    /// # Errors
    ///
    /// A file or a library that is not there, or a name that containerd would complete.
    pub fn load_image(&self, name: &str, files: &[(PathBuf, &str)], command: &[&str]) -> Result<()> {
        self.load(Image::of_files(name, files, self.claim.folder())?, command).with_context(|| name.to_owned())
    }

    /// Loads an archive of images.
    ///
    /// # Errors
    ///
    /// One that is none.
    pub fn load_archive(&self, archive: &Path) -> Result<()> {
        let mut import = command("ctr");
        import.arg("--address").arg(self.claim.folder().join("containerd.sock"));
        import.args(["--namespace", "k8s.io", "images", "import", "--snapshotter", "native"]);
        run(import.arg(archive)).map(drop)
    }

    fn load(&self, image: Image, does: &[&str]) -> Result<()> {
        image.archive(does, |archive| self.load_archive(archive))
    }

    /// The API server.
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// The same, to be stopped and started again. Whoever watches it asks again after longer and longer pauses, up to half a minute.
    pub fn api_mut(&mut self) -> &mut ApiServer {
        &mut self.api
    }

    /// The ends of the logs of all programs.
    pub fn log(&self) -> String {
        self.api.log() + &self.daemons.log()
    }

    /// Runs `kubectl` and gives what it prints.
    ///
    /// # Errors
    ///
    /// What it says when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.api.kubectl(arguments)
    }

    /// Creates or changes what a YAML text holds.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.api.apply(yaml)
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
        let before = ["exec", pod, "--container", container, "--"];
        self.kubectl(&[&before, arguments].concat())
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
        self.api.events("default", pod)
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
        sandbox::of(self.claim.folder(), pod)
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
        // Its own programs first: what they would say of the end of others is of no use.
        self.daemons.end_all();
    }
}
