//! What a component is, as people write it. Texts stay texts here: their grammars are those of [`pillion_protocol::component`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a component is: its code, its settings, its limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// An artifact in a registry, by a tag or by a digest: registry.example/acme/clock:1.0.1
    #[schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.contains('/') && !self.startsWith('/') && !self.startsWith('.')",
        "message": "expected REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:…, the registry always said"
    }]))]
    pub image: String,
    /// Secrets of the component's namespace, of the type kubernetes.io/dockerconfigjson, by which nodes pull the image. Only for a Component.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// The guest's environment; nothing else is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<Variable>,
    /// What the guest reads through wasi:config, or as Spin's variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub config: Vec<Variable>,
    /// What one request, and one binding, may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Where the guest may call out to: SCHEME://HOST or SCHEME://HOST:PORT. Empty means nowhere. What a Spin application asks for counts
    /// only within it; the entry artifact allows whatever it asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub allowed_outbound_hosts: Vec<String>,
    /// How instances are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Instances>,
}

/// A Secret of the component's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A name and its value, or where its value is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.value) != has(self.valueFrom)", "message": "expected either value or valueFrom"
}]))]
pub struct Variable {
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value is, if it is not here. A change there is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// Where a value is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.configMapKeyRef) != has(self.secretKeyRef)", "message": "expected either configMapKeyRef or secretKeyRef"
}]))]
pub struct ValueFrom {
    /// A key of a ConfigMap in the component's namespace. Only for a Component: a ClusterComponent has no namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// A key of a Secret in the component's namespace, which has to let control read it. Only for a Component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// A key of a ConfigMap or of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// Where it is not there, the variable is not there either; otherwise the component is not accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// What one request, and one binding, may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Linear memories and tables of one request together, 1Mi to 4Gi; 128Mi where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// CPU time of one request, 1ms to 1h; 1s where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<String>,
    /// From a request's head to its response's head, 1ms to 1h; 10s where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_timeout: Option<String>,
    /// How long a body may stand still, 1ms to 1h; 30s where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// The whole request, 1ms to 24h; without an end where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<String>,
    /// Work after a response's last byte, 0s to 1h; 5s where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger_timeout: Option<String>,
    /// Requests of one binding at once; 100 where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub concurrency: Option<u32>,
    /// Requests of one binding that wait for a place; 100 where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub queue: Option<u32>,
    /// A request's head, 8Ki to 1Mi; 64Ki where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<String>,
}

/// How instances are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instances {
    /// The most requests that one instance serves, one after another; 1 where it is not said. Only for components of WASI 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub reuse: Option<u32>,
}

/// Whose pods may have a component. What is in neither list may not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Namespaces, all of whose pods may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// Service accounts whose pods may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub service_accounts: Vec<ServiceAccount>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Access {
    /// Whether pods of this service account may have the component.
    pub fn allows(&self, namespace: &str, service_account: &str) -> bool {
        self.namespaces.iter().any(|allowed| allowed == namespace)
            || self.service_accounts.iter().any(|of| of.namespace == namespace && of.name == service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_neither_list_may_not() {
        let teller = ServiceAccount { namespace: "bank".into(), name: "teller".into() };
        let access = Access { namespaces: vec!["shop".into()], service_accounts: vec![teller] };
        let table =
            [("shop", "any", true), ("bank", "teller", true), ("bank", "default", false), ("other", "teller", false)];
        for (namespace, account, allowed) in table {
            assert_eq!(access.allows(namespace, account), allowed, "{namespace}/{account}");
        }
        assert!(!Access::default().allows("shop", "any"));
    }
}
