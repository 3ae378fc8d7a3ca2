//! What people see of a component: `status`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The image and the digest that it had when control asked its registry, which is what nodes are to serve as long as spec.image stays
    /// as it is: REGISTRY/REPOSITORY:TAG@sha256:…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_image: Option<String>,
    /// The digest that nodes serve, where they agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where its guests may call out to, as nodes that serve it say, where they agree: what a Spin application asks for within
    /// spec.allowedOutboundHosts. What a variable is part of is shown without the variable's value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_outbound_hosts: Vec<String>,
    /// Nodes that have it ready, of those that want it: "2/3".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// Nodes with pods that name it.
    #[serde(default)]
    pub wanted_nodes: u32,
    /// Those of them that serve it as it is now.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Those of them that cannot.
    #[serde(default)]
    pub failed_nodes: u32,
    /// In words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One thing that is so, is not so, or is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What this is about.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Since when, as RFC 3339 has it.
    pub last_transition_time: String,
}

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// It can be read.
    Accepted,
    /// Control has read from the registry what its image is, and it can be served.
    Resolved,
    /// Every node that wants it serves it.
    Ready,
}

/// Whether a condition is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// It is not known yet.
    Unknown,
}
