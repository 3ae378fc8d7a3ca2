//! What a whole cluster has besides API server and node: controllers, a scheduler, services and names.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use super::{
    access,
    api::{ApiServer, programs},
    command::command,
    daemon::Daemons,
    network::{self, API_SERVICE_ADDRESS, NODE_ADDRESS},
    settings,
};
use crate::place;

/// The version that `tests/cluster/build` builds.
const COREDNS: &str = "coredns-1.12.4";

/// The programs that have to be there.
pub(super) struct Whole {
    programs: PathBuf,
    coredns: PathBuf,
}

impl Whole {
    /// Finds them.
    pub(super) fn find() -> Result<Self> {
        let programs = programs(&["kube-controller-manager", "kube-scheduler", "kube-proxy"])?;
        let coredns = place::cache()?.join("tools").join(COREDNS).join("coredns");
        ensure!(
            coredns.is_file(),
            "{} is not there: `make test` builds it, tests/cluster/build too",
            coredns.display()
        );
        Ok(Self { programs, coredns })
    }

    /// Starts them. The API server answers already.
    pub(super) fn run(&self, daemons: &mut Daemons, folder: &Path) -> Result<()> {
        let at = |name: &str| folder.join(name);
        let kubeconfig = at(access::KUBECONFIG);

        let mut manager = command(self.programs.join("kube-controller-manager"));
        manager.arg("--kubeconfig").arg(&kubeconfig).args(["--leader-elect=false", "--secure-port", "0"]);
        manager.arg("--service-account-private-key-file").arg(at(access::SIGNING_KEY));
        manager.arg("--root-ca-file").arg(at(access::AUTHORITY));
        // Pods' addresses are the CNI plugins', and there is no cloud.
        manager.arg("--controllers=*,-node-ipam-controller,-cloud-node-lifecycle-controller");
        daemons.run("kube-controller-manager", &mut manager)?;

        let mut scheduler = command(self.programs.join("kube-scheduler"));
        scheduler.arg("--kubeconfig").arg(&kubeconfig).args(["--leader-elect=false", "--secure-port", "0"]);
        daemons.run("kube-scheduler", &mut scheduler)?;

        settings::proxy(folder)?;
        let mut proxy = command(self.programs.join("kube-proxy"));
        daemons.run("kube-proxy", proxy.arg("--config").arg(at("kube-proxy.yaml")))?;

        settings::names(folder)?;
        let mut names = command(&self.coredns);
        daemons.run("coredns", names.arg("-conf").arg(at("Corefile")))
    }

    /// Whether names and services are served, and pods let in.
    pub(super) fn is_ready(api: &ApiServer) -> bool {
        TcpStream::connect((NODE_ADDRESS, 53)).is_ok()
            && network::has_service(API_SERVICE_ADDRESS)
            && api.kubectl(&["get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).is_ok()
    }
}
