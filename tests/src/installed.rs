//! A whole cluster on which the chart is installed, with a registry that its nodes reach.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    cluster::{BUSYBOX, Cluster},
    place, program,
    registry::Registry,
};

/// Where the archive of an image is that is to be installed, made by `deploy/image pillion.test/pillion:1`; one of the programs that are
/// built for tests otherwise.
const ARCHIVE: &str = "PILLION_IMAGE";

/// The image that the chart is told.
const IMAGE: &str = "pillion.test/pillion";
const TAG: &str = "1";

/// The namespace of the release.
pub const NAMESPACE: &str = "pillion-system";

/// The authorities that the system knows, as images have them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The programs of the image.
const PROGRAMS: [&str; 4] = ["pillion", "pillion-keeper", "pillion-cni", "pillion-control"];

/// A cluster, a registry, and what `helm` is told of them.
pub struct Installed {
    /// The cluster.
    pub cluster: Cluster,
    /// The registry, as this machine reaches it.
    pub registry: Registry,
    /// The registry, as nodes reach it: `ADDRESS:PORT`.
    pub host: String,
    values: PathBuf,
}

impl Installed {
    /// Starts a cluster and a registry, and loads the image.
    ///
    /// # Errors
    ///
    /// See [`Cluster::whole`] and [`Registry::start`].
    pub async fn prepare() -> Result<Self> {
        let (cluster, registry) = (Cluster::whole().await?, Registry::start().await?);
        let host = format!("{}:{}", cluster.node_address(), forward(cluster.node_address(), registry.port()).await?);
        match std::env::var_os(ARCHIVE) {
            Some(archive) => cluster.load_archive(archive.as_ref())?,
            None => load_programs(&cluster)?,
        }
        let values = cluster.cni_conf().with_file_name("values.yaml");
        let settings = json!({
            "image": {"repository": IMAGE, "tag": TAG, "pullPolicy": "Never"},
            "node": {
                "cniBinDir": cluster.cni_bin(), "cniConfDir": cluster.cni_conf(),
                // The first process may be one that nobody may look at.
                "netns": format!("/host/proc/{}/ns/net", std::process::id()),
                "stateDir": values.with_file_name("state"),
            },
            "registries": {"settings": {"registries": {&host: {"plainHttp": true}}}},
        });
        std::fs::write(&values, settings.to_string())?;
        Ok(Self { cluster, registry, host, values })
    }

    /// Installs the chart, and waits until control and the agent are there.
    ///
    /// # Errors
    ///
    /// What helm says, or what became of the pods.
    pub fn install(&self) -> Result<()> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart");
        let (chart, values) = (chart.to_string_lossy(), self.values.to_string_lossy());
        self.helm(&["install", "pillion", &chart, "--create-namespace", "--values", &values])?;
        self.rolled_out("deployment/pillion-control")?;
        self.rolled_out("daemonset/pillion-agent")
    }

    /// Removes the release.
    ///
    /// # Errors
    ///
    /// What helm says.
    pub fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", "pillion", "--wait", "--timeout", "4m"]).map(drop)
    }

    /// Runs `pillion` as somebody does who administers the cluster; gives what it prints.
    ///
    /// # Errors
    ///
    /// What it says when it fails.
    pub fn pillion(&self, arguments: &[&str]) -> Result<String> {
        let mut pillion = program::clean(program::binary()?);
        output(pillion.env("KUBECONFIG", self.cluster.api().kubeconfig()).args(arguments))
    }

    /// The node's folder of what outlives the agent.
    pub fn state_dir(&self) -> PathBuf {
        self.values.with_file_name("state")
    }

    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = program::clean(place::cache()?.join("tools/bin/helm"));
        helm.env("HOME", self.values.with_file_name("helm")).env("KUBECONFIG", self.cluster.api().kubeconfig());
        output(helm.args(arguments).args(["--namespace", NAMESPACE]))
    }

    /// Waits until all pods of a workload of the release are as it says.
    ///
    /// # Errors
    ///
    /// They are not in time; with all that is to be known.
    pub fn rolled_out(&self, what: &str) -> Result<()> {
        let done = self.cluster.kubectl(&["rollout", "status", what, "-n", NAMESPACE, "--timeout=90s"]);
        done.map(drop).with_context(|| self.state())
    }

    /// Runs the sample app, an image that knows nothing of us, with these sidecars.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn deploy(&self, sidecars: &str) -> Result<()> {
        let app = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
            "spec": {
                "selector": {"matchLabels": {"app": "app"}},
                "template": {
                    "metadata": {"labels": {"app": "app"}, "annotations": {"pillion.dev/sidecars": sidecars}},
                    "spec": {"terminationGracePeriodSeconds": 1, "readinessGates": [{"conditionType": "pillion.dev/sidecars"}], "containers": [{
                        "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never",
                        "command": ["sh", "-c", "exec sleep 100000"],
                    }]},
                },
            },
        });
        self.cluster.apply(&app.to_string())
    }

    /// Runs a script of `sh` inside the sample app, and gives what it prints.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn inside(&self, script: &str) -> Result<String> {
        self.cluster.kubectl(&["exec", "deployment/app", "--", "sh", "-c", script])
    }

    /// What a sidecar answers inside the sample app.
    ///
    /// # Errors
    ///
    /// Anything but success.
    pub fn ask(&self, url: &str) -> Result<String> {
        self.inside(&format!("wget -q -O - '{url}'"))
    }

    /// What is to be known where something went wrong.
    pub fn state(&self) -> String {
        let say = |arguments: &[&str]| self.cluster.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        let agent =
            |container| say(&["logs", "-n", NAMESPACE, "daemonset/pillion-agent", "-c", container, "--tail=20"]);
        [
            say(&["get", "pods", "-A", "-o", "wide"]),
            say(&["get", "events", "-A", "--sort-by=.lastTimestamp"]),
            say(&["get", "ccmp", "-o", "yaml"]),
            say(&["logs", "-n", NAMESPACE, "deployment/pillion-control", "--tail=20"]),
            agent("folders"),
            agent("keeper"),
            agent("cni"),
            agent("host"),
        ]
        .join("\n")
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What an agent that was not uninstalled has left; nobody else has one on a machine with such a cluster.
        for folder in ["keeper", "instance", "secrets"] {
            _ = std::fs::remove_dir_all(Path::new("/run/pillion").join(folder));
        }
        _ = std::fs::remove_dir("/run/pillion");
    }
}

/// Makes the image of the programs that are built for tests.
fn load_programs(cluster: &Cluster) -> Result<()> {
    let places = PROGRAMS.map(|name| format!("/{name}"));
    let files = PROGRAMS.iter().zip(&places).map(|(name, place)| Ok((program::named(name)?, place.as_str())));
    let mut files = files.collect::<Result<Vec<_>>>()?;
    files.push((AUTHORITIES.into(), AUTHORITIES));
    cluster.load_image(&format!("{IMAGE}:{TAG}"), &files, &["/pillion"])
}

/// What a command prints; if it fails, all that it has said is the error.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {stdout}{stderr}");
    Ok(stdout.into_owned())
}

/// Lets what listens on this machine's loopback be reached at another of its addresses, as long as the runtime is there.
async fn forward(address: &str, port: u16) -> Result<u16> {
    let listener = TcpListener::bind((address, 0)).await?;
    let reached = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    Ok(reached)
}
