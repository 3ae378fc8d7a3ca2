//! What a manifest says that an artifact holds. Decides, and does no IO: nothing is pulled before its manifest was understood.
//!
//! Two layouts are known: the CNCF's *Wasm OCI artifact*
//! (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), and the one of Spin applications.

use std::collections::{BTreeMap, BTreeSet};

use oci_client::manifest::{OciDescriptor, OciImageManifest};
use pillion_protocol::digest::Digest;
use serde::Deserialize;

use crate::{
    compiler::{MAX_COMPONENT, facts::Interfaces},
    spin::App,
};

/// The largest manifest, configuration and locked application, in bytes; the specification's own limit for manifests.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// The most layers; Spin's own limit.
const MAX_LAYERS: usize = 500;

/// The configuration of a CNCF Wasm artifact, and the type of its layer.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// A component.
pub const WASM_LAYER: &str = "application/wasm";
/// A Spin application, as a layer or, of old, as the configuration.
pub const SPIN_LOCK: &str = "application/vnd.fermyon.spin.application.v1+config";
/// A component of a Spin application.
pub const SPIN_WASM: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// The types of manifests that are understood, at least to be refused by name: the OCI's and Docker's, images and indexes.
pub const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
                             application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Something that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What an artifact holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A CNCF Wasm artifact: one component.
    Component {
        /// What is said of it.
        config: Blob,
        /// The component.
        layer: Blob,
    },
    /// A Spin application.
    App {
        /// The locked application.
        lock: Blob,
        /// Components by digest.
        components: BTreeMap<Digest, Blob>,
    },
}

/// What tells kinds of manifests apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u32,
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Option<String>,
}

/// Reads a manifest.
///
/// # Errors
///
/// What is wrong with it, for people.
pub fn read(manifest: &[u8]) -> Result<Layout, String> {
    if manifest.len() as u64 > MAX_DOCUMENT {
        return Err(format!("it has {} bytes: at most {MAX_DOCUMENT} are allowed", manifest.len()));
    }
    let kind: Kind = serde_json::from_slice(manifest)
        .map_err(|error| format!("it is no manifest: {}", shown(&error.to_string())))?;
    if kind.schema_version != 2 {
        return Err(format!("its schemaVersion is {}: expected 2", kind.schema_version));
    }
    if let Some(entries) = kind.manifests {
        let digests: Vec<_> = entries.iter().take(5).filter_map(|entry| entry.digest.as_deref()).map(shown).collect();
        return Err(format!(
            "it is an index of {} manifests, for several platforms, and components are for none: name one by its digest: {}",
            entries.len(),
            digests.join(", ")
        ));
    }
    let manifest: OciImageManifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("it is no image manifest: {}", shown(&error.to_string())))?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(format!("it has {} layers: at most {MAX_LAYERS} are allowed", manifest.layers.len()));
    }
    let is = |media_type: &'static str| move |layer: &&OciDescriptor| layer.media_type == media_type;
    let lock = manifest.layers.iter().find(is(SPIN_LOCK));
    if manifest.config.media_type == WASM_CONFIG {
        component(&manifest)
    } else if lock.is_some() || manifest.layers.iter().any(|layer| is(SPIN_WASM)(&layer)) {
        app(lock.unwrap_or(&manifest.config), &manifest.layers)
    } else {
        let layers = manifest.layers.first().map_or("none", |layer| &layer.media_type);
        Err(format!(
            "it is neither a Wasm artifact nor a Spin application: its configuration is {:?} and its first layer {:?}; expected {WASM_CONFIG} \
             with a layer {WASM_LAYER}, or a layer {SPIN_LOCK}",
            shown(&manifest.config.media_type),
            shown(layers)
        ))
    }
}

fn component(manifest: &OciImageManifest) -> Result<Layout, String> {
    match manifest.layers.as_slice() {
        [layer] if layer.media_type == WASM_LAYER => {
            Ok(Layout::Component { config: blob(&manifest.config, MAX_DOCUMENT)?, layer: blob(layer, MAX_COMPONENT)? })
        }
        [layer] => Err(format!("its layer is {:?}: expected {WASM_LAYER}", shown(&layer.media_type))),
        layers => Err(format!("it has {} layers: a Wasm artifact has one", layers.len())),
    }
}

fn app(lock: &OciDescriptor, layers: &[OciDescriptor]) -> Result<Layout, String> {
    // Pushers other than Spin's have written components with the CNCF's type.
    let is_component = |layer: &&OciDescriptor| [SPIN_WASM, WASM_LAYER].contains(&layer.media_type.as_str());
    let components =
        layers.iter().filter(is_component).map(|layer| blob(layer, MAX_COMPONENT).map(|blob| (blob.digest, blob)));
    Ok(Layout::App { lock: blob(lock, MAX_DOCUMENT)?, components: components.collect::<Result<_, _>>()? })
}

fn blob(descriptor: &OciDescriptor, most: u64) -> Result<Blob, String> {
    let digest: Digest = descriptor.digest.parse().map_err(|error| format!("{error}"))?;
    match u64::try_from(descriptor.size) {
        Ok(0) => Err(format!("{digest} is empty")),
        Ok(size) if size <= most => Ok(Blob { digest, size }),
        _ => Err(format!("{digest} has {} bytes: at most {most} are allowed", descriptor.size)),
    }
}

/// Checks the configuration of a CNCF Wasm artifact against its manifest.
///
/// # Errors
///
/// What is wrong with it, for people.
pub fn check_config(config: &[u8], layer: &Blob) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        architecture: Option<String>,
        layer_digests: Option<Vec<String>>,
    }
    let config: Config = serde_json::from_slice(config)
        .map_err(|error| format!("it is no configuration: {}", shown(&error.to_string())))?;
    if let Some(architecture) = config.architecture.filter(|architecture| architecture != "wasm") {
        return Err(format!("its architecture is {:?}: expected \"wasm\"", shown(&architecture)));
    }
    match config.layer_digests.as_deref() {
        None => Ok(()),
        Some([digest]) if *digest == layer.digest.to_string() => Ok(()),
        Some(digests) => Err(format!(
            "its layerDigests are {:?}: the manifest's layer is {}",
            digests.iter().take(3).map(|digest| shown(digest)).collect::<Vec<_>>(),
            layer.digest
        )),
    }
}

/// The layers that hold an application's components, each once.
///
/// # Errors
///
/// A component that is in none, for people.
pub fn layers_of<'a>(app: &App, components: &'a BTreeMap<Digest, Blob>) -> Result<Vec<&'a Blob>, String> {
    let missing = |digest| format!("its component {digest} is in none of its layers");
    let needed: BTreeSet<_> = app.digests().collect();
    needed.into_iter().map(|digest| components.get(&digest).ok_or_else(|| missing(digest))).collect()
}

/// What the configuration of a CNCF Wasm artifact says of its component, if it says that. Whoever pushed it may have written anything.
pub fn interfaces(config: &[u8]) -> Option<Interfaces> {
    #[derive(Deserialize)]
    struct Config {
        component: Option<Interfaces>,
    }
    let config: Config = serde_json::from_slice(config).ok()?;
    config.component.filter(|component| !component.exports.is_empty())
}

/// As much of a stranger's text as an error has room for.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const A: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const B: &str = "sha256:cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34";

    fn descriptor(media_type: &str, digest: &str, size: i64) -> Value {
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn layout(config: Value, layers: Vec<Value>) -> Result<Layout, String> {
        read(&serde_json::to_vec(&json!({"schemaVersion": 2, "config": config, "layers": layers})).unwrap())
    }

    fn blob(digest: &str, size: u64) -> Blob {
        Blob { digest: digest.parse().unwrap(), size }
    }

    #[test]
    fn both_layouts_are_understood() {
        let wasm = layout(descriptor(WASM_CONFIG, A, 2), vec![descriptor(WASM_LAYER, B, 7)]).unwrap();
        assert_eq!(wasm, Layout::Component { config: blob(A, 2), layer: blob(B, 7) });
        let config = descriptor("application/vnd.oci.image.config.v1+json", A, 2);
        let lock = descriptor(SPIN_LOCK, A, 3);
        let data = descriptor("application/vnd.wasm.content.layer.v1+data", A, 5);
        let components = BTreeMap::from([(B.parse().unwrap(), blob(B, 7))]);
        let app = layout(config.clone(), vec![lock, descriptor(SPIN_WASM, B, 7), data]).unwrap();
        assert_eq!(app, Layout::App { lock: blob(A, 3), components: components.clone() });
        let old = layout(config, vec![descriptor(SPIN_WASM, B, 7)]).unwrap();
        assert_eq!(old, Layout::App { lock: blob(A, 2), components });
    }

    #[test]
    fn everything_else_is_refused_by_what_it_is() {
        let wasm = || descriptor(WASM_CONFIG, A, 2);
        let table = [
            (layout(wasm(), vec![]), "it has 0 layers: a Wasm artifact has one"),
            (layout(wasm(), vec![descriptor(WASM_LAYER, B, 7); 2]), "it has 2 layers"),
            (layout(wasm(), vec![descriptor(WASM_LAYER, B, 7); 10_000]), "10000 layers: at most 500"),
            (layout(wasm(), vec![descriptor("text/html", B, 7)]), "its layer is \"text/html\""),
            (layout(wasm(), vec![descriptor(WASM_LAYER, B, 0)]), "is empty"),
            (layout(wasm(), vec![descriptor(WASM_LAYER, B, -1)]), "has -1 bytes"),
            (layout(wasm(), vec![descriptor(WASM_LAYER, B, i64::MAX)]), "at most 104857600 are allowed"),
            (layout(wasm(), vec![descriptor(WASM_LAYER, "sha256:../../x", 7)]), "\"sha256:../../x\" is no digest"),
            (
                layout(descriptor("application/vnd.oci.image.config.v1+json", A, 2), vec![descriptor("a/tar", B, 7)]),
                "\"a/tar\"",
            ),
            (read(b"<html>"), "no manifest"),
            (read(b"{\"schemaVersion\": 1}"), "its schemaVersion is 1"),
            (read(&vec![b' '; 5 << 20]), "5242880 bytes: at most 4194304"),
            (read(format!("{{\"schemaVersion\": 2, \"manifests\": [{{\"digest\": \"{A}\"}}]}}").as_bytes()), A),
        ];
        for (read, expected) in table {
            let error = read.unwrap_err();
            assert!(error.contains(expected) && error.len() < 1_000, "{error}");
        }
    }

    #[test]
    fn a_configuration_must_be_of_this_artifact() {
        let layer = blob(B, 7);
        let check = |config: Value| check_config(&serde_json::to_vec(&config).unwrap(), &layer);
        check(json!({"architecture": "wasm", "os": "wasip2", "layerDigests": [B]})).unwrap();
        check(json!({})).unwrap();
        assert!(check(json!({"architecture": "amd64"})).unwrap_err().contains("\"amd64\""));
        assert!(check(json!({"layerDigests": [A]})).unwrap_err().contains("layerDigests"));
        assert!(check_config(b"no JSON", &layer).unwrap_err().contains("no configuration"));
    }
}
