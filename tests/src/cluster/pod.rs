//! Pods, as the API server is told of them.

use serde_json::{Map, Value, json};

use super::image;

/// The node's name.
pub(super) const NODE: &str = "node";

/// A pod on the node.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    annotations: Map<String, Value>,
    init: Vec<Value>,
    containers: Vec<Value>,
    ends: bool,
    host_network: bool,
}

impl Pod {
    /// A pod without containers.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            annotations: Map::new(),
            init: Vec::new(),
            containers: Vec::new(),
            ends: false,
            host_network: false,
        }
    }

    /// With the annotation `pillion.dev/sidecars`.
    #[must_use]
    pub fn sidecars(mut self, text: &str) -> Self {
        self.annotations.insert("pillion.dev/sidecars".into(), text.into());
        self
    }

    /// With a container that runs a script of `sh`.
    #[must_use]
    pub fn container(mut self, name: &str, script: &str) -> Self {
        self.containers.push(container(name, script));
        self
    }

    /// With a container that runs a script before the others start.
    #[must_use]
    pub fn init(mut self, name: &str, script: &str) -> Self {
        self.init.push(container(name, script));
        self
    }

    /// With the node's network.
    #[must_use]
    pub fn on_the_nodes_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With containers that are not started again when they end.
    #[must_use]
    pub fn that_ends(mut self) -> Self {
        self.ends = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resource.
    pub fn manifest(&self) -> Value {
        let Self { name, annotations, init, containers, ends, host_network } = self;
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "nodeName": NODE, "hostNetwork": host_network, "initContainers": init, "containers": containers,
                "restartPolicy": if *ends { "Never" } else { "Always" },
                "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 1,
            },
        })
    }
}

fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": image::BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
}
