//! Control and a node, before a real API server: from an annotation and a component to an answer inside the pod, and what goes on
//! when one of them is away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    control::Plane,
    eventually,
    node::Sandbox,
    place, process,
    registry::{Artifact, digest, spin_lock},
    world::{World, spec},
};
use serde_json::json;

#[tokio::test]
async fn an_annotation_and_a_component_are_all_that_a_pod_needs() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081, faults=8082")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.has_event("cart", "SidecarUnknown", "\"faults\"").await?;
    world.answers(&cart, 8082, "/", r#"there is no Component \"faults\" in the namespace \"shop\""#).await?;
    // It comes later, and then it is there.
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "first"}]}))?;
    world.answers(&cart, 8082, "/env?name=NAME", "first").await?;
    world.has_event("cart", "SidecarServed", "\"faults\"").await?;
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "second"}]}))?;
    world.answers(&cart, 8082, "/env?name=NAME", "second").await?;
    world.is_ready("hello", "True", "").await?;
    // Whose pod it is not.
    world.publish("hello", "hello:1", json!({"access": {"namespaces": ["bank"]}}))?;
    world.answers(&cart, 8081, "/", "pillion-error: not-allowed").await?;
    world.answers(&cart, 8081, "/", "HTTP/1.1 403").await?;
    world.has_event("cart", "SidecarNotAllowed", "shop/default").await?;
    world.answers(&cart, 8081, "/", "service account \\\"shop/default\\\"").await?;
    Ok(())
}

#[tokio::test]
async fn what_is_bound_serves_on_whatever_goes_away() -> Result<()> {
    let mut world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    // What nodes report they have kept.
    world.is_ready("hello", "True", "").await?;
    // The host starts while control, the API server and the registry are away.
    world.control.kill()?;
    world.plane.api.stop();
    world.registry.stop();
    world.node.start_host()?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.plane.api.restart().await?;
    // A component that is deleted goes on for the pods that had it, and new ones do not get it.
    world.plane.api.kubectl(&["delete", "clustercomponent", "hello"])?;
    world.control = world.plane.leader("control-1").await?;
    world.follow_control()?;
    let late = world.pod("shop", "late", "hello=8081")?;
    world.answers(&late, 8081, "/", "there is no Component").await?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    Ok(())
}

#[tokio::test]
async fn an_annotation_that_changes_and_a_pod_that_ends_are_followed() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    let annotate = ["annotate", "pod", "cart", "-n", "shop", "--overwrite", "pillion.dev/sidecars=hello=8082"];
    world.plane.api.kubectl(&annotate)?;
    world.answers(&cart, 8082, "/", "hello\n").await?;
    world.closes(&cart, 8081).await?;
    let patch = json!({"status": {"phase": "Succeeded"}}).to_string();
    let how = ["patch", "pod", "cart", "-n", "shop", "--subresource", "status", "--type", "merge", "--patch", &patch];
    world.plane.api.kubectl(&how)?;
    world.closes(&cart, 8082).await
}

#[tokio::test]
async fn a_pod_that_is_deleted_by_force_has_its_sidecars_until_its_sandbox_ends() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.plane.delete_pod("shop", "cart")?;
    // What is told later is heard later: the node has heard of the deletion then.
    let next = world.pod("shop", "next", "hello=8082")?;
    world.answers(&next, 8082, "/", "hello\n").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    let ended = world.node.cni("DEL", &Sandbox::new("cart", "c-cart", &cart, "hello=8081"))?;
    ensure!(ended.success, "{}", ended.stdout);
    world.closes(&cart, 8081).await
}

/// The readiness gate of a pod of the namespace `shop`, as it is written: "True", or nothing.
fn gate(world: &World, pod: &str) -> Result<String> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="pillion.dev/sidecars")].status}"#;
    world.plane.api.kubectl(&["get", "pod", pod, "-n", "shop", "-o", path])
}

async fn is_open(world: &World, pod: &str) -> Result<()> {
    let open = async || {
        let is = gate(world, pod)?;
        ensure!(is == "True", "it is {is:?}");
        Ok(())
    };
    eventually("an open gate", Duration::from_secs(30), open).await.with_context(|| world.logs())
}

#[tokio::test]
async fn what_keeps_a_pod_from_its_sidecars_is_told_and_then_it_is_ready() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    world.publish("broken", "nothing:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081, broken=8082")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.has_event("cart", "SidecarFailed", "nothing:1").await?;
    ensure!(gate(&world, "cart")?.is_empty(), "one of its sidecars is not served");
    world.publish("broken", "hello:1", json!({}))?;
    is_open(&world, "cart").await?;
    world.has_event("cart", "SidecarServed", "\"broken\"").await?;
    // What was ready stays so.
    world.publish("broken", "nothing:1", json!({"access": {"namespaces": ["bank"]}}))?;
    world.has_event("cart", "SidecarNotAllowed", "\"broken\"").await?;
    ensure!(gate(&world, "cart")? == "True", "an open gate was closed");
    // A port that another program of the pod has.
    let other = cart.listen(8090)?;
    let annotate = ["annotate", "pod", "cart", "-n", "shop", "--overwrite", "pillion.dev/sidecars=hello=8090"];
    world.plane.api.kubectl(&annotate)?;
    world.has_event("cart", "SidecarsNotBound", "port 8090").await?;
    drop(other);
    world.answers(&cart, 8090, "/", "hello\n").await?;
    world.has_event("cart", "SidecarServed", "the sidecars are").await
}

/// Pods of the node `a`, from `many-0` on.
fn many_pods(world: &World, namespace: &str, count: usize, sidecars: &str) -> Result<()> {
    let pod = |number: usize| {
        let annotations = json!({"pillion.dev/sidecars": sidecars});
        let metadata = json!({"name": format!("many-{number}"), "namespace": namespace, "annotations": annotations});
        let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "r.example/c:1"}]});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    };
    let pods: Vec<_> = (0..count).map(pod).collect();
    world.plane.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())
}

#[tokio::test]
async fn a_control_that_finds_many_pods_serves_them_all() -> Result<()> {
    let mut world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    // So many that they are listed, and not asked for one by one.
    many_pods(&world, "shop", 60, "hello=8081, late=8082")?;
    world.control.kill()?;
    world.control = world.plane.leader("control-1").await?;
    world.follow_control()?;
    world.has_event("many-0", "SidecarUnknown", "\"late\"").await?;
    world.has_event("many-59", "SidecarUnknown", "\"late\"").await?;
    world.publish("hello", "faults:1", json!({"env": [{"name": "NAME", "value": "listed"}]}))?;
    world.answers(&cart, 8081, "/env?name=NAME", "listed").await
}

#[tokio::test]
async fn what_a_pod_says_in_vain_and_a_port_that_a_container_has_too_are_told() -> Result<()> {
    let mut world = World::start().await?;
    let container = json!({"name": "main", "image": "r.example/c:1"});
    let sidecars = "pillion.dev/sidecars";
    // One that is there before its control is.
    world.control.kill()?;
    let early = json!({"name": "early", "namespace": "shop", "annotations": {"pillion.dev/sidecar": "hello=8081"}});
    world.plane.pod_of("a", &early, &container)?;
    world.control = world.plane.leader("control-1").await?;
    world.follow_control()?;
    world.publish("hello", "hello:1", json!({}))?;
    world.has_event("early", "AnnotationIgnored", "nothing reads the annotation pillion.dev/sidecar:").await?;
    let label = json!({"name": "label", "namespace": "shop", "labels": {"pillion.dev/sidecars": "hello-8081"}});
    world.plane.pod_of("a", &label, &container)?;
    world.has_event("label", "AnnotationIgnored", "nothing reads the label pillion.dev/sidecars:").await?;
    // What comes later, beside what is read.
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.plane.api.kubectl(&["annotate", "pod", "cart", "-n", "shop", "pillion.dev/wiat=ready"])?;
    world.has_event("cart", "AnnotationIgnored", "pillion.dev/wiat").await?;
    let mut taken = container.clone();
    taken["ports"] = json!([{"containerPort": 8082}]);
    taken["livenessProbe"] = json!({"httpGet": {"port": 8083}});
    let port = json!({"name": "port", "namespace": "shop", "annotations": {sidecars: "hello=8082"}});
    let uid = world.plane.pod_of("a", &port, &taken)?;
    let port = world.sandbox(&uid, ("shop", "port"), "hello=8082")?;
    world.has_event("port", "SidecarPortConflict", "8082 is a containerPort of the container \"main\"").await?;
    world.answers(&port, 8082, "/", "hello\n").await?;
    // The annotation changes; the container does not.
    world.plane.api.kubectl(&[
        "annotate",
        "pod",
        "port",
        "-n",
        "shop",
        "--overwrite",
        &format!("{sidecars}=hello=8083"),
    ])?;
    world
        .has_event("port", "SidecarPortConflict", "8083 is where a probe or a hook of the container \"main\" asks")
        .await?;
    let events = world.plane.api.events("shop", "cart")?;
    ensure!(!events.contains("SidecarPortConflict"), "{events}");
    Ok(())
}

#[tokio::test]
async fn a_pod_on_a_node_without_agent_is_told() -> Result<()> {
    let mut plane = Plane::start().await?;
    plane.agent_grace = Some(3);
    let mut world = World::of(plane).await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.plane.pod("shop", "lone", "b", "hello=8081")?;
    world.has_event("lone", "SidecarsNoAgent", "no agent of the node \"b\"").await?;
    let events = world.plane.api.events("shop", "cart")?;
    ensure!(!events.contains("SidecarsNoAgent"), "{events}");
    world.node.kill_host()?;
    world.has_event("cart", "SidecarsNoAgent", "no agent of the node \"a\"").await?;
    world.follow_control()?;
    world.has_event("cart", "AgentConnected", "").await?;
    world.answers(&cart, 8081, "/", "hello\n").await
}

#[tokio::test]
async fn a_namespace_in_which_much_is_wrong_keeps_no_other_from_its_events() -> Result<()> {
    let world = World::start().await?;
    world.plane.pod("bank", "first", "a", "hello=8081")?;
    // Each of them is told of four times, 20 a second in all.
    many_pods(&world, "bank", 300, "a=8081, b=8082, c=8083, d=8084")?;
    world.pod("shop", "cart", "nothing=8081")?;
    world.has_event("cart", "SidecarUnknown", "\"nothing\"").await?;
    let told = world.plane.api.kubectl(&["get", "events", "-n", "bank", "-o", "name"])?.lines().count();
    ensure!(told < 1_000, "all of the other namespace's were told before: {told}");
    Ok(())
}

/// A Component of the namespace `shop` with a value from a ConfigMap, which is not there yet.
fn refer(world: &World, name: &str, map: &str) -> Result<()> {
    let from = json!({"configMapKeyRef": {"name": map, "key": "greeting"}});
    world.publish_for_shop(name, &world.image("faults:1"), json!({"env": [{"name": "NAME", "valueFrom": from}]}))
}

fn config_map(world: &World, greeting: &str) -> Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"},
        "data": {"greeting": greeting},
    });
    world.plane.api.apply(&map.to_string())
}

#[tokio::test]
async fn a_value_comes_from_a_config_map_and_follows_it() -> Result<()> {
    let world = World::start().await?;
    refer(&world, "faults", "settings")?;
    let cart = world.pod("shop", "cart", "faults=8082")?;
    world
        .has_event("cart", "SidecarNotAccepted", r#"there is no ConfigMap "settings" in the namespace "shop""#)
        .await?;
    config_map(&world, "first")?;
    world.answers(&cart, 8082, "/env?name=NAME", "first").await?;
    config_map(&world, "second")?;
    world.answers(&cart, 8082, "/env?name=NAME", "second").await?;
    // What was served goes on without the value's source, and is what the source says once it is there again.
    world.plane.api.kubectl(&["delete", "configmap", "settings", "-n", "shop"])?;
    world.has_condition("faults", "Accepted", "Invalid", "there is no ConfigMap").await?;
    world.answers(&cart, 8082, "/env?name=NAME", "second").await?;
    config_map(&world, "third")?;
    world.answers(&cart, 8082, "/env?name=NAME", "third").await?;
    // Either a value or a reference: what has neither does not come in.
    let neither = world.publish_for_shop("neither", &world.image("faults:1"), json!({"env": [{"name": "NAME"}]}));
    let error = neither.err().context("it came in")?;
    ensure!(format!("{error:#}").contains("expected either value or valueFrom"), "{error:#}");
    Ok(())
}

/// What the status of a component of the cluster has under this path.
fn status(world: &World, component: &str, path: &str) -> Result<String> {
    let output = format!("jsonpath={{.status.{path}}}");
    world.plane.api.kubectl(&["get", "clustercomponent", component, "-o", &output])
}

#[tokio::test]
async fn a_tag_is_resolved_once_for_the_cluster() -> Result<()> {
    let mut world = World::start().await?;
    let first = push(&world, "moving:1", 1).await?;
    world.publish("moving", "moving:1", json!({}))?;
    let cart = world.pod("shop", "cart", "moving=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.is_ready("moving", "True", "").await?;
    let resolved = format!("{}@{first}", world.image("moving:1"));
    ensure!(status(&world, "moving", "resolvedImage")? == resolved, "{}", status(&world, "moving", "resolvedImage")?);
    ensure!(status(&world, "moving", "digest")? == first);
    // The tag moves. Neither another leader, nor other settings, nor a node that has nothing yet follow it.
    push(&world, "moving:1", 2).await?;
    world.control.kill()?;
    world.control = world.plane.leader("control-1").await?;
    world.node.kill_host()?;
    std::fs::remove_dir_all(world.node.folder().join("store"))?;
    world.follow_control()?;
    world.publish("moving", "moving:1", json!({"limits": {"concurrency": 7}}))?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.is_ready("moving", "True", "").await?;
    ensure!(status(&world, "moving", "digest")? == first, "{}", status(&world, "moving", "digest")?);
    // Another tag is another question.
    let third = push(&world, "moving:3", 3).await?;
    world.publish("moving", "moving:3", json!({}))?;
    eventually("the new digest", Duration::from_secs(30), async || {
        let digest = status(&world, "moving", "digest")?;
        ensure!(digest == third, "{digest}");
        Ok(())
    })
    .await
    .with_context(|| world.logs())
}

#[tokio::test]
async fn where_a_spin_application_may_call_out_to_is_in_its_status() -> Result<()> {
    let world = World::start().await?;
    let layer = std::fs::read(place::guest("spin-echo")?)?;
    let digest = digest(&layer);
    let hosts = ["https://*.shop.example", "http://elsewhere.example"];
    let lock = spin_lock("app", &[("echo", &digest, &[], &hosts)], &[("/...", "echo")]);
    Artifact::spin(&lock, vec![(Artifact::SPIN_WASM, layer.into())]).push(&world.registry, "app:1").await?;
    world.publish(
        "app",
        "app:1",
        json!({"allowedOutboundHosts": ["https://api.shop.example", "http://next.example"]}),
    )?;
    world.publish("free", "app:1", json!({"allowedOutboundHosts": ["artifact"]}))?;
    world.pod("shop", "cart", "app=8081, free=8082")?;
    for (name, expected) in [
        ("app", r#"["https://api.shop.example:443"]"#),
        ("free", r#"["http://elsewhere.example:80","https://*.shop.example:443"]"#),
    ] {
        world.is_ready(name, "True", "").await?;
        let hosts = status(&world, name, "allowedOutboundHosts")?;
        ensure!(hosts == expected, "{name}: {hosts}");
    }
    Ok(())
}

/// Pushes a component that answers "hello", each `number` another artifact; gives its digest.
async fn push(world: &World, name: &str, number: u32) -> Result<String> {
    Artifact::wasm(place::numbered("hello-wasip2", number)?).push(&world.registry, name).await
}

#[tokio::test]
async fn what_control_cannot_read_nodes_ask_for_themselves() -> Result<()> {
    let mut world = World::start().await?;
    world.control.kill()?;
    // It knows of no registry that speaks without TLS.
    world.plane.plain_http = None;
    world.control = world.plane.leader("control-1").await?;
    world.follow_control()?;
    world.publish_for_shop("hello", &world.image("hello:1"), json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    world.has_condition("hello", "Resolved", "Unread", "it does not speak TLS").await?;
    world.has_condition("hello", "Ready", "Ready", "").await
}

#[tokio::test]
async fn what_makes_no_sense_does_not_come_in() -> Result<()> {
    let plane = Plane::start().await?;
    let value = json!({"name": "NAME", "value": "v"});
    let from = json!({"name": "NAME", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    let long = "x".repeat(64);
    let table = [
        ("whole", "./clock.wasm", json!({}), "the registry always said"),
        ("whole", "hello:1", json!({"env": [value, value]}), "Duplicate value"),
        ("whole", "hello:1", json!({"env": [from]}), "valueFrom: a ClusterComponent has no namespace"),
        ("whole", "hello:1", json!({"imagePullSecrets": [{"name": "s"}]}), "imagePullSecrets: a ClusterComponent"),
        ("whole", "hello:1", json!({"access": {"namespaces": ["shop", "shop"]}}), "Duplicate value"),
        ("whole", "hello:1", json!({"limits": {"queue": 10_001}}), "should be less than or equal to 10000"),
        ("with.dot", "hello:1", json!({}), "metadata.name: allowed are at most 63"),
        (&long, "hello:1", json!({}), "metadata.name: allowed are at most 63"),
    ];
    for (name, image, more, expected) in table {
        let image = if image.starts_with('.') { image.to_owned() } else { format!("r.example/{image}") };
        let error = plane.cluster_component(name, &spec(&image, more)).err().context("it came in")?;
        ensure!(format!("{error:#}").contains(expected), "{expected}: {error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_final_component_of_the_cluster_is_hidden_by_no_namespaces_component() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "faults:1", json!({"env": [{"name": "NAME", "value": "cluster"}]}))?;
    world.publish_for_shop("hello", &world.image("faults:1"), json!({"env": [{"name": "NAME", "value": "shop"}]}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/env?name=NAME", "shop").await?;
    world.publish("hello", "faults:1", json!({"final": true, "env": [{"name": "NAME", "value": "cluster"}]}))?;
    world.answers(&cart, 8081, "/env?name=NAME", "cluster").await?;
    world.has_condition("hello", "Ready", "Overruled", "the ClusterComponent of this name is final").await?;
    world.publish("hello", "faults:1", json!({"env": [{"name": "NAME", "value": "cluster"}]}))?;
    world.answers(&cart, 8081, "/env?name=NAME", "shop").await?;
    world.has_condition("hello", "Ready", "Ready", "1 nodes serve it").await
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_for_registries_only() -> Result<()> {
    // Nobody is there: what is asked by it fails.
    const PROXIES: [(&str, &str); 4] = [
        ("HTTPS_PROXY", "http://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("https_proxy", "http://127.0.0.1:9"),
        ("ALL_PROXY", "http://127.0.0.1:9"),
    ];
    let mut plane = Plane::start().await?;
    plane.environment = PROXIES.into();
    // Control asks the API server, the node control, and both the registry, which is at localhost.
    let mut world = World::of(plane).await?;
    world.node.environment = PROXIES.into();
    world.node.start_host()?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    world.answers(&cart, 8081, "/", "hello\n").await?;
    let children = process::children(world.node.host()?);
    ensure!(children.len() > 1, "worker and follower are not both there: {children:?}");
    for child in children {
        let environment = std::fs::read_to_string(format!("/proc/{child}/environ"))?.to_ascii_uppercase();
        ensure!(!environment.contains("_PROXY="), "{}: {environment}", process::arguments(child));
    }
    Ok(())
}
