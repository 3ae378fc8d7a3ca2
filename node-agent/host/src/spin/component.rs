//! A component of a locked application.
//!
//! The shape: `crates/locked-app/src/locked.rs` of spinframework/spin.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    lock_file::optional,
    locked::{AppError, Component},
    shown,
};

#[derive(Deserialize)]
pub(super) struct LockedComponent {
    pub(super) id: String,
    #[serde(default)]
    metadata: Map<String, Value>,
    source: LockedSource,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<LockedFile>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    dependencies: Map<String, Value>,
    #[serde(default)]
    trigger_dependencies: Map<String, Value>,
    #[serde(default)]
    host_requirements: Map<String, Value>,
}

#[derive(Deserialize)]
struct LockedSource {
    inline: Option<String>,
    digest: Option<String>,
}

#[derive(Deserialize)]
struct LockedFile {
    path: String,
}

impl LockedComponent {
    /// The component, if it can be served.
    pub(super) fn checked(self) -> Result<Component, AppError> {
        let component = shown(&self.id);
        let wrong = |why: String| AppError::Component { component: component.clone(), why };
        optional(&format!("component {component:?}"), &self.host_requirements)?;
        if let Some(name) = self.dependencies.keys().next() {
            let name = shown(name);
            return Err(wrong(format!("is not composed with {name:?}: push it with `spin registry push --compose`")));
        }
        if let Some(name) = self.trigger_dependencies.keys().next() {
            return Err(wrong(format!("depends on {:?}: middleware is not served", shown(name))));
        }
        if let Some(file) = self.files.first() {
            return Err(wrong(format!("has the file {:?}: static files are not served", shown(&file.path))));
        }
        for key in ["key_value_stores", "databases", "ai_models"] {
            if let Some(value) = texts(&self.metadata, key).map_err(wrong)?.first() {
                return Err(wrong(format!("uses {value:?} of {key}: these are not served", value = shown(value))));
            }
        }
        let mut hosts = texts(&self.metadata, "allowed_outbound_hosts").map_err(wrong)?;
        hosts.extend(texts(&self.metadata, "allowed_http_hosts").map_err(wrong)?.into_iter().flat_map(both_schemes));
        let source = match (self.source.digest, self.source.inline) {
            (Some(digest), _) => {
                digest.parse().map_err(|source| AppError::Digest { component: component.clone(), source })?
            }
            // Spin does so with content of up to 128 bytes.
            (None, Some(_)) => {
                return Err(wrong("is in the application itself: no component that serves HTTP is so small".into()));
            }
            (None, None) => {
                return Err(wrong("has a source with neither digest nor inline: push it to a registry".into()));
            }
        };
        Ok(Component {
            source,
            env: self.env.into_iter().collect(),
            config: self.config,
            allowed_outbound_hosts: hosts,
        })
    }
}

/// An entry of `allowed_http_hosts`, which manifests had before `allowed_outbound_hosts`: a host for http and for https, as
/// `crates/manifest/src/compat.rs` reads it. What is no such host stays as it is, and is refused like any other text.
fn both_schemes(entry: String) -> Vec<String> {
    match entry.strip_prefix("http://").or_else(|| entry.strip_prefix("https://")).unwrap_or(&entry) {
        host if host.contains("://") || host == "insecure:allow-all" => vec![entry],
        host => vec![format!("http://{host}"), format!("https://{host}")],
    }
}

/// A list of texts in a component's metadata; empty if it is not there.
fn texts(metadata: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let Some(value) = metadata.get(key).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list = value.as_array().and_then(|list| list.iter().map(|item| item.as_str().map(ToOwned::to_owned)).collect());
    list.ok_or_else(|| format!("has {key} that is no list of texts"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::lock_file::tests::{TOYS, changed, refused},
        *,
    };

    #[test]
    fn a_component_is_read_as_it_is_written() {
        let app = changed(&[]).unwrap();
        let texts =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
        let expected = Component {
            source: TOYS.parse().unwrap(),
            env: texts(&[("COLOR", "{{ not a template }}"), ("LOG", "info")]),
            config: texts(&[("auth", "Basic {{ password }}"), ("greeting", "hello")]).into_iter().collect(),
            allowed_outbound_hosts: vec!["https://{{ api_host }}".into(), "http://cache.example:8080/".into()],
        };
        assert_eq!(app.components["toys"], expected);
    }

    #[test]
    fn hosts_of_old_manifests_are_for_both_schemes() {
        let old = json!(["a.example", "http://b.example:8080", "insecure:allow-all", "ftp://c"]);
        let app = changed(&[("/components/1/metadata", json!({"allowed_http_hosts": old}))]).unwrap();
        let expected = [
            "http://a.example",
            "https://a.example",
            "http://b.example:8080",
            "https://b.example:8080",
            "insecure:allow-all",
            "ftp://c",
        ];
        assert_eq!(app.components["tiny"].allowed_outbound_hosts, expected);
    }

    #[test]
    fn a_component_that_cannot_be_served_is_refused_by_name() {
        refused(&[
            (
                "/components/0/dependencies",
                json!({"a:b/c": {}}),
                "component \"toys\" is not composed with \"a:b/c\": push it with",
            ),
            ("/components/0/trigger_dependencies", json!({"middleware": []}), "middleware is not served"),
            (
                "/components/0/host_requirements",
                json!({"middleware": "required"}),
                "component \"toys\" requires \"middleware\"",
            ),
            (
                "/components/0/files",
                json!([{"path": "/a.html"}, {"path": "/b"}]),
                "has the file \"/a.html\": static files are not",
            ),
            ("/components/0/metadata/key_value_stores", json!(["default"]), "uses \"default\" of key_value_stores"),
            ("/components/0/metadata/databases", json!(["db"]), "uses \"db\" of databases: these are not served"),
            ("/components/0/metadata/ai_models", json!(["llama2-chat"]), "uses \"llama2-chat\" of ai_models"),
            ("/components/0/metadata/ai_models", json!("llama2-chat"), "has ai_models that is no list of texts"),
            (
                "/components/0/metadata/allowed_outbound_hosts",
                json!([7]),
                "has allowed_outbound_hosts that is no list of texts",
            ),
            (
                "/components/0/source",
                json!({"source": "file:///a.wasm"}),
                "has a source with neither digest nor inline",
            ),
            (
                "/components/0/source/digest",
                json!("sha256:../../x"),
                "component \"toys\": \"sha256:../../x\" is no digest",
            ),
        ]);
    }
}
