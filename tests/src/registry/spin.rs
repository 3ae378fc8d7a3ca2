//! Artifacts as `spin registry push` writes them.
//! spinframework/spin: crates/oci/src/client.rs, crates/locked-app/src/locked.rs, crates/manifest/src/normalize.rs.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::artifact::{Artifact, digest};

/// The locked application: a layer, or the config of what old versions of Spin pushed.
const APPLICATION: &str = "application/vnd.fermyon.spin.application.v1+config";

/// A component of an application: its id, its layer's digest, its environment, the hosts that it may call.
pub type SpinComponent<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

impl Artifact {
    /// The media type of a component's layer.
    pub const SPIN_WASM: &'static str = "application/vnd.wasm.content.layer.v1+wasm";

    /// The media type of a static file's layer.
    pub const SPIN_DATA: &'static str = "application/vnd.wasm.content.layer.v1+data";

    /// An application as Spin pushes it: these layers, each with its media type, and after them one with the lock. The config is an
    /// image's, with the lock's digest as a label.
    pub fn spin(lock: &Value, layers: Vec<(&str, Bytes)>) -> Self {
        let application = lock.to_string();
        let config = json!({
            "architecture": "wasm", "os": "Wasip1", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Labels": {"com.fermyon.spin.lockedAppDigest": digest(application.as_bytes())}},
        });
        let artifact = Self::new("application/vnd.oci.image.config.v1+json", config.to_string());
        artifact.layers(layers).layer(APPLICATION, application).named(lock)
    }

    /// An application as old versions of Spin pushed it: the lock is the config.
    pub fn spin_in_config(lock: &Value, layers: Vec<(&str, Bytes)>) -> Self {
        Self::new(APPLICATION, lock.to_string()).layers(layers)
    }

    fn layers(self, layers: Vec<(&str, Bytes)>) -> Self {
        layers.into_iter().fold(self, |artifact, (media_type, bytes)| artifact.layer(media_type, bytes))
    }

    /// With the annotations that Spin infers.
    fn named(self, lock: &Value) -> Self {
        let of = |key: &str| lock.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default();
        self.annotation("org.opencontainers.image.created", "2026-01-01T00:00:00Z")
            .annotation("org.opencontainers.image.title", of("name"))
            .annotation("org.opencontainers.image.version", of("version"))
    }
}

/// A locked application with one HTTP trigger for each route and its component. What else a test needs it adds to the JSON.
pub fn spin_lock(name: &str, components: &[SpinComponent], routes: &[(&str, &str)]) -> Value {
    let components = components.iter().map(|(id, digest, env, hosts)| {
        let mut component = json!({
            "id": id,
            "metadata": {"allowed_outbound_hosts": hosts},
            "source": {"content_type": "application/wasm", "digest": digest},
        });
        let env: Map<String, Value> = env.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        if let (Value::Object(component), false) = (&mut component, env.is_empty()) {
            component.insert("env".into(), env.into());
        }
        component
    });
    let triggers = routes.iter().enumerate().map(|(number, (route, component))| {
        // Spin numbers those of a component that has one already.
        let taken = routes.iter().take(number).any(|(_, other)| other == component);
        let id = if taken { format!("http-trigger{}", number + 1) } else { format!("{component}-http-trigger") };
        json!({"id": id, "trigger_type": "http", "trigger_config": {"component": component, "route": route}})
    });
    json!({
        "spin_lock_version": 0,
        "metadata": {"name": name, "version": "0.1.0", "trigger": {"type": "http"}, "triggers": {}},
        "triggers": triggers.collect::<Vec<_>>(),
        "components": components.collect::<Vec<_>>(),
    })
}
