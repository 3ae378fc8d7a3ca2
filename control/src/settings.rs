//! How control works: every setting, once.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use crate::resolve::Resolver;

/// Settings of `pillion-control serve`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where nodes reach control, by HTTPS
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8443", env = "PILLION_LISTEN")]
    pub listen: SocketAddr,
    /// Where the kubelet asks how control is: /livez and /readyz, by HTTP
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8080", env = "PILLION_HEALTH_LISTEN")]
    pub health_listen: SocketAddr,
    /// Its namespace, where its Lease, its authority and the agent are
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "pillion-system")]
    pub namespace: String,
    /// Who this replica is: its pod's name
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: String,
    /// The Service by which nodes reach it: the name in its certificate
    #[arg(long, value_name = "NAME", default_value = "pillion-control")]
    pub service: String,
    /// Further names and addresses in its certificate
    #[arg(long, value_name = "NAME")]
    pub certificate_name: Vec<String>,
    /// The service account of the agent, in the same namespace
    #[arg(long, value_name = "NAME", default_value = "pillion-agent")]
    pub agent_service_account: String,
    /// The DaemonSet of the agent, in the same namespace
    #[arg(long, value_name = "NAME", default_value = "pillion-agent")]
    pub agent_daemonset: String,
    /// How long a node may be without an agent before the pods there are told
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub agent_grace: Duration,
    /// Namespaces whose static pods get sidecars: whoever may create pods there may say that one is any static pod of its node
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "kube-system")]
    pub static_pod_namespaces: Vec<String>,
    /// The audience that a node's token must have
    #[arg(long, value_name = "TEXT", default_value = pillion_protocol::stream::AUDIENCE)]
    pub audience: String,
    /// How registries are asked
    #[command(flatten)]
    pub resolver: Resolver,
}

#[cfg(test)]
impl Settings {
    /// The defaults, with these arguments.
    pub(crate) fn of_test(arguments: &[&str]) -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            settings: Settings,
        }
        let line = ["control", "--identity", "control-0"].iter().chain(arguments);
        <Line as clap::Parser>::parse_from(line).settings
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}
