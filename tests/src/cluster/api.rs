//! Kubernetes' API server, with its etcd: alone, or as a part of a cluster.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    access,
    command::{command, run},
    daemon::Daemons,
    folder::Folder,
    kubectl::Kubectl,
    network::{NODE_ADDRESS, SERVICE_ADDRESSES},
};
use crate::place;

/// The version that `tests/cluster/build` builds.
const KUBERNETES: &str = "kubernetes-1.34.4";

/// Who issues service accounts' tokens. It is also the audience of those that the API server itself takes.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The name under which it is started and its log written.
const NAME: &str = "kube-apiserver";

/// A running API server. One that is alone stores what it is told and nobody runs it: pods need no node and stay as they are.
///
/// It has service accounts and their tokens, token reviews and RBAC. There are no controllers: nobody makes the service account
/// `default` of a namespace, and pods are not given one that they do not name (the admission plugin `ServiceAccount` is off).
///
/// Many may run at the same time, each with a folder and ports of its own. All of it ends when this is dropped; if the test
/// panics, the ends of its logs are printed. What a test that was killed has left is ended by the next one that starts.
pub struct ApiServer {
    daemons: Daemons,
    setup: Setup,
    etcd: String,
    kubectl: Kubectl,
    /// Only of one that is alone. Removed after its programs have ended.
    own: Option<Folder>,
}

/// How an API server is told to be.
pub(super) struct Setup {
    programs: PathBuf,
    folder: PathBuf,
    address: &'static str,
    port: u16,
    kind: Kind,
}

/// What an API server is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Alone,
    /// A node that runs the pods that name it.
    Node,
    /// A cluster with all that clusters have.
    Whole,
}

impl ApiServer {
    /// Starts one that is alone.
    ///
    /// # Errors
    ///
    /// A program that is missing, or one that ends early: with the end of its log.
    pub async fn start() -> Result<Self> {
        let own = Folder::make()?;
        let mut api = Self::launch(own.path(), Kind::Alone)?;
        api.own = Some(own);
        let ready = api.ready().await;
        ready.with_context(|| format!("the API server does not start:\n{}", api.log()))?;
        Ok(api)
    }

    /// Starts one in a folder, and does not wait for it.
    pub(super) fn launch(folder: &Path, kind: Kind) -> Result<Self> {
        let programs = programs(&[NAME, "kubectl"])?;
        // Pods of a whole cluster call it too.
        let address = if kind == Kind::Whole { NODE_ADDRESS } else { "127.0.0.1" };
        let setup = Setup { folder: folder.into(), address, port: place::free_port()?, kind, programs };
        access::write(folder, &setup.url())?;
        let etcd = format!("http://127.0.0.1:{}", place::free_port()?);
        let kubectl = Kubectl::new(&setup.programs, folder);
        let mut api = Self { daemons: Daemons::new(folder), setup, etcd, kubectl, own: None };
        api.run_etcd()?;
        api.run()?;
        Ok(api)
    }

    /// Waits until it answers.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let mut ask = command("curl");
        ask.args(["--disable", "--silent", "--fail", "--max-time", "5", "--cacert"]);
        ask.arg(self.setup.folder.join(access::AUTHORITY)).arg(format!("{}/readyz", self.url()));
        self.daemons.until("the API server", || Ok(run(&mut ask).is_ok())).await
    }

    /// An error if one of its programs has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.daemons.check()
    }

    /// Ends all of it.
    pub(super) fn end(&mut self) {
        self.daemons.end_all();
    }

    fn run_etcd(&mut self) -> Result<()> {
        let mut command = command("etcd");
        command.arg("--data-dir").arg(self.setup.folder.join("etcd"));
        command.args(["--listen-client-urls", &self.etcd, "--advertise-client-urls", &self.etcd]);
        // It votes for itself only, so it need not wait for others.
        command.args(["--listen-peer-urls", "http://127.0.0.1:0"]);
        command.args(["--heartbeat-interval", "10", "--election-timeout", "100"]);
        self.daemons.run("etcd", &mut command)
    }

    fn run(&mut self) -> Result<()> {
        let Setup { programs, folder, address, port, kind } = &self.setup;
        let at = |name: &str| folder.join(name);
        let mut command = command(programs.join(NAME));
        command.args(["--etcd-servers", &self.etcd, "--bind-address", address, "--secure-port", &port.to_string()]);
        command.args(["--advertise-address", NODE_ADDRESS, "--service-cluster-ip-range", SERVICE_ADDRESSES]);
        command.arg("--cert-dir").arg(at("certificates")).arg("--tls-cert-file").arg(at(access::CERTIFICATE));
        command.arg("--tls-private-key-file").arg(at(access::KEY)).arg("--token-auth-file").arg(at(access::TOKENS));
        command.arg("--authentication-config").arg(at(access::AUTHENTICATION)).args(["--authorization-mode", "RBAC"]);
        command.args(["--service-account-issuer", ISSUER, "--service-account-signing-key-file"]);
        command.arg(at(access::SIGNING_KEY)).arg("--service-account-key-file").arg(at(access::SIGNING_PUBLIC_KEY));
        command.args(["--kubelet-preferred-address-types", "InternalIP", "--allow-privileged"]);
        if *kind != Kind::Whole {
            // Nobody makes the account `default`, without which it would let no pod be.
            command.args(["--disable-admission-plugins", "ServiceAccount"]);
        }
        if *kind == Kind::Alone {
            // Nobody reaches it by its service.
            command.args(["--endpoint-reconciler-type", "none"]);
        }
        self.daemons.run(NAME, &mut command)
    }

    /// Where it is: `https://127.0.0.1:PORT`, the same after [`ApiServer::restart`].
    pub fn url(&self) -> String {
        self.setup.url()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.setup.port
    }

    /// The certificate of the authority to be trusted, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.setup.folder.join(access::AUTHORITY)
    }

    /// The administrator's kubeconfig, which only this user may read.
    pub fn kubeconfig(&self) -> PathBuf {
        self.setup.folder.join(access::KUBECONFIG)
    }

    /// Writes a kubeconfig for whom a token names, which every user of the machine may read.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn kubeconfig_with_token(&self, token: &str) -> Result<PathBuf> {
        self.kubeconfig_for(&self.url(), token)
    }

    /// The same, where the API server is reached at another URL.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn kubeconfig_for(&self, url: &str, token: &str) -> Result<PathBuf> {
        access::kubeconfig_with_token(&self.setup.folder, url, token)
    }

    /// Runs `kubectl` as the administrator and gives what it prints. With `--token TOKEN` or `--as USER` it is somebody else.
    ///
    /// # Errors
    ///
    /// What it says when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.run(arguments)
    }

    /// Creates or changes what a YAML text holds.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl.feed(&["apply", "--filename", "-"], yaml).map(drop)
    }

    /// Creates what a YAML text holds and gives what the API server made of it, for example the answer in a `TokenReview`.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn create(&self, yaml: &str) -> Result<Value> {
        let made = self.kubectl.feed(&["create", "--output", "json", "--filename", "-"], yaml)?;
        serde_json::from_str(&made).with_context(|| made)
    }

    /// Asks for a token of a service account, bound to a pod if there is one: its name and its UID. The pod must be of that
    /// account. No token lives less than ten minutes.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn token_for(
        &self,
        namespace: &str,
        service_account: &str,
        audience: &str,
        bound_pod: Option<(&str, &str)>,
        lifetime: Duration,
    ) -> Result<String> {
        let lifetime = format!("{}s", lifetime.as_secs());
        let mut arguments = vec!["create", "token", service_account, "--namespace", namespace];
        arguments.extend(["--audience", audience, "--duration", &lifetime]);
        if let Some((name, uid)) = bound_pod {
            arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", name, "--bound-object-uid", uid]);
        }
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// The same token, as if it ended at another time: no token of [`ApiServer::token_for`] does so soon.
    ///
    /// # Errors
    ///
    /// It is no token.
    pub fn token_until(&self, token: &str, end: SystemTime) -> Result<String> {
        access::token_until(&self.setup.folder, token, end)
    }

    /// Ends the API server; nobody listens at its port then. What it stored stays.
    pub fn stop(&mut self) {
        self.daemons.end(NAME);
    }

    /// Starts it again at the same port, whether or not it runs.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop();
        self.run()?;
        let ready = self.ready().await;
        ready.with_context(|| format!("the API server does not start again:\n{}", self.log()))
    }

    /// The events of an object, one a line: the reason and the message.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn events(&self, namespace: &str, name: &str) -> Result<String> {
        let selector = format!("--field-selector=involvedObject.name={name}");
        let format = r#"jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}"#;
        self.kubectl(&["get", "events", "--namespace", namespace, &selector, "--output", format])
    }

    /// The ends of its logs.
    pub fn log(&self) -> String {
        self.daemons.log()
    }
}

impl Setup {
    fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // A cluster prints the logs of all its programs.
        if self.own.is_some() && std::thread::panicking() {
            eprintln!("the ends of the API server's logs:\n{}", self.log());
        }
        self.end();
    }
}

/// The folder of Kubernetes' programs, where these are among them.
pub(super) fn programs(names: &[&str]) -> Result<PathBuf> {
    let programs = place::cache()?.join("tools").join(KUBERNETES);
    let built = names.iter().all(|name| programs.join(name).is_file());
    ensure!(built, "{} is not complete: `make test` builds it, tests/cluster/build too", programs.display());
    Ok(programs)
}
