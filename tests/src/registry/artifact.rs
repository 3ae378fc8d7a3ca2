//! Content to be pushed, also content that is wrong.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use wasmparser::{Parser, Payload};

use super::{FaultProxy, Registry, remote::Push};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An artifact, or an index of several.
///
/// What it claims may be false. docker-registry 2.8.2 takes false sizes and media types of config and layers, layers that are
/// repeated, empty or of any kind, a config that is no JSON, unknown fields, and annotations. It refuses
///
/// - a manifest or index that names what it does not have: `MANIFEST_BLOB_UNKNOWN`;
/// - a digest that is none, another `schemaVersion`: 500;
/// - another `mediaType` than the request's, or one that it does not know, or `manifests` beside `layers`: `MANIFEST_INVALID`;
/// - a manifest above 4 MiB: `MANIFEST_INVALID`.
///
/// Such answers are made by a [`FaultProxy`] with [`super::Fault::ReplaceBody`], or by changing the file [`Registry::stored`] after
/// a push.
#[derive(Clone, Debug)]
pub struct Artifact {
    media_type: String,
    config: Option<Part>,
    layers: Vec<Part>,
    manifests: Vec<(Artifact, Platform)>,
    fields: Map<String, Value>,
    annotations: Map<String, Value>,
    mistake: Option<String>,
}

/// A blob and what a manifest says of it.
#[derive(Clone, Debug)]
struct Part {
    media_type: String,
    bytes: Bytes,
    size: Option<u64>,
    digest: Option<String>,
    annotations: Map<String, Value>,
}

/// What an entry of an index is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux` or `wasip2`.
    pub os: String,
    /// Such as `amd64` or `wasm`.
    pub architecture: String,
}

impl Platform {
    /// A platform.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into() }
    }
}

/// The digest of these bytes, as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Artifact {
    /// An artifact with a config and no layers.
    pub fn new(config_media_type: &str, config: impl Into<Bytes>) -> Self {
        Self {
            media_type: IMAGE.into(),
            config: Some(Part::new(config_media_type, config.into())),
            layers: Vec::new(),
            manifests: Vec::new(),
            fields: Map::new(),
            annotations: Map::new(),
            mistake: None,
        }
    }

    /// A component in the layout of CNCF's TAG Runtime, as `wkg oci push` writes it. The config lists what the component
    /// exports and imports; nothing for bytes that are no component.
    /// <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>
    pub fn wasm(component: impl Into<Bytes>) -> Self {
        let component = component.into();
        let (exports, imports) = interfaces(&component);
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [digest(&component)],
            "component": {"exports": exports, "imports": imports},
        });
        Self::new("application/vnd.wasm.config.v0+json", config.to_string()).layer("application/wasm", component)
    }

    /// An OCI image index; config and layers have no place in it.
    pub fn index(manifests: Vec<(Artifact, Platform)>) -> Self {
        let mut index = Self::new("", Bytes::new()).media_type(INDEX);
        index.config = None;
        index.manifests = manifests;
        index
    }

    /// With another config.
    #[must_use]
    pub fn config(mut self, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        self.config = Some(Part::new(media_type, bytes.into()));
        self
    }

    /// With another media type of the whole, such as Docker's: `application/vnd.docker.distribution.manifest.v2+json`.
    #[must_use]
    pub fn media_type(mut self, media_type: &str) -> Self {
        self.media_type = media_type.into();
        self
    }

    /// With one more layer.
    #[must_use]
    pub fn layer(mut self, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        self.layers.push(Part::new(media_type, bytes.into()));
        self
    }

    /// With all layers so many times. The bytes are pushed once.
    #[must_use]
    pub fn repeat_layers(mut self, times: usize) -> Self {
        let many = self.layers.len() * times;
        self.layers = self.layers.iter().cycle().take(many).cloned().collect();
        self
    }

    /// With a size in the manifest that need not be true, for a layer counted from 0.
    #[must_use]
    pub fn claim_size(self, layer: usize, size: u64) -> Self {
        self.set(layer, |part| part.size = Some(size))
    }

    /// With a digest in the manifest that need not be true, for a layer counted from 0. The registry takes it if it has a blob
    /// of that digest in the repository, such as that of another layer; otherwise it refuses to.
    #[must_use]
    pub fn claim_digest(self, layer: usize, digest: &str) -> Self {
        self.set(layer, |part| part.digest = Some(digest.into()))
    }

    /// With a size of the config in the manifest that need not be true.
    #[must_use]
    pub fn claim_config_size(mut self, size: u64) -> Self {
        if let Some(config) = &mut self.config {
            config.size = Some(size);
        }
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// With an annotation of a layer counted from 0.
    #[must_use]
    pub fn layer_annotation(self, layer: usize, name: &str, value: &str) -> Self {
        self.set(layer, |part| _ = part.annotations.insert(name.into(), value.into()))
    }

    /// With another field of the manifest, such as `artifactType`, or another value of one that it has.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// The digest of a layer's bytes, whatever the manifest claims.
    ///
    /// # Errors
    ///
    /// No such layer.
    pub fn layer_digest(&self, layer: usize) -> Result<String> {
        Ok(digest(&self.layers.get(layer).with_context(|| format!("there is no layer {layer}"))?.bytes))
    }

    /// The manifest, or index, as it is pushed.
    ///
    /// # Errors
    ///
    /// A claim about a layer that there is not.
    pub fn manifest(&self) -> Result<Bytes> {
        if let Some(mistake) = &self.mistake {
            bail!("{mistake}");
        }
        let mut manifest = Map::new();
        manifest.insert("schemaVersion".into(), 2.into());
        manifest.insert("mediaType".into(), self.media_type.as_str().into());
        if let Some(config) = &self.config {
            manifest.insert("config".into(), config.descriptor());
            manifest.insert("layers".into(), self.layers.iter().map(Part::descriptor).collect());
        } else {
            let entries = self.manifests.iter().map(|(artifact, platform)| {
                let manifest = artifact.manifest()?;
                Ok(json!({
                    "mediaType": artifact.media_type, "digest": digest(&manifest), "size": manifest.len(),
                    "platform": {"os": platform.os, "architecture": platform.architecture},
                }))
            });
            manifest.insert("manifests".into(), entries.collect::<Result<Value>>()?);
        }
        if !self.annotations.is_empty() {
            manifest.insert("annotations".into(), self.annotations.clone().into());
        }
        manifest.extend(self.fields.clone());
        Ok(serde_json::to_vec(&manifest)?.into())
    }

    /// Pushes it under `NAME:TAG`, or under its digest for a reference without a tag. Returns the manifest's digest.
    ///
    /// # Errors
    ///
    /// What the registry refuses, with its words.
    pub async fn push(&self, registry: &Registry, reference: &str) -> Result<String> {
        let (name, tag) = split(reference);
        self.push_over(&mut registry.remote.push(name).await?, tag).await
    }

    /// Pushes it through a proxy.
    ///
    /// # Errors
    ///
    /// What the registry refuses, with its words, or a fault.
    pub async fn push_through(&self, proxy: &FaultProxy, reference: &str) -> Result<String> {
        let (name, tag) = split(reference);
        self.push_over(&mut proxy.remote().push(name).await?, tag).await
    }

    async fn push_over(&self, push: &mut Push<'_>, tag: Option<&str>) -> Result<String> {
        for (artifact, _) in &self.manifests {
            Box::pin(artifact.push_over(push, None)).await?;
        }
        let mut pushed = BTreeSet::new();
        for part in self.config.iter().chain(&self.layers) {
            if pushed.insert(digest(&part.bytes)) {
                push.blob(part.bytes.clone()).await?;
            }
        }
        let manifest = self.manifest()?;
        let digest = digest(&manifest);
        push.manifest(tag.unwrap_or(&digest), &self.media_type, manifest).await?;
        Ok(digest)
    }

    fn set(mut self, layer: usize, set: impl FnOnce(&mut Part)) -> Self {
        match self.layers.get_mut(layer) {
            Some(part) => set(part),
            None => self.mistake = Some(format!("there is no layer {layer} to say something of")),
        }
        self
    }
}

impl Part {
    fn new(media_type: &str, bytes: Bytes) -> Self {
        Self { media_type: media_type.into(), bytes, size: None, digest: None, annotations: Map::new() }
    }

    fn descriptor(&self) -> Value {
        let digest = self.digest.clone().unwrap_or_else(|| digest(&self.bytes));
        let size = self.size.unwrap_or(self.bytes.len() as u64);
        let mut descriptor = json!({"mediaType": self.media_type, "digest": digest, "size": size});
        if let (Value::Object(fields), false) = (&mut descriptor, self.annotations.is_empty()) {
            fields.insert("annotations".into(), self.annotations.clone().into());
        }
        descriptor
    }
}

fn split(reference: &str) -> (&str, Option<&str>) {
    reference.split_once(':').map_or((reference, None), |(name, tag)| (name, Some(tag)))
}

/// The names that a component exports and imports, in its order, without those of what it is made of.
fn interfaces(component: &[u8]) -> (Vec<String>, Vec<String>) {
    let (mut exports, mut imports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 0 => {
                exports.extend(section.into_iter().flatten().map(|export| export.name.name.to_owned()));
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                imports.extend(section.into_iter().flatten().map(|import| import.name.name.to_owned()));
            }
            _ => {}
        }
    }
    (exports, imports)
}
