//! The whole thing on a whole cluster: the chart is installed, an ordinary pod gets its sidecars by an annotation, and goes on having them while
//! all that is ours is replaced; after the end nothing is left.
//!
//! It is one test of many steps, since a cluster takes seconds to start.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    eventually,
    installed::{Installed, NAMESPACE},
    place,
    registry::Artifact,
};
use serde_json::{Value, json};

/// Longer than anything takes once.
const SOON: Duration = Duration::from_secs(90);

async fn step(name: &str, step: impl Future<Output = Result<()>>) -> Result<()> {
    let began = Instant::now();
    step.await.with_context(|| name.to_owned())?;
    println!("{name}: {:.1?}", began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_gives_pods_of_a_cluster_their_sidecars() -> Result<()> {
    let began = Instant::now();
    let world = Installed::prepare().await?;
    for (guest, name) in [("hello-wasip2", "hello:1"), ("faults-p2", "faults:1")] {
        Artifact::wasm(std::fs::read(place::guest(guest)?)?).push(&world.registry, name).await?;
    }
    println!("the cluster started in {:.1?}", began.elapsed());
    let done = steps(&world).await;
    let state = if done.is_err() { world.state() } else { String::new() };
    done.with_context(|| state)
}

fn publish(world: &Installed, name: &str, image: &str, env: &Value) -> Result<()> {
    let component = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "ClusterComponent", "metadata": {"name": name},
        "spec": {"image": format!("{}/{image}", world.host), "env": env},
    });
    world.cluster.apply(&component.to_string())
}

async fn answers(world: &Installed, url: &str, expected: &str) -> Result<()> {
    eventually("an answer", SOON, async || {
        let answer = world.ask(url)?;
        ensure!(answer == expected, "expected {expected:?}, got {answer:?}");
        Ok(())
    })
    .await
}

async fn steps(world: &Installed) -> Result<()> {
    step("the chart is installed", async { world.install() }).await?;
    step("an annotation gives an ordinary pod two sidecars", async {
        publish(world, "hello", "hello:1", &json!([]))?;
        publish(world, "faults", "faults:1", &json!([{"name": "NAME", "value": "first"}]))?;
        world.deploy("hello=8081, faults=8082")?;
        answers(world, "http://localhost:8081/", "hello\n").await?;
        answers(world, "http://localhost:8082/env?name=NAME", "first").await
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
        publish(world, "faults", "faults:1", &json!([{"name": "NAME", "value": "second"}]))?;
        answers(world, "http://localhost:8082/env?name=NAME", "second").await
    })
    .await?;
    step("agent and control are replaced, rolled back, and no request fails", replaced(world)).await?;
    step("after helm uninstall nothing is left", uninstalled(world)).await
}

/// Asks again and again inside the app, until there is a file; prints how often, how often in vain, and why the last time.
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

async fn replaced(world: &Installed) -> Result<()> {
    let said = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| world.inside(LOAD));
        let replaced = replace(world);
        world.inside("echo > /tmp/enough")?;
        let said = load.join().map_err(|_| anyhow::anyhow!("the load has panicked"))??;
        replaced?;
        Ok(said)
    })?;
    let mut words = said.split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse::<u32>().ok()).with_context(|| said.clone());
    let (asked, failed) = (number()?, number()?);
    println!("{asked} requests meanwhile, {failed} of them in vain");
    ensure!(failed == 0 && asked > 50, "{asked} requests, {failed} failed: {said}");
    Ok(())
}

fn replace(world: &Installed) -> Result<()> {
    for what in ["daemonset/pillion-agent", "deployment/pillion-control"] {
        world.cluster.kubectl(&["rollout", "restart", what, "-n", NAMESPACE])?;
        world.rolled_out(what)?;
    }
    world.cluster.kubectl(&["rollout", "undo", "daemonset/pillion-agent", "-n", NAMESPACE])?;
    world.rolled_out("daemonset/pillion-agent")
}

async fn uninstalled(world: &Installed) -> Result<()> {
    world.cluster.kubectl(&["delete", "deployment", "app", "--timeout=60s"])?;
    world.uninstall()?;
    for entry in std::fs::read_dir(world.cluster.cni_conf())? {
        let text = std::fs::read_to_string(entry?.path())?;
        ensure!(!text.contains("pillion-cni"), "{text}");
    }
    ensure!(!world.cluster.cni_bin().join("pillion-cni").exists(), "the plugin's binary is there");
    let state = world.state_dir();
    ensure!(state.read_dir()?.next().is_none(), "{} is not empty", state.display());
    for folder in ["/run/pillion/keeper", "/run/pillion/host"] {
        ensure!(!Path::new(folder).exists(), "{folder} is there");
    }
    Ok(())
}
