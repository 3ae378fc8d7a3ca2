//! Components as `pillion run` reads them.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::place;

/// A component to be written as YAML.
#[derive(Clone, Debug)]
pub struct Component {
    name: String,
    image: PathBuf,
    env: Vec<Value>,
    config: Vec<Value>,
    hosts: Vec<String>,
    limits: Map<String, Value>,
    reuse: u32,
}

impl Component {
    /// A guest of `tests/guests` under a name.
    ///
    /// # Errors
    ///
    /// A guest that was not built.
    pub fn guest(name: &str, guest: &str) -> Result<Self> {
        Ok(Self::file(name, place::guest(guest)?))
    }

    /// A file under a name.
    pub fn file(name: &str, image: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            env: Vec::new(),
            config: Vec::new(),
            hosts: Vec::new(),
            limits: Map::new(),
            reuse: 1,
        }
    }

    /// An artifact in a registry under a name.
    pub fn image(name: &str, reference: &str) -> Self {
        Self::file(name, reference)
    }

    /// With a limit: a key of `spec.limits` and its value.
    #[must_use]
    pub fn limit(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.limits.insert(key.into(), value.into());
        self
    }

    /// With so many requests for each instance.
    #[must_use]
    pub fn instances(mut self, reuse: u32) -> Self {
        self.reuse = reuse;
        self
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(json!({"name": name, "value": value}));
        self
    }

    /// With a value for `wasi:config`.
    #[must_use]
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.push(json!({"name": name, "value": value}));
        self
    }

    /// With an entry in `allowedOutboundHosts`.
    #[must_use]
    pub fn may_call(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Of a copy of its file in `folder`.
    ///
    /// # Errors
    ///
    /// It cannot be copied.
    pub fn copied_to(mut self, folder: &std::path::Path) -> Result<Self> {
        let copy = folder.join(format!("{}.wasm", self.name));
        std::fs::copy(&self.image, &copy)?;
        self.image = copy;
        Ok(self)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resource. JSON is YAML.
    pub fn yaml(&self) -> String {
        let Self { name, image, env, config, hosts, limits, reuse } = self;
        let spec = json!({
            "image": image, "env": env, "config": config, "allowedOutboundHosts": hosts, "limits": limits,
            "instances": {"reuse": reuse},
        });
        let resource = json!({
            "apiVersion": "pillion.dev/v1alpha1", "kind": "Component", "metadata": {"name": name}, "spec": spec,
        });
        format!("{resource:#}\n")
    }
}
