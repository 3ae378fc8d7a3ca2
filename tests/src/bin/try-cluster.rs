//! `make cluster`: a whole cluster on this machine with Pillion on it, an ordinary pod with two sidecars, and what they answer inside.
//! It runs until Ctrl-C, or, with `--once`, ends at once.

#![forbid(unsafe_code)]

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use pillion_tests::{eventually, installed::Installed, registry::Artifact};

/// The sidecars of the starter catalog that are shown, with what is asked of each.
const SIDECARS: [(&str, &str); 2] = [
    ("whoami=8081", "wget -q -O - 'http://localhost:8081/hello?name=you'"),
    (
        "flags=8082",
        r#"wget -q -O - --post-data '{"context": {"targetingKey": "alice", "plan": "gold"}}' http://localhost:8082/ofrep/v1/evaluate/flags/page-size"#,
    ),
];

#[tokio::main]
async fn main() -> Result<()> {
    println!("a cluster starts: etcd, API server, controllers, scheduler, kube-proxy, CoreDNS, containerd, kubelet");
    let world = Installed::prepare().await?;
    println!("helm install pillion deploy/chart");
    world.install()?;
    for (sidecar, _) in SIDECARS {
        publish(&world, sidecar.split('=').next().unwrap_or_default()).await?;
    }
    let annotation = SIDECARS.map(|(sidecar, _)| sidecar).join(", ");
    println!("a Deployment of busybox, with the annotation pillion.dev/sidecars: {annotation:?}");
    world.deploy(&annotation)?;
    for (_, ask) in SIDECARS {
        let answer = eventually("an answer", Duration::from_secs(90), async || world.inside(ask)).await;
        println!("\n$ kubectl exec deployment/app -- {ask}\n{}", answer.with_context(|| world.state())?.trim_end());
    }
    world.cluster.kubectl(&["wait", "--for=condition=Ready", "clustercomponents", "--all", "--timeout=60s"])?;
    println!("\n{}", world.cluster.kubectl(&["get", "clustercomponents"])?);
    if std::env::args().nth(1).as_deref() != Some("--once") {
        println!("export KUBECONFIG={}", world.cluster.api().kubeconfig().display());
        println!("Ctrl-C ends it all.");
        tokio::signal::ctrl_c().await?;
    }
    println!("helm uninstall pillion");
    world.uninstall()
}

/// Pushes a component of the starter catalog, and publishes it with the settings that it has there.
async fn publish(world: &Installed, name: &str) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/catalog").join(name);
    let wasm = std::fs::read(folder.join(format!("{name}.wasm"))).context("`make catalog` builds it")?;
    Artifact::wasm(wasm).push(&world.registry, &format!("{name}:1")).await?;
    let yaml = std::fs::read_to_string(folder.join("component.yaml"))?;
    let yaml = yaml.replace("kind: Component", "kind: ClusterComponent");
    world.cluster.apply(&yaml.replace(&format!("image: ./{name}.wasm"), &format!("image: {}/{name}:1", world.host)))
}
