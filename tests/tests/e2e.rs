//! The whole thing on a whole cluster: the chart is installed, an ordinary pod gets its sidecars by an annotation, and goes on having them while
//! all that is ours is replaced; after the end nothing is left.
//!
//! It is one test of many steps, since a cluster takes seconds to start.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    cluster::{BUSYBOX, Cluster},
    eventually, place, program,
    registry::{Artifact, Registry},
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

/// Longer than anything takes once.
const SOON: Duration = Duration::from_secs(90);

const IMAGE: &str = "pillion.test/pillion";
const TAG: &str = "1";
const NAMESPACE: &str = "pillion-system";

/// The authorities that the system knows, as images have them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What `helm` and the cluster are told.
struct World {
    cluster: Cluster,
    registry: Registry,
    /// The registry as nodes reach it.
    host: String,
    values: PathBuf,
}

impl World {
    async fn start() -> Result<Self> {
        let (cluster, registry) = (Cluster::whole().await?, Registry::start().await?);
        let host = format!("{}:{}", cluster.node_address(), forward(cluster.node_address(), registry.port()).await?);
        for (guest, name) in [("hello-wasip2", "hello:1"), ("faults-p2", "faults:1")] {
            Artifact::wasm(std::fs::read(place::guest(guest)?)?).push(&registry, name).await?;
        }
        let programs = ["pillion", "pillion-keeper", "pillion-cni", "pillion-control"];
        let places = programs.map(|name| format!("/{name}"));
        let files = programs.iter().zip(&places).map(|(name, place)| Ok((program::named(name)?, place.as_str())));
        let mut files = files.collect::<Result<Vec<_>>>()?;
        files.push((AUTHORITIES.into(), AUTHORITIES));
        cluster.load_image(&format!("{IMAGE}:{TAG}"), &files, &["/pillion"])?;
        let values = cluster.cni_conf().with_file_name("values.yaml");
        let settings = json!({
            "image": {"repository": IMAGE, "tag": TAG, "pullPolicy": "Never"},
            "node": {
                "cniBinDir": cluster.cni_bin(), "cniConfDir": cluster.cni_conf(),
                "stateDir": values.with_file_name("state"),
            },
            "registries": {"settings": {"registries": {&host: {"plainHttp": true}}}},
        });
        std::fs::write(&values, settings.to_string())?;
        Ok(Self { cluster, registry, host, values })
    }

    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new(place::cache()?.join("tools/bin/helm"));
        helm.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        helm.env("HOME", self.values.with_file_name("helm")).env("KUBECONFIG", self.cluster.api().kubeconfig());
        let output = helm.args(arguments).args(["--namespace", NAMESPACE]).output()?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "helm {arguments:?}: {stdout}{stderr}");
        Ok(stdout.into_owned())
    }

    fn publish(&self, name: &str, image: &str, env: &Value) -> Result<()> {
        let component = json!({
            "apiVersion": "pillion.dev/v1alpha1", "kind": "ClusterComponent", "metadata": {"name": name},
            "spec": {"image": format!("{}/{image}", self.host), "env": env},
        });
        self.cluster.apply(&component.to_string())
    }

    /// What a sidecar answers inside the sample app.
    fn ask(&self, url: &str) -> Result<String> {
        self.cluster.kubectl(&["exec", "deployment/app", "--", "wget", "-q", "-O", "-", url])
    }

    fn rolled_out(&self, what: &str) -> Result<()> {
        let done = self.cluster.kubectl(&["rollout", "status", what, "-n", NAMESPACE, "--timeout=90s"]);
        done.map(drop).with_context(|| self.state())
    }

    /// What is to be known where something went wrong.
    fn state(&self) -> String {
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

/// Lets what listens on this machine's loopback be reached at another of its addresses, as long as the test runs.
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

async fn step(name: &str, step: impl Future<Output = Result<()>>) -> Result<()> {
    let began = Instant::now();
    step.await.with_context(|| name.to_owned())?;
    println!("{name}: {:.1?}", began.elapsed());
    Ok(())
}

/// The sample app: an image that knows nothing of us.
fn app(sidecars: &str) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {
            "selector": {"matchLabels": {"app": "app"}},
            "template": {
                "metadata": {"labels": {"app": "app"}, "annotations": {"pillion.dev/sidecars": sidecars}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", "exec sleep 100000"],
                }]},
            },
        },
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_gives_pods_of_a_cluster_their_sidecars() -> Result<()> {
    let began = Instant::now();
    let world = World::start().await?;
    println!("the cluster started in {:.1?}", began.elapsed());
    let done = steps(&world).await;
    let state = if done.is_err() { world.state() } else { String::new() };
    done.with_context(|| state)
}

async fn steps(world: &World) -> Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart");
    let chart = chart.to_string_lossy();
    let values = world.values.to_string_lossy();
    step("the chart is installed", async {
        world.helm(&["install", "pillion", &chart, "--create-namespace", "--values", &values])?;
        world.rolled_out("deployment/pillion-control")?;
        world.rolled_out("daemonset/pillion-agent")
    })
    .await?;
    step("an annotation gives an ordinary pod two sidecars", async {
        world.publish("hello", "hello:1", &json!([]))?;
        world.publish("faults", "faults:1", &json!([{"name": "NAME", "value": "first"}]))?;
        world.cluster.apply(&app("hello=8081, faults=8082"))?;
        eventually("both answer", SOON, async || {
            let (hello, faults) =
                (world.ask("http://localhost:8081/")?, world.ask("http://localhost:8082/env?name=NAME")?);
            ensure!(hello == "hello\n" && faults == "first", "{hello:?} {faults:?}");
            Ok(())
        })
        .await
    })
    .await?;
    step("kubectl shows that it is ready", async {
        eventually("the status", SOON, async || {
            let shown = world.cluster.kubectl(&["get", "clustercomponents"])?;
            ensure!(shown.lines().filter(|line| line.contains("True") && line.contains("1/1")).count() == 2, "{shown}");
            Ok(())
        })
        .await
    })
    .await?;
    step("a new setting is served", async {
        world.publish("faults", "faults:1", &json!([{"name": "NAME", "value": "second"}]))?;
        eventually("the new one", SOON, async || {
            let answer = world.ask("http://localhost:8082/env?name=NAME")?;
            ensure!(answer == "second", "{answer:?}");
            Ok(())
        })
        .await
    })
    .await?;
    step("agent and control are replaced, rolled back, and no request fails", replaced(world)).await?;
    step("after helm uninstall nothing is left", uninstalled(world)).await
}

/// Asks again and again inside the app, until there is a file; prints how often, and how often in vain.
const LOAD: &str = r#"
asked=0; failed=0
while ! cat /tmp/enough 2> /dev/null; do
  asked=$((asked + 1))
  case "$(wget -q -O - http://localhost:8081/ 2> /tmp/why)" in
    hello) ;;
    *) failed=$((failed + 1)); last="$(cat /tmp/why)" ;;
  esac
done
echo "$asked $failed $last""#;

async fn replaced(world: &World) -> Result<()> {
    let exec = |script: &str| world.cluster.kubectl(&["exec", "deployment/app", "--", "sh", "-c", script]);
    let (asked, failed) = std::thread::scope(|scope| -> Result<(u32, u32)> {
        let load = scope.spawn(|| exec(LOAD));
        let replaced = || {
            for what in ["daemonset/pillion-agent", "deployment/pillion-control"] {
                world.cluster.kubectl(&["rollout", "restart", what, "-n", NAMESPACE])?;
                world.rolled_out(what)?;
            }
            world.cluster.kubectl(&["rollout", "undo", "daemonset/pillion-agent", "-n", NAMESPACE])?;
            world.rolled_out("daemonset/pillion-agent")
        };
        let replaced = replaced();
        exec("echo > /tmp/enough")?;
        let said = load.join().map_err(|_| anyhow::anyhow!("the load has panicked"))??;
        replaced?;
        let mut words = said.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok()).with_context(|| said.clone());
        let numbers = (number()?, number()?);
        println!("the last failure: {:?}", words.collect::<Vec<_>>());
        Ok(numbers)
    })?;
    println!("{asked} requests meanwhile, {failed} of them in vain");
    ensure!(failed == 0 && asked > 50, "{asked} requests, {failed} failed");
    Ok(())
}

async fn uninstalled(world: &World) -> Result<()> {
    world.cluster.kubectl(&["delete", "deployment", "app", "--timeout=60s"])?;
    world.helm(&["uninstall", "pillion", "--wait", "--timeout", "4m"])?;
    for entry in std::fs::read_dir(world.cluster.cni_conf())? {
        let text = std::fs::read_to_string(entry?.path())?;
        ensure!(!text.contains("pillion-cni"), "{text}");
    }
    ensure!(!world.cluster.cni_bin().join("pillion-cni").exists(), "the plugin's binary is there");
    let state = world.values.with_file_name("state");
    ensure!(state.read_dir()?.next().is_none(), "{} is not empty", state.display());
    for folder in ["/run/pillion/keeper", "/run/pillion/host"] {
        ensure!(!Path::new(folder).exists(), "{folder} is there");
    }
    _ = world.registry.port();
    Ok(())
}
