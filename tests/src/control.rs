//! Control, as the cluster's agents know it: an API server alone, replicas of `pillion-control`, and the identities of nodes.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{clock::Clock, cluster::ApiServer, eventually, place, process, program};

/// Where control and the agent are.
pub const NAMESPACE: &str = "pillion-system";

/// Control's service account, which may do what the chart lets it do.
pub const CONTROL: &str = "pillion-control";

/// The agent's service account, and its DaemonSet.
pub const AGENT: &str = "pillion-agent";

/// The audience of the agent's tokens.
pub const AUDIENCE: &str = "pillion.dev/control";

/// Longer than a replica takes to lead; one that was killed holds its Lease for 15 s.
const LEAD: Duration = Duration::from_secs(40);

/// An API server with what the chart brings, and no controllers.
pub struct Plane {
    /// The API server.
    pub api: ApiServer,
    folder: TempDir,
    /// The clock of replicas of control that are started from now on; the machine's if there is none.
    pub clock: Option<Clock>,
    /// A registry without TLS, which replicas of control that are started from now on may ask.
    pub plain_http: Option<String>,
    /// Replicas of control that are started from now on tell of a node without agent after so many seconds.
    pub agent_grace: Option<u32>,
    /// Variables of replicas of control that are started from now on.
    pub environment: Vec<(&'static str, &'static str)>,
    /// By which control is control there, and how it knows it.
    token: String,
    kubeconfig: PathBuf,
}

/// A replica of control. It is killed when it is dropped.
pub struct Control {
    process: Child,
    port: u16,
    health: u16,
    log: PathBuf,
}

/// How a node reaches control, and who it is there.
#[derive(Clone, Debug)]
pub struct Access {
    /// Control's URL.
    pub url: String,
    /// The certificate of its authority.
    pub authority: PathBuf,
    /// The node's token.
    pub token: PathBuf,
}

/// A pod of the agent.
#[derive(Clone, Debug)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// A file with its token.
    pub token: PathBuf,
}

impl Plane {
    /// Starts an API server that knows components, with the agent's service account.
    ///
    /// # Errors
    ///
    /// See [`ApiServer::start`].
    pub async fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        // Hosts are another user.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let api = ApiServer::start().await?;
        let crds = Command::new(program::named("pillion-control")?).arg("crds").output()?;
        ensure!(crds.status.success(), "{}", String::from_utf8_lossy(&crds.stderr));
        api.apply(&String::from_utf8(crds.stdout)?)?;
        for namespace in [NAMESPACE, "shop", "bank"] {
            api.kubectl(&["create", "namespace", namespace])?;
        }
        api.apply(&rights()?)?;
        api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        let token = api.kubectl(&["create", "token", CONTROL, "-n", NAMESPACE])?;
        let token = token.trim().to_owned();
        let kubeconfig = api.kubeconfig_with_token(&token)?;
        Ok(Self {
            api,
            folder,
            clock: None,
            plain_http: None,
            agent_grace: None,
            environment: Vec::new(),
            token,
            kubeconfig,
        })
    }

    /// Replicas of control that are started from now on reach the API server at this URL.
    ///
    /// # Errors
    ///
    /// The kubeconfig cannot be written.
    pub fn reach_api_at(&mut self, url: &str) -> Result<()> {
        self.kubeconfig = self.api.kubeconfig_for(url, &self.token)?;
        Ok(())
    }

    /// Starts a replica of control.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn control(&self, identity: &str) -> Result<Control> {
        let (port, health) = (place::free_port()?, place::free_port()?);
        let path = self.folder.path().join(format!("{identity}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        let mut command = Command::new(program::named("pillion-control")?);
        command.env_clear().env("KUBECONFIG", &self.kubeconfig).envs(self.environment.iter().copied());
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        command.args(["serve", "--identity", identity, "--namespace", NAMESPACE, "--certificate-name", "127.0.0.1"]);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--health-listen", &format!("127.0.0.1:{health}")]);
        if let Some(registry) = &self.plain_http {
            command.args(["--plain-http", registry]);
        }
        if let Some(grace) = self.agent_grace {
            command.args(["--agent-grace", &grace.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Control { process: command.spawn()?, port, health, log: path })
    }

    /// Starts a replica of control, and waits until it leads.
    ///
    /// # Errors
    ///
    /// It does not in time.
    pub async fn leader(&self, identity: &str) -> Result<Control> {
        let control = self.control(identity)?;
        self.until_led_by(identity).await.with_context(|| control.log())?;
        Ok(control)
    }

    /// Waits until a replica leads.
    ///
    /// # Errors
    ///
    /// It does not in time.
    pub async fn until_led_by(&self, identity: &str) -> Result<()> {
        let holder = ["get", "lease", "pillion-control", "-n", NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"];
        eventually("a leader", LEAD, async || {
            let is = self.api.kubectl(&holder)?;
            ensure!(is == identity, "{is:?} leads");
            Ok(())
        })
        .await
    }

    /// A pod of the agent on a node, with a token.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn agent(&self, node: &str) -> Result<AgentPod> {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": AGENT, "uid": "d", "controller": true}]);
        self.pod_of_the_agents_account(node, owner)
    }

    /// A pod that runs as the agent's account and is of nobody, or of these owners.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn pod_of_the_agents_account(&self, node: &str, owners: Value) -> Result<AgentPod> {
        let name = format!("{AGENT}-{node}-{}", place::free_port()?);
        let made = self.api.create(
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": owners},
                "spec": {"nodeName": node, "serviceAccountName": AGENT, "containers": [{"name": "c", "image": "r.example/c:1"}]},
            })
            .to_string(),
        )?;
        let uid = text(&made, "/metadata/uid")?;
        let token = self.api.token_for(NAMESPACE, AGENT, AUDIENCE, Some((&name, &uid)), Duration::from_secs(600))?;
        Ok(AgentPod { token: self.token_file(&name, &token)?, name, uid })
    }

    /// A file with a token, which hosts may read.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn token_file(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.token"));
        fs::write(&path, token)?;
        Ok(path)
    }

    /// How a node with this token reaches control.
    ///
    /// # Errors
    ///
    /// Control has no authority yet.
    pub fn access(&self, control: &Control, token: &Path) -> Result<Access> {
        let authority = self.folder.path().join("ca.crt");
        let map = ["get", "configmap", "pillion-ca", "-n", NAMESPACE, "-o", r"jsonpath={.data.ca\.crt}"];
        fs::write(&authority, self.api.kubectl(&map)?)?;
        Ok(Access { url: control.url(), authority, token: token.into() })
    }

    /// Makes a pod with the annotation and the readiness gate on a node; gives its UID. No kubelet runs it.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn pod(&self, namespace: &str, name: &str, node: &str, sidecars: &str) -> Result<String> {
        let metadata = json!({"name": name, "namespace": namespace, "annotations": {"pillion.dev/sidecars": sidecars}});
        let container = json!({"name": "c", "image": "r.example/c:1"});
        self.pod_of(node, &metadata, &container)
    }

    /// Makes a pod of one container with the readiness gate on a node; gives its UID.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn pod_of(&self, node: &str, metadata: &Value, container: &Value) -> Result<String> {
        let spec = json!({
            "nodeName": node, "containers": [container], "readinessGates": [{"conditionType": "pillion.dev/sidecars"}],
        });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        text(&self.api.create(&pod.to_string())?, "/metadata/uid")
    }

    /// Deletes a pod by force: the API has it no more, whether it has ended or not.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let how = ["--grace-period=0", "--force", "--wait=true"];
        self.api.kubectl(&[&["delete", "pod", name, "-n", namespace][..], &how].concat()).map(drop)
    }

    /// Publishes a component for the cluster, or changes it; `spec` has more than its image.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn cluster_component(&self, name: &str, spec: &Value) -> Result<()> {
        let component = json!({
            "apiVersion": "pillion.dev/v1alpha1", "kind": "ClusterComponent", "metadata": {"name": name}, "spec": spec,
        });
        self.api.apply(&component.to_string())
    }

    /// The condition `Ready` of a component for the cluster: its status, its reason and its message.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn ready(&self, name: &str) -> Result<(String, String, String)> {
        let component = self.api.kubectl(&["get", "clustercomponent", name, "-o", "json"])?;
        let component: Value = serde_json::from_str(&component)?;
        let conditions = component.pointer("/status/conditions").and_then(Value::as_array).context("no conditions")?;
        let ready = conditions.iter().find(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"));
        let ready = ready.context("no condition Ready")?;
        Ok((text(ready, "/status")?, text(ready, "/reason")?, text(ready, "/message")?))
    }
}

/// The accounts of the chart, and what they may do.
fn rights() -> Result<String> {
    const KINDS: [&str; 5] = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let manifests = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/pillion.yaml"))?;
    let is_one = |document: &&str| KINDS.iter().any(|kind| document.contains(&format!("\nkind: {kind}\n")));
    Ok(manifests.split("\n---\n").filter(is_one).collect::<Vec<_>>().join("\n---\n"))
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let text = value.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("no {pointer} in {value}"))?.to_owned())
}

impl Control {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its port for nodes.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where nodes reach it.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The port of its probes.
    pub fn health(&self) -> u16 {
        self.health
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it as a fault would.
    ///
    /// # Errors
    ///
    /// It has ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Asks it to end, as the kubelet does, and waits.
    ///
    /// # Errors
    ///
    /// It has ended before.
    pub fn end(&mut self) -> Result<()> {
        process::signal(self.process.id(), Signal::TERM)?;
        self.process.wait()?;
        Ok(())
    }

    /// Holds it, as a machine does that stands still, or lets it go on.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn hold(&self, held: bool) -> Result<()> {
        process::signal(self.process.id(), if held { Signal::STOP } else { Signal::CONT })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("what control logged:\n{}", self.log());
        }
    }
}
