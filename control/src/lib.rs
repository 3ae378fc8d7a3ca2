//! The control loop: watches components and pods in the Kubernetes API, and tells each node what its pods need.
//!
//! | module | holds |
//! |---|---|
//! | [`resource`] | the resources `Component` and `ClusterComponent`, as the API server knows them |
//! | [`catalog`] | what is known of components and pods, and what a node needs of it. Decides, and does no IO |
//! | [`control`] | all of that together: what a change sets going |
//! | [`watch`] | the Kubernetes watches that feed the catalog |
//! | [`references`] | the ConfigMaps and Secrets that components refer to |
//! | [`resolve`] | what components' tags lead to |
//! | [`serve`] | the streams of nodes, and who may have one |
//! | [`authority`] | the certificate that nodes know control by |
//! | [`leader`] | which replica serves |
//! | [`check`] | what a cluster lacks, for people |
//! | [`uninstall`] | takes the agent off every node |
//! | [`strays`], [`claims`], [`absent`] | what keeps sidecars from a pod that no component is to blame for: what nothing reads, ports, nodes without agent |
//! | [`served`] | what a pod has of what it names, and what is wrong with it. Decides, and does no IO |
//! | [`status`], [`events`], [`readiness`] | what people see: conditions of components, Events of pods ([`turns`]: in which order), and whether these are ready |
//!
//! It runs no guest, has no engine, and nothing that it serves depends on it: nodes go on with what they know while it is away.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod absent;
pub mod authority;
pub mod catalog;
pub mod check;
pub mod claims;
pub mod control;
pub mod events;
pub mod leader;
pub mod readiness;
pub mod references;
pub mod resolve;
pub mod resource;
pub mod serve;
pub mod served;
pub mod settings;
pub mod status;
pub mod strays;
pub mod turns;
pub mod uninstall;
pub mod watch;

use std::time::Duration;

use anyhow::Context;

/// A client of the API server that the environment names: a kubeconfig, or the cluster that this runs in. A watch says something at least once a
/// minute, so that silence means that nobody is there any more. A proxy of the environment is for registries.
///
/// # Errors
///
/// There is no such thing.
pub async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer().await.context("the API server cannot be found")?;
    let named = ["HTTPS_PROXY", "https_proxy"]
        .map(|name| std::env::var(name).ok().and_then(|proxy| proxy.parse::<http::Uri>().ok()));
    config.proxy_url = config.proxy_url.filter(|proxy| !named.iter().flatten().any(|named| named == proxy));
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(75));
    Ok(kube::Client::try_from(config)?)
}
