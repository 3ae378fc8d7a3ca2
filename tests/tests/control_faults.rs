//! What goes wrong with components, pods and control, before a real API server: it is told to the one whom it concerns, and nothing
//! that is bound stops serving for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    is_soak,
    netns::Netns,
    place,
    registry::Artifact,
    unannounced::Unannounced,
    world::{AGAIN, World},
};
use serde_json::{Value, json};

/// Longer than thousands of components take to have a condition each.
const FLOOD: Duration = Duration::from_secs(600);

/// A pod whose sidecar serves beside the fault.
async fn neighbour(world: &World) -> Result<Netns> {
    world.publish("hello", "hello:1", json!({}))?;
    let netns = world.pod("shop", "neighbour", "hello=8081")?;
    world.answers(&netns, 8081, "/", "hello\n").await?;
    Ok(netns)
}

#[tokio::test]
async fn an_image_that_is_not_there_fails_alone_and_is_served_when_it_comes() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    world.publish("late", "late:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081, late=8082")?;
    world.is_ready("late", "False", "late:1").await?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    Artifact::wasm(std::fs::read(place::guest("hello-wasip2")?)?).push(&world.registry, "late:1").await?;
    world.answers_in(AGAIN, &cart, 8082, "/", "hello\n").await?;
    world.is_ready("late", "True", "").await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await
}

#[tokio::test]
async fn a_new_image_that_cannot_be_served_does_not_take_the_place_of_one_that_is() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    Artifact::wasm(std::fs::read(place::guest("imports-unknown")?)?).push(&world.registry, "unknown:1").await?;
    // What control has read and no node can serve, none hears of.
    world.publish("hello", "unknown:1", json!({}))?;
    world.is_ready("hello", "False", "see the condition Resolved").await?;
    world.has_event("neighbour", "SidecarNotAccepted", "acme:missing/thing@1.2.3").await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await?;
    world.publish("hello", "nowhere:1", json!({}))?;
    world.is_ready("hello", "False", "nowhere:1").await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await?;
    world.publish("hello", "faults:1", json!({"env": [{"name": "NAME", "value": "mended"}]}))?;
    world.answers(&neighbour, 8081, "/env?name=NAME", "mended").await
}

#[tokio::test]
async fn a_pod_that_finishes_is_ended_before_it_is_deleted() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    let done = world.pod("shop", "done", "hello=8082")?;
    world.answers(&done, 8082, "/", "hello\n").await?;
    let patch = json!({"status": {"phase": "Succeeded"}}).to_string();
    let how = ["patch", "pod", "done", "-n", "shop", "--subresource", "status", "--type", "merge", "--patch", &patch];
    world.plane.api.kubectl(&how)?;
    world.closes(&done, 8082).await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await
}

/// The API's copy of a static pod, whose runtime knows it by `hash`, as it says.
fn mirror(world: &World, namespace: &str, hash: &str, more: Value, sidecars: &str) -> Result<()> {
    let owner: Value = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n", "controller": true});
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "static-a", "namespace": namespace, "ownerReferences": [owner],
            "annotations": {"kubernetes.io/config.mirror": hash, "pillion.dev/sidecars": sidecars},
        },
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "r.example/c:1"}]},
    });
    if let (Some(metadata), Value::Object(more)) = (pod.get_mut("metadata").and_then(Value::as_object_mut), more) {
        metadata.extend(more);
    }
    world.plane.api.create(&pod.to_string()).map(drop)
}

/// As kubelets make them.
const HASH: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn a_static_pod_outlives_its_copies_in_the_api() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    mirror(&world, "kube-system", HASH, json!({}), "hello=8081")?;
    let netns = world.sandbox(HASH, ("kube-system", "static-a"), "hello=8081")?;
    world.answers(&netns, 8081, "/", "hello\n").await?;
    // Whoever deletes the copy does not end the pod, and the next copy is of the same pod.
    world.plane.delete_pod("kube-system", "static-a")?;
    let next = world.pod("shop", "next", "hello=8081")?;
    world.answers(&next, 8081, "/", "hello\n").await?;
    world.answers(&netns, 8081, "/", "hello\n").await?;
    mirror(&world, "kube-system", HASH, json!({}), "hello=8082")?;
    world.answers(&netns, 8082, "/", "hello\n").await
}

#[tokio::test]
async fn a_pod_that_is_known_only_by_its_copy_ends_with_that_whatever_finalizers_it_has() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let netns = Netns::with_loopback(world.node.folder(), "static-a")?;
    let hash = "1123456789abcdef0123456789abcdef";
    let _process = Unannounced::start(hash, &netns)?;
    mirror(&world, "kube-system", hash, json!({"finalizers": ["example.com/never"]}), "hello=8081")?;
    world.answers_in(AGAIN, &netns, 8081, "/", "hello\n").await?;
    world.plane.api.kubectl(&["delete", "pod", "static-a", "-n", "kube-system", "--wait=false"])?;
    world.closes(&netns, 8081).await
}

#[tokio::test]
async fn a_pod_that_says_it_is_another_pods_copy_gets_nothing_there_and_is_told_why() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    // A pod without sidecars, that another namespace's user wants some in.
    let plain = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "victim", "namespace": "bank"},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "r.example/c:1"}]},
    });
    let victim = world.plane.api.create(&plain.to_string())?;
    let uid = victim.pointer("/metadata/uid").and_then(Value::as_str).context("it has no UID")?;
    let netns = Netns::with_loopback(world.node.folder(), "victim")?;
    let _process = Unannounced::start(uid, &netns)?;
    mirror(&world, "shop", uid, json!({}), "hello=8081")?;
    world.has_event("static-a", "SidecarsImpossible", "not a kubelet's hash").await?;
    world.plane.delete_pod("shop", "static-a")?;
    // The form of a static pod's, from a namespace whose users nobody trusts with that.
    let hash = "2123456789abcdef0123456789abcdef";
    let fixed = Netns::with_loopback(world.node.folder(), "fixed")?;
    let _other = Unannounced::start(hash, &fixed)?;
    mirror(&world, "shop", hash, json!({}), "hello=8081")?;
    world.has_event("static-a", "SidecarsImpossible", "control.staticPodNamespaces").await?;
    // Longer than the keeper takes to look for a pod that it is told of.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(netns.accepts(8081) == (false, false) && fixed.accepts(8081) == (false, false), "{}", world.logs());
    world.answers(&neighbour, 8081, "/", "hello\n").await
}

#[tokio::test]
async fn pods_go_on_without_both_replicas_and_follow_a_third() -> Result<()> {
    let mut world = World::start().await?;
    let mut standby = world.plane.control("control-1")?;
    let neighbour = neighbour(&world).await?;
    world.is_ready("hello", "True", "").await?;
    world.control.kill()?;
    standby.kill()?;
    world.answers(&neighbour, 8081, "/", "hello\n").await?;
    // Nobody hears of this yet.
    world.publish("hello", "faults:1", json!({"env": [{"name": "NAME", "value": "late"}]}))?;
    world.node.start_host()?;
    world.answers(&neighbour, 8081, "/", "hello\n").await?;
    world.control = world.plane.leader("control-2").await?;
    world.follow_control()?;
    world.answers(&neighbour, 8081, "/env?name=NAME", "late").await
}

#[tokio::test]
async fn a_flood_of_components_leaves_the_others_served_and_is_told_of() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    let count = if is_soak() { 5_000 } else { 500 };
    let component = |number: usize| {
        let spec = json!({"image": world.image("hello:1")});
        let metadata = json!({"name": format!("flood-{number}"), "namespace": "shop"});
        json!({"apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": metadata, "spec": spec})
    };
    let all: Vec<_> = (0..count).map(component).collect();
    world.plane.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string())?;
    let last = format!("flood-{}=8082", count - 1);
    let cart = world.pod("shop", "cart", &last)?;
    world.answers(&cart, 8082, "/", "hello\n").await?;
    let told = async || {
        let reasons = [r#"jsonpath={.items[*].status.conditions[?(@.type=="Accepted")].status}"#];
        let reasons = world.plane.api.kubectl(&[&["get", "components", "-n", "shop", "-o"][..], &reasons].concat())?;
        let accepted = reasons.split_whitespace().filter(|is| *is == "True").count();
        ensure!(accepted == count, "{accepted} of {count} have a condition");
        Ok(())
    };
    pillion_tests::eventually("their conditions", FLOOD, told).await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await
}

#[tokio::test]
async fn a_pod_whose_runtime_has_a_network_of_its_own_is_told_that_it_gets_nothing() -> Result<()> {
    let world = World::start().await?;
    let neighbour = neighbour(&world).await?;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "sandboxed"}, "handler": "runsc"});
    world.plane.api.apply(&class.to_string())?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cart", "namespace": "shop", "annotations": {"pillion.dev/sidecars": "hello=8081"}},
        "spec": {"nodeName": "a", "runtimeClassName": "sandboxed", "containers": [{"name": "c", "image": "r.example/c:1"}]},
    });
    world.plane.api.create(&pod.to_string())?;
    world.has_event("cart", "SidecarsImpossible", r#"the runtime class "sandboxed" (handler "runsc")"#).await?;
    world.answers(&neighbour, 8081, "/", "hello\n").await
}

#[tokio::test]
async fn a_component_that_no_message_has_room_for_is_not_accepted_and_others_are_served() -> Result<()> {
    let world = World::start().await?;
    // As JSON, six bytes for each: together more than a node reads at once.
    let value = "\u{1}".repeat(300_000);
    for name in ["v1", "v2", "v3"] {
        let metadata = json!({"name": name, "namespace": "shop"});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"v": &value}});
        world.plane.api.create(&map.to_string())?;
    }
    let of = |number: usize| {
        let from = json!({"configMapKeyRef": {"name": format!("v{number}"), "key": "v"}});
        json!({"name": format!("k{number}"), "valueFrom": from})
    };
    let config: Vec<_> = (1..=3).map(of).collect();
    world.publish_for_shop("poison", &world.image("faults:1"), json!({"config": config}))?;
    let cart = world.pod("shop", "cart", "poison=8082")?;
    world.publish("hello", "hello:1", json!({}))?;
    let vault = world.pod("bank", "vault", "hello=8081")?;
    world.answers(&vault, 8081, "/", "hello\n").await?;
    world.has_condition("poison", "Accepted", "TooLarge", "at most 3145728 are allowed").await?;
    world.has_event("cart", "SidecarNotAccepted", "bytes as JSON").await?;
    // As much as a message has room for is told, whatever its bytes are.
    world.publish_for_shop("poison", &world.image("hello:1"), json!({"config": config.get(..1)}))?;
    world.answers(&cart, 8082, "/", "hello\n").await
}

/// A component that imports ten interfaces which nobody offers, each with a name of 90 kB.
fn with_long_names() -> Vec<u8> {
    fn number(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = u8::try_from(number & 127).unwrap_or_default();
            number >>= 7;
            if number == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 128);
        }
    }
    let name = |text: &str| [&[0][..], &number(text.len()), text.as_bytes()].concat();
    let section = |id: u8, content: Vec<u8>| [&[id][..], &number(content.len()), &content].concat();
    let import = |of: usize| [name(&format!("acme{of}:{}/x@1.0.0", "a".repeat(90_000))), vec![5, 0]].concat();
    let imports: Vec<u8> = (0..10).flat_map(import).collect();
    // An instance type without anything in it, ten imports of it, and the first of them as the export.
    let sections = [
        section(7, [number(1), vec![0x42, 0]].concat()),
        section(10, [number(10), imports].concat()),
        section(11, [number(1), name("wasi:http/incoming-handler@0.2.0"), vec![5, 0, 0]].concat()),
    ];
    [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
}

#[tokio::test]
async fn long_failures_keep_nobody_elses_from_being_heard() -> Result<()> {
    let world = World::start().await?;
    // Control finds nothing of imports in it, so nodes try it.
    let artifact =
        Artifact::new("application/vnd.oci.empty.v1+json", "{}").layer("application/wasm", with_long_names());
    artifact.push(&world.registry, "long:1").await?;
    let names: Vec<_> = (1..=6).map(|number| format!("long-{number}")).collect();
    for name in &names {
        world.publish(name, "long:1", json!({}))?;
    }
    let sidecars: Vec<_> = names.iter().zip(8081..).map(|(name, port)| format!("{name}={port}")).collect();
    let _cart = world.pod("shop", "cart", &sidecars.join(", "))?;
    world.has_event("cart", "SidecarFailed", "imports what is not offered here: acme0:aaa").await?;
    for name in &names {
        world.is_ready(name, "False", "`pillion inspect --offered` lists what is").await?;
    }
    world.publish("hello", "hello:1", json!({}))?;
    let vault = world.pod("bank", "vault", "hello=8090")?;
    world.answers(&vault, 8090, "/", "hello\n").await?;
    world.is_ready("hello", "True", "").await?;
    let longest = world.logs().lines().map(str::len).max().unwrap_or_default();
    ensure!(longest < 16_384, "a line of {longest} bytes in a log");
    Ok(())
}
