//! A cluster of one node, as far as control and the agent go: a real API server, a registry, control, and a node that follows it.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    control::{Control, Plane},
    eventually,
    netns::Netns,
    node::{Node, Sandbox},
    place,
    registry::{Artifact, Registry},
};

/// Longer than a change takes to be served.
pub const SOON: Duration = Duration::from_secs(30);

/// Longer than a client waits that has asked in vain several times.
pub const AGAIN: Duration = Duration::from_secs(90);

/// A cluster of one node, as far as control and the agent go.
pub struct World {
    /// The API server, and the identities of nodes.
    pub plane: Plane,
    /// The replica that leads.
    pub control: Control,
    /// The node `a`.
    pub node: Node,
    /// Where images are: `hello:1` and `faults:1`.
    pub registry: Registry,
}

impl World {
    /// Starts all of it.
    ///
    /// # Errors
    ///
    /// One of them does not start.
    pub async fn start() -> Result<Self> {
        Self::of(Plane::start().await?).await
    }

    /// Starts the rest of it beside an API server.
    ///
    /// # Errors
    ///
    /// One of them does not start.
    pub async fn of(mut plane: Plane) -> Result<Self> {
        let registry = Registry::start().await?;
        plane.plain_http = Some(registry.host());
        for (guest, name) in [("hello-wasip2", "hello:1"), ("faults-p2", "faults:1")] {
            Artifact::wasm(std::fs::read(place::guest(guest)?)?).push(&registry, name).await?;
        }
        let control = plane.leader("control-0").await?;
        let node = Node::with_keeper()?;
        let settings = json!({"registries": {registry.host(): {"plainHttp": true}}});
        std::fs::write(node.folder().join("registries.yaml"), settings.to_string())?;
        let mut world = Self { plane, control, node, registry };
        world.follow_control()?;
        Ok(world)
    }

    /// Starts the node's host anew, with a new agent's token; it follows the replica that leads.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn follow_control(&mut self) -> Result<()> {
        let agent = self.plane.agent("a")?;
        self.node.follow(self.plane.access(&self.control, &agent.token)?)?;
        self.node.start_host()
    }

    /// The reference of an image.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// Publishes a component for the cluster; `more` is what its spec has besides the image.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn publish(&self, name: &str, image: &str, more: Value) -> Result<()> {
        self.plane.cluster_component(name, &spec(&self.image(image), more))
    }

    /// Publishes a component for the namespace `shop`; `more` is what its spec has besides the image.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn publish_for_shop(&self, name: &str, image: &str, more: Value) -> Result<()> {
        let spec = spec(image, more);
        let metadata = json!({"name": name, "namespace": "shop"});
        let component =
            json!({"apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": metadata, "spec": spec});
        self.plane.api.apply(&component.to_string())
    }

    /// Makes a Secret of the namespace `shop`, or changes it.
    ///
    /// # Errors
    ///
    /// What the API server refuses.
    pub fn secret(&self, name: &str, texts: &Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": "shop"});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": texts});
        self.plane.api.apply(&secret.to_string())
    }

    /// Waits until a component of the namespace `shop` has a condition for this reason, with this text.
    ///
    /// # Errors
    ///
    /// It is not in time.
    pub async fn has_condition(&self, component: &str, kind: &str, reason: &str, text: &str) -> Result<()> {
        let path = |field: &str| format!(r#"{{.status.conditions[?(@.type=="{kind}")].{field}}}"#);
        let output = format!("jsonpath={}: {}", path("reason"), path("message"));
        let has = async || {
            let said = self.plane.api.kubectl(&["get", "component", component, "-n", "shop", "-o", &output])?;
            ensure!(said.starts_with(&format!("{reason}: ")) && said.contains(text), "{said}");
            Ok(())
        };
        eventually("a condition", SOON, has).await.with_context(|| self.logs())
    }

    /// A pod that the API server and the node's runtime both know.
    ///
    /// # Errors
    ///
    /// One of them refuses it.
    pub fn pod(&self, namespace: &str, name: &str, sidecars: &str) -> Result<Netns> {
        let uid = self.plane.pod(namespace, name, "a", sidecars)?;
        self.sandbox(&uid, (namespace, name), sidecars)
    }

    /// A pod that the node's runtime knows, by this UID, namespace and name.
    ///
    /// # Errors
    ///
    /// The plugin refuses it.
    pub fn sandbox(&self, uid: &str, name: (&str, &str), sidecars: &str) -> Result<Netns> {
        let netns = Netns::with_loopback(self.node.folder(), name.1)?;
        let container = format!("c-{}", name.1);
        let sandbox = Sandbox { name, ..Sandbox::new(uid, &container, &netns, sidecars) };
        let said = self.node.cni("ADD", &sandbox)?;
        ensure!(said.success, "{}: {}", said.stdout, self.node.log());
        Ok(netns)
    }

    /// What control and the node have logged.
    pub fn logs(&self) -> String {
        format!("control:\n{}\nnode:\n{}", self.control.log(), self.node.log())
    }

    /// Waits until a port of a pod answers with this text.
    ///
    /// # Errors
    ///
    /// It does not in time.
    pub async fn answers(&self, netns: &Netns, port: u16, path: &str, expected: &str) -> Result<()> {
        self.answers_in(SOON, netns, port, path, expected).await
    }

    /// Waits for so long until a port of a pod answers with this text.
    ///
    /// # Errors
    ///
    /// It does not in time.
    pub async fn answers_in(&self, time: Duration, netns: &Netns, port: u16, path: &str, expected: &str) -> Result<()> {
        let ask = async || {
            let answer = netns.get(IpAddr::V4(Ipv4Addr::LOCALHOST), port, path)?;
            ensure!(answer.contains(expected), "expected {expected:?}: {answer}");
            Ok(())
        };
        eventually("an answer", time, ask).await.with_context(|| self.logs())
    }

    /// Waits until a port of a pod is closed.
    ///
    /// # Errors
    ///
    /// It is not in time.
    pub async fn closes(&self, netns: &Netns, port: u16) -> Result<()> {
        let closed = async || {
            ensure!(netns.accepts(port) == (false, false), "{port} is open");
            Ok(())
        };
        eventually("a closed port", SOON, closed).await.with_context(|| self.logs())
    }

    /// Waits until a pod of the namespace `shop` has an Event of this reason with this text.
    ///
    /// # Errors
    ///
    /// It has none in time.
    pub async fn has_event(&self, pod: &str, reason: &str, text: &str) -> Result<()> {
        let there = async || {
            let events = self.plane.api.events("shop", pod)?;
            ensure!(events.lines().any(|line| line.starts_with(reason) && line.contains(text)), "{events}");
            Ok(())
        };
        eventually("an Event", SOON, there).await.with_context(|| self.logs())
    }

    /// Waits until a component's condition Ready is this, for a reason with this text.
    ///
    /// # Errors
    ///
    /// It is not in time.
    pub async fn is_ready(&self, component: &str, expected: &str, text: &str) -> Result<()> {
        let ready = async || {
            let (status, reason, message) = self.plane.ready(component)?;
            ensure!(status == expected && message.contains(text), "{status} {reason}: {message}");
            Ok(())
        };
        eventually("the condition Ready", SOON, ready).await.with_context(|| self.logs())
    }
}

/// What a component is: its image, and `more`.
pub fn spec(image: &str, more: Value) -> Value {
    let mut spec = json!({"image": image});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}
