//! The `Component` and `ClusterComponent` resources: one YAML shape for the laptop and the cluster.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    hosts::Allowance,
    name::Name,
    quantity::{ByteSize, Span},
    reference::{Reference, ReferenceError},
};

/// The API group and version of both resources.
pub const API_VERSION: &str = "pillion.dev/v1alpha1";

/// A resource as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Component {
    /// Always [`API_VERSION`].
    pub api_version: ApiVersion,
    /// Whether one namespace or the whole cluster sees it.
    pub kind: Kind,
    /// Its name and where it is.
    pub metadata: Metadata,
    /// What it is.
    pub spec: ComponentSpec,
}

/// The one version there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// [`API_VERSION`]
    #[serde(rename = "pillion.dev/v1alpha1")]
    V1Alpha1,
}

/// Whether one namespace or the whole cluster sees a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// For one namespace.
    Component,
    /// For the cluster.
    ClusterComponent,
}

/// The part of Kubernetes' object metadata that means something here. Fields that only the API server writes are let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The component's name.
    pub name: Name,
    /// The namespace of a [`Kind::Component`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What a component is: its code, its settings, its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComponentSpec {
    /// Where the code is.
    pub image: Image,
    /// The guest's environment; nothing else is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<Variable>,
    /// What the guest reads through `wasi:config`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<Variable>,
    /// What one request, and one binding, may use.
    #[serde(default)]
    pub limits: Limits,
    /// Where the guest may call out to; empty means nowhere. What an artifact asks for itself counts only within it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_outbound_hosts: Vec<Allowance>,
    /// How instances are used.
    #[serde(default)]
    pub instances: Instances,
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// Where a component's code is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Image {
    /// An artifact in a registry.
    Reference(Reference),
    /// A file: begins with `./`, `../` or `/`. For `pillion run` and `pillion host` only.
    Path(String),
}

/// A text that is no [`Image`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}, or a path that begins with ./, ../ or /")]
pub struct ImageError(#[from] ReferenceError);

/// How many requests an instance serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instances {
    /// An opt-in for p3 components: the most requests that one instance serves, one after another. 1, the default, makes an
    /// instance for each request, so that nothing passes from one request to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
}

/// A number of requests per instance: 1–10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Reuse(u32);

/// What one request, and one binding, may use. Defaults and what is allowed: SPECIFICATION.md §1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Linear memories and tables of one request together.
    pub memory: Bounded<ByteSize, MemoryRange>,
    /// CPU time of one request.
    pub cpu_time: Bounded<Span, HourRange>,
    /// From the request's head to the response's head.
    pub head_timeout: Bounded<Span, HourRange>,
    /// Between two bytes of a body.
    pub idle_timeout: Bounded<Span, HourRange>,
    /// The whole request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<Bounded<Span, DayRange>>,
    /// Work after the response's last byte.
    pub linger_timeout: Bounded<Span, LingerRange>,
    /// Requests of one binding at once.
    pub concurrency: Bounded<u32, ConcurrencyRange>,
    /// Requests of one binding that wait for a place.
    pub queue: Bounded<u32, QueueRange>,
    /// A request's head.
    pub headers: Bounded<ByteSize, HeaderRange>,
}

/// A value that was checked against the range `R` when it was read.
pub struct Bounded<T, R> {
    value: T,
    range: std::marker::PhantomData<R>,
}

/// What a [`Bounded`] value may be.
pub trait Range<T> {
    /// From the least to the most, both allowed.
    const ALLOWED: RangeInclusive<T>;
}

macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $least:expr, $most:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name;
        impl Range<$type> for $name {
            const ALLOWED: RangeInclusive<$type> = $least..=$most;
        }
    )*};
}

const fn ms(ms: u64) -> Span {
    Span::new(Duration::from_millis(ms))
}

const HOUR_MS: u64 = 3_600_000;

ranges! {
    /// 1Mi–4Gi: a linear memory of 32-bit WebAssembly holds no more.
    MemoryRange: ByteSize = ByteSize::mib(1), ByteSize::mib(4096);
    /// 1ms–1h.
    HourRange: Span = ms(1), ms(HOUR_MS);
    /// 1ms–24h.
    DayRange: Span = ms(1), ms(24 * HOUR_MS);
    /// 0s–1h.
    LingerRange: Span = ms(0), ms(HOUR_MS);
    /// 1–10,000.
    ConcurrencyRange: u32 = 1, 10_000;
    /// 0–10,000.
    QueueRange: u32 = 0, 10_000;
    /// 8Ki–1Mi: the HTTP/1.1 parser needs 8 KiB.
    HeaderRange: ByteSize = ByteSize::kib(8), ByteSize::mib(1);
}

impl<T: Copy, R> Bounded<T, R> {
    /// The value.
    pub fn get(self) -> T {
        self.value
    }

    const fn known(value: T) -> Self {
        Self { value, range: std::marker::PhantomData }
    }
}

impl<T: Copy, R> Clone for Bounded<T, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Copy, R> Copy for Bounded<T, R> {}

impl<T: PartialEq, R> PartialEq for Bounded<T, R> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq, R> Eq for Bounded<T, R> {}

impl<T: fmt::Debug, R> fmt::Debug for Bounded<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: Serialize, R> Serialize for Bounded<T, R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de, T, R> Deserialize<'de> for Bounded<T, R>
where
    T: Copy + Deserialize<'de> + fmt::Display + PartialOrd + 'static,
    R: Range<T>,
{
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = T::deserialize(deserializer)?;
        let allowed = R::ALLOWED;
        if allowed.contains(&value) {
            return Ok(Self::known(value));
        }
        let (least, most) = (allowed.start(), allowed.end());
        Err(serde::de::Error::custom(format!("{value} is out of range: allowed are {least} to {most}")))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Bounded::known(ByteSize::mib(128)),
            cpu_time: Bounded::known(ms(1_000)),
            head_timeout: Bounded::known(ms(10_000)),
            idle_timeout: Bounded::known(ms(30_000)),
            total_timeout: None,
            linger_timeout: Bounded::known(ms(5_000)),
            concurrency: Bounded::known(100),
            queue: Bounded::known(100),
            headers: Bounded::known(ByteSize::kib(64)),
        }
    }
}

impl ComponentSpec {
    /// A component with every setting at its default.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            env: Vec::new(),
            config: Vec::new(),
            limits: Limits::default(),
            allowed_outbound_hosts: Vec::new(),
            instances: Instances::default(),
        }
    }
}

impl Instances {
    /// The most requests that one instance serves.
    pub fn requests_each(self) -> u32 {
        self.reuse.map_or(1, |reuse| reuse.0)
    }
}

impl TryFrom<u32> for Reuse {
    type Error = String;

    fn try_from(requests: u32) -> Result<Self, String> {
        match requests {
            1..=10_000 => Ok(Self(requests)),
            _ => Err(format!("{requests} is out of range: allowed are 1 to 10000")),
        }
    }
}

impl From<Reuse> for u32 {
    fn from(reuse: Reuse) -> Self {
        reuse.0
    }
}

impl TryFrom<String> for Image {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        if ["./", "../", "/"].iter().any(|start| text.starts_with(start)) {
            return Ok(Self::Path(text));
        }
        Ok(Self::Reference(text.parse()?))
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        match image {
            Image::Reference(reference) => reference.into(),
            Image::Path(path) => path,
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => reference.fmt(f),
            Self::Path(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn component(spec: Value) -> Result<Component, serde_json::Error> {
        let api_version = API_VERSION;
        serde_json::from_value(
            json!({"apiVersion": api_version, "kind": "Component", "metadata": {"name": "clock"}, "spec": spec}),
        )
    }

    #[test]
    fn what_is_not_said_has_a_sane_default() {
        let limits = component(json!({"image": "./clock.wasm"})).unwrap().spec.limits;
        assert_eq!(limits, Limits::default());
        assert_eq!(limits.memory.get(), ByteSize::mib(128));
    }

    #[test]
    fn a_whole_resource_survives_being_written_and_read() {
        let text = json!({
            "image": "registry.example/acme/x:1.0",
            "env": [{"name": "A", "value": "b"}],
            "config": [{"name": "theme", "value": "dark"}],
            "limits": {"memory": "64Mi", "cpuTime": "50ms", "totalTimeout": "1m", "concurrency": 7, "queue": 0},
            "allowedOutboundHosts": ["http://localhost:3000"],
            "instances": {"reuse": 128}
        });
        let read = component(text).unwrap();
        assert_eq!(serde_json::from_value::<Component>(serde_json::to_value(&read).unwrap()).unwrap(), read);
    }

    #[test]
    fn every_error_names_what_is_wrong_and_what_is_allowed() {
        let table = [
            (json!({}), "missing field `image`"),
            (json!({"image": "clock.wasm"}), "\"clock.wasm\" is no image reference"),
            (json!({"image": "r.example/a:1:2"}), "\"a:1\" is no part of a repository"),
            (json!({"image": "./a", "memory": "1Gi"}), "unknown field `memory`"),
            (json!({"image": "./a", "limits": {"memroy": "1Gi"}}), "unknown field `memroy`"),
            (json!({"image": "./a", "limits": {"memory": "1"}}), "1 is out of range: allowed are 1Mi to 4Gi"),
            (json!({"image": "./a", "limits": {"memory": "lots"}}), "\"lots\" is no size"),
            (json!({"image": "./a", "limits": {"cpuTime": "0s"}}), "0s is out of range: allowed are 1ms to 1h"),
            (json!({"image": "./a", "limits": {"concurrency": 0}}), "0 is out of range: allowed are 1 to 10000"),
            (json!({"image": "./a", "allowedOutboundHosts": ["nowhere"]}), "\"nowhere\" is no allowed host"),
            (json!({"image": "./a", "instances": {"reuse": 0}}), "0 is out of range: allowed are 1 to 10000"),
        ];
        for (spec, expected) in table {
            let error = component(spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let other =
            json!({"apiVersion": "v1", "kind": "Component", "metadata": {"name": "a"}, "spec": {"image": "./a"}});
        let error = serde_json::from_value::<Component>(other).unwrap_err().to_string();
        assert!(error.contains("`v1`") && error.contains(API_VERSION), "{error}");
    }
}
