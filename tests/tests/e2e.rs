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
    cluster::BUSYBOX,
    eventually,
    installed::{Installed, NAMESPACE},
    place, process,
    registry::Artifact,
};
use rustix::process::Signal;
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
    for (guest, name) in [("hello-wasip2", "hello:1"), ("hello-wasip2", "hello:2"), ("faults-p2", "faults:1")] {
        // Each tag is another artifact.
        let number = *name.as_bytes().last().context("no tag")?;
        Artifact::wasm(place::numbered(guest, number.into())?).push(&world.registry, name).await?;
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
            // Control has asked the registry, by the chart's settings for it.
            let resolved = ["get", "clustercomponents", "-o", "jsonpath={.items[*].status.resolvedImage}"];
            let resolved = world.cluster.kubectl(&resolved)?;
            ensure!(resolved.matches("@sha256:").count() == 2, "{resolved}");
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
    step("a value comes from a ConfigMap and follows it", configured(world)).await?;
    step(
        "a component's image changes, agent and control are replaced and rolled back, and no request fails",
        replaced(world),
    )
    .await?;
    step("an annotation that changes is followed", annotated(world)).await?;
    step("a pod that gets the annotation when it runs has its sidecars late, and its owner is told", late(world))
        .await?;
    step("a first sidecar, its next version and its settings come to a pod that goes on running", running(world))
        .await?;
    step("a Job whose pod has sidecars completes", job(world)).await?;
    step("a sidecar answers until the last container has ended", last(world)).await?;
    step("a pod that is deleted leaves nothing behind, and the next one has its sidecars", deleted(world)).await?;
    step("a sidecar that a pod may not have is refused, and its owner told", refused(world)).await?;
    step("an agent whose processes are all killed is there again", killed(world)).await?;
    step("a primary CNI that rewrites its configuration does not take the plugin out", rewritten(world)).await?;
    step("pillion check finds what is wrong, and nothing else", async {
        let error = world.pillion(&["check"]).err().context("a sidecar that the pod may not have is not found")?;
        ensure!(format!("{error:#}").contains("it may not have closed"), "{error:#}");
        annotate(world, "hello=8081")?;
        let said = world.pillion(&["check"])?;
        ensure!(said.contains("the agent: ready on 1 of 1 nodes") && !said.contains("unknown"), "{said}");
        Ok(())
    })
    .await?;
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
    publish(world, "hello", "hello:2", &json!([]))?;
    let done = |what: &str| world.cluster.kubectl(&["wait", what, "clustercomponent/hello", "--timeout=60s"]);
    done("--for=jsonpath={.status.observedGeneration}=2")?;
    done("--for=condition=Ready")?;
    for what in ["daemonset/pillion-agent", "deployment/pillion-control"] {
        world.cluster.kubectl(&["rollout", "restart", what, "-n", NAMESPACE])?;
        world.rolled_out(what)?;
    }
    world.cluster.kubectl(&["rollout", "undo", "daemonset/pillion-agent", "-n", NAMESPACE])?;
    world.rolled_out("daemonset/pillion-agent")
}

async fn configured(world: &Installed) -> Result<()> {
    let set = |name: &str| {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "names", "namespace": "default"}, "data": {"name": name},
        });
        world.cluster.apply(&map.to_string())
    };
    set("third")?;
    let from = json!({"configMapKeyRef": {"name": "names", "key": "name"}});
    // It comes before the cluster's of the same name.
    let component = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": "faults", "namespace": "default"},
        "spec": {"image": format!("{}/faults:1", world.host), "env": [{"name": "NAME", "valueFrom": from}]},
    });
    world.cluster.apply(&component.to_string())?;
    answers(world, "http://localhost:8082/env?name=NAME", "third").await?;
    set("fourth")?;
    answers(world, "http://localhost:8082/env?name=NAME", "fourth").await
}

fn annotate(world: &Installed, sidecars: &str) -> Result<()> {
    let annotation = format!("pillion.dev/sidecars={sidecars}");
    world.cluster.kubectl(&["annotate", "pod", "--selector", "app=app", "--overwrite", &annotation]).map(drop)
}

async fn annotated(world: &Installed) -> Result<()> {
    annotate(world, "hello=8083")?;
    answers(world, "http://localhost:8083/", "hello\n").await?;
    eventually("a closed port", SOON, async || {
        let error = world.ask("http://localhost:8082/").err().context("it answers")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        Ok(())
    })
    .await
}

/// A pod without the annotation, once it is ready.
fn idle(world: &Installed, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", "exec sleep 100000"],
        }]},
    });
    world.cluster.apply(&pod.to_string())?;
    world.cluster.kubectl(&["wait", "pod", name, "--for=condition=Ready", "--timeout=60s"]).map(drop)
}

async fn late(world: &Installed) -> Result<()> {
    idle(world, "late")?;
    world.cluster.kubectl(&["annotate", "pod", "late", "pillion.dev/sidecars=hello=8081"])?;
    eventually("an answer", SOON, async || {
        world.cluster.kubectl(&["exec", "late", "--", "wget", "-q", "-O", "-", "http://localhost:8081/"])
    })
    .await?;
    has_event(world, "SidecarsLate", "pillion check").await?;
    world.cluster.kubectl(&["delete", "pod", "late", "--timeout=60s"]).map(drop)
}

/// Neither the pod nor a container of it is another one meanwhile.
async fn running(world: &Installed) -> Result<()> {
    idle(world, "running")?;
    let who = || {
        let path =
            "{.metadata.uid} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}";
        world.cluster.part("running", path)
    };
    let before = who()?;
    let answers = async |path: &str, expected: &str| {
        eventually("an answer", SOON, async || {
            let url = format!("http://localhost:8081{path}");
            let said = world.cluster.exec("running", "app", &["wget", "-q", "-O", "-", &url])?;
            ensure!(said == expected, "{said:?}");
            Ok(())
        })
        .await
    };
    publish(world, "moving", "hello:1", &json!([]))?;
    world.cluster.kubectl(&["annotate", "pod", "running", "pillion.dev/sidecars=moving=8081"])?;
    answers("/", "hello\n").await?;
    for name in ["first", "second"] {
        publish(world, "moving", "faults:1", &json!([{"name": "NAME", "value": name}]))?;
        answers("/env?name=NAME", name).await?;
    }
    let now = who()?;
    ensure!(before == now && now.ends_with(" 0"), "{before} became {now}");
    world.cluster.kubectl(&["delete", "pod/running", "clustercomponent/moving", "--timeout=60s"]).map(drop)
}

async fn job(world: &Installed) -> Result<()> {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"annotations": {"pillion.dev/sidecars": "hello=8081"}},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["wget", "-q", "-O", "-", "http://localhost:8081/"],
            }]},
        }},
    });
    world.cluster.apply(&job.to_string())?;
    world.cluster.kubectl(&["wait", "job/once", "--for=condition=Complete", "--timeout=90s"])?;
    let said = world.cluster.kubectl(&["logs", "job/once"])?;
    ensure!(said == "hello\n", "{said:?}");
    world.cluster.kubectl(&["delete", "job", "once", "--timeout=60s"]).map(drop)
}

/// Asks when it is told to end, seconds after the other container has ended, and keeps what its hook was answered.
const LAST: &str = r#"
ask() { wget -q -O - http://localhost:8081/ 2>&1; }
trap 'sleep 3; { cat /tmp/hook; ask; } > /dev/termination-log; exit 0' TERM
ask > /dev/null; touch /tmp/ready; sleep 100000 & wait"#;

async fn last(world: &Installed) -> Result<()> {
    let container = |name: &str, script: &str| json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script]});
    let mut main = container("main", LAST);
    let hook = "sleep 2; wget -q -O /tmp/hook http://localhost:8081/";
    let hook = json!({"preStop": {"exec": {"command": ["sh", "-c", hook]}}});
    let probe = json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1});
    let fields = main.as_object_mut().context("no object")?;
    fields.extend([("lifecycle".to_owned(), hook), ("readinessProbe".to_owned(), probe)]);
    // What is kept of it is to be read after its end.
    let metadata = json!({
        "name": "last", "finalizers": ["example.org/kept"], "annotations": {"pillion.dev/sidecars": "hello=8081"},
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "terminationGracePeriodSeconds": 60, "restartPolicy": "Never",
            "containers": [container("quick", "trap 'exit 0' TERM; sleep 100000 & wait"), main],
        },
    });
    world.cluster.apply(&pod.to_string())?;
    world.cluster.kubectl(&["wait", "pod", "last", "--for=condition=Ready", "--timeout=60s"])?;
    world.cluster.kubectl(&["delete", "pod", "last", "--wait=false"])?;
    let ended = |container: &str, field: &str| {
        let path = format!("{{.status.containerStatuses[?(@.name==\"{container}\")].state.terminated.{field}}}");
        world.cluster.part("last", &path)
    };
    eventually("the end of the last container", SOON, async || {
        let said = ended("main", "message")?;
        ensure!(said == "hello\nhello\n", "{said:?}: {}", world.cluster.part("last", "{.status}")?);
        Ok(())
    })
    .await?;
    let (quick, main) = (ended("quick", "finishedAt")?, ended("main", "finishedAt")?);
    ensure!(!quick.is_empty() && quick < main, "the other one ended at {quick}, the last one at {main}");
    let free = r#"{"metadata":{"finalizers":null}}"#;
    world.cluster.kubectl(&["patch", "pod", "last", "--type=merge", "-p", free])?;
    world.cluster.kubectl(&["wait", "pod", "last", "--for=delete", "--timeout=60s"]).map(drop)
}

async fn has_event(world: &Installed, reason: &str, text: &str) -> Result<()> {
    eventually("an Event", SOON, async || {
        let events = world.cluster.kubectl(&["get", "events", "--output", "wide"])?;
        ensure!(events.lines().any(|line| line.contains(reason) && line.contains(text)), "{events}");
        Ok(())
    })
    .await
}

async fn deleted(world: &Installed) -> Result<()> {
    let app = ["get", "pods", "--selector", "app=app", "--field-selector", "status.phase=Running", "-o"];
    let app = world
        .cluster
        .kubectl(&[&app[..], &["jsonpath={.items[0].metadata.name} {.items[0].metadata.uid}"]].concat())?;
    let (name, uid) = app.split_once(' ').context("there is no pod")?;
    let kept = || std::fs::read_to_string(world.state_dir().join("keeper/pods.json"));
    ensure!(kept()?.contains(uid), "the keeper does not know {uid}");
    world.cluster.kubectl(&["delete", "pod", name, "--timeout=60s"])?;
    eventually("an end of what is kept", SOON, async || {
        ensure!(!kept()?.contains(uid), "the keeper knows {uid}");
        Ok(())
    })
    .await?;
    // It is of the Deployment's template, whose annotation nobody has changed.
    world.cluster.kubectl(&["wait", "pod", "--selector", "app=app", "--for=condition=Ready", "--timeout=60s"])?;
    answers(world, "http://localhost:8081/", "hello\n").await
}

async fn refused(world: &Installed) -> Result<()> {
    let closed = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "ClusterComponent", "metadata": {"name": "closed"},
        "spec": {"image": format!("{}/hello:1", world.host), "access": {"namespaces": ["bank"]}},
    });
    world.cluster.apply(&closed.to_string())?;
    annotate(world, "hello=8081, closed=8084")?;
    eventually("a refusal", SOON, async || {
        let error = world.ask("http://localhost:8084/").err().context("it answers")?;
        ensure!(format!("{error:#}").contains("403"), "{error:#}");
        Ok(())
    })
    .await?;
    has_event(world, "SidecarNotAllowed", "\"closed\"").await?;
    answers(world, "http://localhost:8081/", "hello\n").await
}

/// As when the node's power fails, but for the pods.
async fn killed(world: &Installed) -> Result<()> {
    let uid = ["get", "pods", "-n", NAMESPACE, "--selector", "app.kubernetes.io/component=agent", "-o"];
    let uid = world.cluster.kubectl(&[&uid[..], &["jsonpath={.items[0].metadata.uid}"]].concat())?;
    ensure!(!uid.is_empty(), "there is no agent");
    let mut killed = 0;
    for pid in process::all() {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroup.contains(&uid) && process::arguments(pid).contains("pillion") {
            _ = process::signal(pid, Signal::KILL);
            killed += 1;
        }
    }
    // One of each container at least: children end with their parents.
    ensure!(killed >= 3, "{killed} processes were killed");
    answers(world, "http://localhost:8081/", "hello\n").await?;
    world.rolled_out("daemonset/pillion-agent")
}

async fn rewritten(world: &Installed) -> Result<()> {
    let file = world.cluster.cni_conf().join("10-pods.conflist");
    let has_it = || Ok::<_, anyhow::Error>(std::fs::read_to_string(&file)?.contains("pillion-cni"));
    let mut list: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut).context("no plugins")?;
    plugins.retain(|plugin| plugin.get("type").is_none_or(|kind| kind != "pillion-cni"));
    let new = file.with_extension("new");
    std::fs::write(&new, list.to_string())?;
    std::fs::rename(&new, &file)?;
    eventually("the entry", SOON, async || {
        ensure!(has_it()?, "it is not there");
        Ok(())
    })
    .await
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
    for folder in ["/run/pillion/keeper", "/run/pillion/secrets"] {
        ensure!(!Path::new(folder).exists(), "{folder} is there");
    }
    let said = world.pillion(&["uninstall", "--crds"])?;
    ensure!(said.contains("deleted the definition clustercomponents.pillion.dev, and 3 of them"), "{said}");
    let left = world.cluster.kubectl(&["get", "crds", "-o", "name"])?;
    ensure!(!left.contains("pillion.dev"), "{left}");
    Ok(())
}
