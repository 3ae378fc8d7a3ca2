//! Control and a node, before a real API server: from an annotation and a component to an answer inside the pod, and what goes on
//! when one of them is away.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    control::{Control, Plane},
    eventually,
    netns::Netns,
    node::{Node, Sandbox},
    place,
    registry::{Artifact, Registry},
};
use serde_json::{Value, json};

/// Longer than a change takes to be served.
const SOON: Duration = Duration::from_secs(30);

/// A cluster of one node, as far as control and the agent go.
struct World {
    plane: Plane,
    control: Control,
    node: Node,
    registry: Registry,
}

impl World {
    async fn start() -> Result<Self> {
        let (plane, registry) = (Plane::start().await?, Registry::start().await?);
        for (guest, name) in [("hello-wasip2", "hello:1"), ("faults-p2", "faults:1")] {
            Artifact::wasm(std::fs::read(place::guest(guest)?)?).push(&registry, name).await?;
        }
        let control = plane.leader("control-0").await?;
        let mut node = Node::with_keeper()?;
        let settings = json!({"registries": {registry.host(): {"plainHttp": true}}});
        std::fs::write(node.folder().join("registries.yaml"), settings.to_string())?;
        let agent = plane.agent("a")?;
        node.follow(plane.access(&control, &agent.token)?)?;
        node.start_host()?;
        Ok(Self { plane, control, node, registry })
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    fn publish(&self, name: &str, image: &str, more: Value) -> Result<()> {
        let mut spec = json!({"image": self.image(image)});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        self.plane.cluster_component(name, &spec)
    }

    /// A pod that the API server and the node's runtime both know.
    fn pod(&self, namespace: &str, name: &str, sidecars: &str) -> Result<Netns> {
        let uid = self.plane.pod(namespace, name, "a", sidecars)?;
        let netns = Netns::with_loopback(self.node.folder(), name)?;
        let container = format!("c-{name}");
        let sandbox = Sandbox::new(&uid, &container, &netns, sidecars);
        // The fixture's pods are all of one namespace for the runtime; control knows better, and only its word counts here.
        let said = self.node.cni("ADD", &sandbox)?;
        ensure!(said.success, "{}: {}", said.stdout, self.node.log());
        Ok(netns)
    }

    fn logs(&self) -> String {
        format!("control:\n{}\nnode:\n{}", self.control.log(), self.node.log())
    }
}

fn get(netns: &Netns, port: u16, path: &str) -> Result<String> {
    netns.get(IpAddr::V4(Ipv4Addr::LOCALHOST), port, path)
}

async fn answers(world: &World, netns: &Netns, port: u16, path: &str, expected: &str) -> Result<()> {
    let ask = async || {
        let answer = get(netns, port, path)?;
        ensure!(answer.contains(expected), "expected {expected:?}: {answer}");
        Ok(())
    };
    eventually("an answer", SOON, ask).await.with_context(|| world.logs())
}

async fn has_event(world: &World, pod: &str, reason: &str, text: &str) -> Result<()> {
    let there = async || {
        let events = world.plane.api.events("shop", pod)?;
        ensure!(events.lines().any(|line| line.starts_with(reason) && line.contains(text)), "{events}");
        Ok(())
    };
    eventually("an Event", SOON, there).await.with_context(|| world.logs())
}

async fn is_ready(world: &World, component: &str) -> Result<()> {
    let ready = async || {
        let (status, reason, message) = world.plane.ready(component)?;
        ensure!(status == "True", "{status} {reason}: {message}");
        Ok(())
    };
    eventually("the condition Ready", SOON, ready).await.with_context(|| world.logs())
}

#[tokio::test]
async fn an_annotation_and_a_component_are_all_that_a_pod_needs() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081, faults=8082")?;
    answers(&world, &cart, 8081, "/", "hello\n").await?;
    has_event(&world, "cart", "SidecarUnknown", "\"faults\"").await?;
    answers(&world, &cart, 8082, "/", r#"there is no Component \"faults\" in the namespace \"shop\""#).await?;
    // It comes later, and then it is there.
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "first"}]}))?;
    answers(&world, &cart, 8082, "/env?name=NAME", "first").await?;
    has_event(&world, "cart", "SidecarServed", "\"faults\"").await?;
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "second"}]}))?;
    answers(&world, &cart, 8082, "/env?name=NAME", "second").await?;
    is_ready(&world, "hello").await?;
    // Whose pod it is not.
    world.publish("hello", "hello:1", json!({"access": {"namespaces": ["bank"]}}))?;
    answers(&world, &cart, 8081, "/", "pillion-error: not-allowed").await?;
    answers(&world, &cart, 8081, "/", "HTTP/1.1 403").await?;
    has_event(&world, "cart", "SidecarNotAllowed", "shop/default").await?;
    answers(&world, &cart, 8081, "/", "service account \\\"shop/default\\\"").await?;
    Ok(())
}

#[tokio::test]
async fn what_is_bound_serves_on_whatever_goes_away() -> Result<()> {
    let mut world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    answers(&world, &cart, 8081, "/", "hello\n").await?;
    // What nodes report they have kept.
    is_ready(&world, "hello").await?;
    // The host starts while control, the API server and the registry are away.
    world.control.kill()?;
    world.plane.api.stop();
    world.registry.stop();
    world.node.start_host()?;
    answers(&world, &cart, 8081, "/", "hello\n").await?;
    world.plane.api.restart().await?;
    // A component that is deleted goes on for the pods that had it, and new ones do not get it.
    world.plane.api.kubectl(&["delete", "clustercomponent", "hello"])?;
    world.control = world.plane.leader("control-1").await?;
    let agent = world.plane.agent("a")?;
    world.node.follow(world.plane.access(&world.control, &agent.token)?)?;
    world.node.start_host()?;
    let late = world.pod("shop", "late", "hello=8081")?;
    answers(&world, &late, 8081, "/", "there is no Component").await?;
    answers(&world, &cart, 8081, "/", "hello\n").await?;
    Ok(())
}

#[tokio::test]
async fn an_annotation_that_changes_and_a_pod_that_ends_are_followed() -> Result<()> {
    let world = World::start().await?;
    world.publish("hello", "hello:1", json!({}))?;
    let cart = world.pod("shop", "cart", "hello=8081")?;
    answers(&world, &cart, 8081, "/", "hello\n").await?;
    let annotate = ["annotate", "pod", "cart", "-n", "shop", "--overwrite", "pillion.dev/sidecars=hello=8082"];
    world.plane.api.kubectl(&annotate)?;
    answers(&world, &cart, 8082, "/", "hello\n").await?;
    let closed = async |port| {
        let closed = async || {
            ensure!(cart.accepts(port) == (false, false), "{port} is open");
            Ok(())
        };
        eventually("a closed port", SOON, closed).await.with_context(|| world.logs())
    };
    closed(8081).await?;
    world.plane.delete_pod("shop", "cart")?;
    closed(8082).await
}

/// Longer than a client of the API server's waits before it asks again.
const AGAIN: Duration = Duration::from_secs(90);

#[tokio::test]
async fn an_api_server_that_was_away_is_followed_again() -> Result<()> {
    let mut world = World::start().await?;
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "first"}]}))?;
    let cart = world.pod("shop", "cart", "faults=8081")?;
    answers(&world, &cart, 8081, "/env?name=NAME", "first").await?;
    world.plane.api.stop();
    // Longer than a leader that cannot renew its Lease leads.
    let gone = async || {
        ensure!(world.control.log().contains("another replica leads now"), "it leads on");
        Ok(())
    };
    eventually("the end of its leading", SOON, gone).await?;
    answers(&world, &cart, 8081, "/env?name=NAME", "first").await?;
    world.plane.api.restart().await?;
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": "second"}]}))?;
    let followed = async || {
        let answer = get(&cart, 8081, "/env?name=NAME")?;
        ensure!(answer.contains("second"), "{answer}");
        Ok(())
    };
    eventually("the change", AGAIN, followed).await.with_context(|| world.logs())
}

/// A Component of the namespace `shop` with a value from a ConfigMap, which is not there yet.
fn refer(world: &World, name: &str, map: &str) -> Result<()> {
    let from = json!({"configMapKeyRef": {"name": map, "key": "greeting"}});
    let component = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"image": world.image("faults:1"), "env": [{"name": "NAME", "valueFrom": from}]},
    });
    world.plane.api.apply(&component.to_string())
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
    has_event(&world, "cart", "SidecarNotAccepted", r#"there is no ConfigMap "settings" in the namespace "shop""#)
        .await?;
    config_map(&world, "first")?;
    answers(&world, &cart, 8082, "/env?name=NAME", "first").await?;
    config_map(&world, "second")?;
    answers(&world, &cart, 8082, "/env?name=NAME", "second").await?;
    // What was served goes on without the value's source, and is what the source says once it is there again.
    world.plane.api.kubectl(&["delete", "configmap", "settings", "-n", "shop"])?;
    eventually("the condition Accepted", SOON, async || {
        let accepted = [r#"jsonpath={.status.conditions[?(@.type=="Accepted")].message}"#];
        let said = [&["get", "component", "faults", "-n", "shop", "-o"][..], &accepted].concat();
        let said = world.plane.api.kubectl(&said)?;
        ensure!(said.contains("there is no ConfigMap"), "{said}");
        Ok(())
    })
    .await?;
    answers(&world, &cart, 8082, "/env?name=NAME", "second").await?;
    config_map(&world, "third")?;
    answers(&world, &cart, 8082, "/env?name=NAME", "third").await?;
    // Either a value or a reference: what has neither does not come in.
    let neither = json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": "neither", "namespace": "shop"},
        "spec": {"image": world.image("faults:1"), "env": [{"name": "NAME"}]},
    });
    let error = world.plane.api.apply(&neither.to_string()).err().context("it came in")?;
    ensure!(format!("{error:#}").contains("expected either value or valueFrom"), "{error:#}");
    Ok(())
}
