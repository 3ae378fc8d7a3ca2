//! The resources `Component` and `ClusterComponent`, as the API server knows them.
//!
//! Their shape is a schema, so that `kubectl apply` refuses a misspelt field. What a schema cannot say, the grammars of
//! [`pillion_protocol`] do, and the condition `Accepted` has their words.

mod condition;
mod pull_secret;
mod rejection;
mod spec;
mod value;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, ValidationRule};
use kube::{CustomResource, CustomResourceExt};
use pillion_protocol::{
    component::Image,
    stream::{MAX_COMPONENT, WantedComponent},
    text::encoded,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    condition::{ComponentStatus, Condition, ConditionStatus, ConditionType},
    rejection::{Reason, Rejection},
    spec::{Access, Instances, KeyRef, Limits, SecretRef, ServiceAccount, Spec, ValueFrom, Variable},
    value::{Kind, Map, Source, Unread, Values},
};

/// A component for the pods of its namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "pillion.dev",
    version = "v1alpha1",
    kind = "Component",
    namespaced,
    shortname = "cmp",
    category = "pillion",
    status = "ComponentStatus",
    doc = "A WebAssembly component that pods of its namespace can have as a sidecar, by the annotation pillion.dev/sidecars.",
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".spec.image"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct ComponentSpec {
    /// What it is.
    #[serde(flatten)]
    pub spec: Spec,
}

/// A component for the pods of all namespaces, or of those that it names.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "pillion.dev",
    version = "v1alpha1",
    kind = "ClusterComponent",
    shortname = "ccmp",
    category = "pillion",
    status = "ComponentStatus",
    doc = "A WebAssembly component that pods of all namespaces can have as a sidecar, or of those that access names. A Component of the same name in the pod's namespace comes before it, unless it is final.",
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".spec.image"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.imagePullSecrets) || size(self.imagePullSecrets) == 0",
        "message": "imagePullSecrets: a ClusterComponent has no namespace, and so no Secrets"
    },
    {
        "rule": "(!has(self.env) || self.env.all(each, !has(each.valueFrom))) && (!has(self.config) || self.config.all(each, !has(each.valueFrom)))",
        "message": "valueFrom: a ClusterComponent has no namespace, and so no ConfigMaps or Secrets"
    }
]))]
pub struct ClusterComponentSpec {
    /// What it is.
    #[serde(flatten)]
    pub spec: Spec,
    /// Whose pods may have it; everybody's where this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// No Component of a namespace comes before it: pods of all namespaces that name it have this one, or none where access does not let them.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    pub is_final: bool,
}

/// Both definitions, as YAML for `kubectl apply`.
///
/// # Errors
///
/// None that could be provoked: a definition that cannot be written.
pub fn definitions() -> anyhow::Result<[(&'static str, String); 2]> {
    Ok([
        ("components.yaml", serde_saphyr::to_string(&definition::<Component>())?),
        ("clustercomponents.yaml", serde_saphyr::to_string(&definition::<ClusterComponent>())?),
    ])
}

/// One of them. An annotation has to be able to name what it defines.
fn definition<K: CustomResourceExt>() -> CustomResourceDefinition {
    let mut definition = K::crd();
    let name = ValidationRule {
        rule: "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')".into(),
        message: Some("metadata.name: allowed are at most 63 of a-z, 0-9 and -".into()),
        ..ValidationRule::default()
    };
    for schema in definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()) {
        if let Some(root) = &mut schema.open_api_v3_schema {
            root.x_kubernetes_validations = Some(vec![name.clone()]);
        }
    }
    definition
}

impl Spec {
    /// The component as nodes know it, with what its references refer to.
    ///
    /// # Errors
    ///
    /// What is wrong, with the text at fault and what is allowed.
    pub fn accepted(&self, values: &Values) -> Result<WantedComponent, Rejection> {
        let invalid = |error: serde_json::Error| Rejection::invalid(error.to_string());
        self.check_size_of_values(values)?;
        // How it is pulled is no part of what it is.
        let what = Self { image_pull_secrets: Vec::new(), ..self.with_values(values)? };
        let spec: Box<pillion_protocol::component::ComponentSpec> =
            serde_json::to_value(what).and_then(serde_json::from_value).map_err(invalid)?;
        let login = match &spec.image {
            Image::Reference(image) => self.login(image, values)?,
            Image::Path(path) => {
                return Err(Rejection::invalid(format!(
                    "{path:?} is a path: expected an artifact in a registry, for example \"registry.example/acme/clock:1.0.1\""
                )));
            }
        };
        let confidential = self.sources().iter().any(|source| source.kind == Kind::Secret);
        let wanted = WantedComponent { spec, login, confidential, unproven: false };
        let bytes = encoded(&wanted).map_err(invalid)?;
        if bytes > MAX_COMPONENT {
            let message = format!(
                "its settings, values and login are {bytes} bytes as JSON, where a control character has six: at most {MAX_COMPONENT} are allowed"
            );
            return Err(Rejection::new(Reason::TooLarge, &message));
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(text: Value) -> Spec {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_the_api_server_lets_through_is_read_as_on_a_laptop() {
        let whole = json!({
            "image": "registry.example/acme/clock:1.0.1",
            "env": [{"name": "GREETING", "value": "hello"}],
            "config": [{"name": "theme", "value": "dark"}],
            "limits": {"memory": "64Mi", "cpuTime": "1s", "concurrency": 7},
            "allowedOutboundHosts": ["http://localhost:3000"],
            "instances": {"reuse": 2},
        });
        let wanted = spec(whole.clone()).accepted(&Values::none()).unwrap();
        assert_eq!(wanted, pillion_protocol::component::ComponentSpec::into(serde_json::from_value(whole).unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (json!({"image": "./clock.wasm"}), "\"./clock.wasm\" is a path"),
            (json!({"image": "clock"}), "\"clock\" is no image reference"),
            (json!({"image": "r.example/a:1", "limits": {"memory": "lots"}}), "\"lots\" is no size"),
            (json!({"image": "r.example/a:1", "allowedOutboundHosts": ["nowhere"]}), "\"nowhere\" is no allowed host"),
        ];
        for (text, expected) in table {
            let error = spec(text).accepted(&Values::none()).unwrap_err();
            assert!(error.message.contains(expected), "{error:?}");
        }
    }

    /// With `PILLION_UPDATE_GOLDEN` they are written.
    #[test]
    fn the_chart_has_the_definitions() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/crds");
        for (name, text) in definitions().unwrap() {
            let path = folder.join(name);
            if std::env::var_os("PILLION_UPDATE_GOLDEN").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                there == text,
                "{} is of another version: run this test with PILLION_UPDATE_GOLDEN=1",
                path.display()
            );
        }
    }

    #[test]
    fn the_definitions_have_a_schema_that_knows_every_field() {
        for (name, text) in definitions().unwrap() {
            for word in ["allowedOutboundHosts", "cpuTime", "observedGeneration", "subresources", "shortNames"] {
                assert!(text.contains(word), "{name} lacks {word}:\n{text}");
            }
            assert!(!text.contains("x-kubernetes-preserve-unknown-fields"), "{name} lets everything through:\n{text}");
        }
    }
}
