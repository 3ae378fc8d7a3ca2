//! What a manifest says that an artifact holds. Decides, and does no IO: nothing is pulled before its manifest was understood.
//!
//! Two layouts are known: the CNCF's *Wasm OCI artifact*
//! (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), and the one of Spin applications. What other tools push is taken
//! where it cannot mean two things: one layer that is a component, whatever is said beside it (`oras push`, wasm-to-oci), and an index that
//! leads to one thing.

use std::collections::{BTreeMap, BTreeSet};

use oci_client::manifest::{OciDescriptor, OciImageManifest};
use pillion_protocol::digest::Digest;
use serde::Deserialize;

use crate::{
    compiler::{MAX_COMPONENT, facts::Interfaces},
    spin::App,
};

/// What is wrong with an index that leads to another one.
pub const INDEX_OF_INDEX: &str = "it is an index that leads to another index: name a manifest by its digest";

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

/// What wasm-to-oci and its relatives called a layer; they also used Spin's name.
const WASM_MODULE: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// The configurations of container images.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

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
    /// A CNCF Wasm artifact, or one like it: one component.
    Component {
        /// What is said of it, where that is the CNCF's.
        config: Option<Blob>,
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
    /// An index that leads to this manifest only.
    Index(Digest),
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
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Entry {
    fn is_wasm(&self) -> bool {
        self.platform.as_ref().is_some_and(|of| of.os.starts_with("wasi") || of.architecture.starts_with("wasm"))
    }
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
        return index(&entries);
    }
    let manifest: OciImageManifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("it is no image manifest: {}", shown(&error.to_string())))?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(format!("it has {} layers: at most {MAX_LAYERS} are allowed", manifest.layers.len()));
    }
    let is = |media_type: &'static str| move |layer: &&OciDescriptor| layer.media_type == media_type;
    let lock = manifest.layers.iter().find(is(SPIN_LOCK));
    let config = manifest.config.media_type.as_str();
    let is_image = IMAGE_CONFIGS.contains(&config);
    // Old versions of Spin had the lock as the configuration, and called that an image's.
    let is_old = (is_image || config == SPIN_LOCK) && manifest.layers.iter().any(|layer| is(SPIN_WASM)(&layer));
    match manifest.layers.as_slice() {
        _ if config == WASM_CONFIG => component(&manifest),
        layers if lock.is_some() || is_old => app(lock.unwrap_or(&manifest.config), layers),
        [layer] if [WASM_LAYER, WASM_MODULE, SPIN_WASM].contains(&layer.media_type.as_str()) => {
            Ok(Layout::Component { config: None, layer: blob(layer, MAX_COMPONENT)? })
        }
        layers => Err(format!(
            "it is neither a Wasm artifact nor a Spin application: its configuration is {:?} and its first layer {:?}, of {}; {}push a \
             component by: pillion push FILE.wasm REGISTRY/REPOSITORY:TAG",
            shown(config),
            shown(layers.first().map_or("none", |layer| &layer.media_type)),
            layers.len(),
            if is_image { "components are not taken out of container images: " } else { "" }
        )),
    }
}

/// What an index leads to: its one manifest, or the one for Wasm.
fn index(entries: &[Entry]) -> Result<Layout, String> {
    let wasm: Vec<_> = entries.iter().filter(|entry| entry.is_wasm()).collect();
    let one = match (entries, wasm.as_slice()) {
        ([one], _) => one.digest.as_deref(),
        (_, [one]) => one.digest.as_deref(),
        _ => None,
    };
    if let Some(one) = one {
        return one.parse().map(Layout::Index).map_err(|error| format!("{error}"));
    }
    let named = if wasm.is_empty() { entries.iter().collect() } else { wasm };
    let digests: Vec<_> = named.iter().take(5).filter_map(|entry| entry.digest.as_deref()).map(shown).collect();
    Err(format!(
        "it is an index of {} manifests, and none or more than one is for Wasm: name one by its digest: {}",
        entries.len(),
        digests.join(", ")
    ))
}

fn component(manifest: &OciImageManifest) -> Result<Layout, String> {
    match manifest.layers.as_slice() {
        [layer] if layer.media_type == WASM_LAYER => {
            let config = Some(blob(&manifest.config, MAX_DOCUMENT)?);
            Ok(Layout::Component { config, layer: blob(layer, MAX_COMPONENT)? })
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
        assert_eq!(wasm, Layout::Component { config: Some(blob(A, 2)), layer: blob(B, 7) });
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
    fn what_other_tools_push_is_taken_where_it_cannot_mean_two_things() {
        let bare = Layout::Component { config: None, layer: blob(B, 7) };
        let table = [
            ("application/vnd.oci.empty.v1+json", WASM_LAYER),
            ("application/vnd.unknown.config.v1+json", WASM_LAYER),
            ("application/vnd.oci.image.config.v1+json", WASM_LAYER),
            ("application/vnd.wasm.config.v1+json", SPIN_WASM),
            ("application/vnd.wasm.config.v1+json", WASM_MODULE),
        ];
        for (config, layer) in table {
            assert_eq!(
                layout(descriptor(config, A, 2), vec![descriptor(layer, B, 7)]).unwrap(),
                bare,
                "{config} {layer}"
            );
            let two = layout(descriptor(config, A, 2), vec![descriptor(WASM_LAYER, B, 7); 2]).unwrap_err();
            assert!(two.contains("of 2; ") && two.contains("pillion push FILE.wasm"), "{two}");
        }
        let image = descriptor("application/vnd.oci.image.config.v1+json", A, 2);
        let error = layout(image, vec![descriptor("application/vnd.oci.image.layer.v1.tar+gzip", B, 7)]).unwrap_err();
        assert!(error.contains("not taken out of container images: push a component by"), "{error}");
    }

    #[test]
    fn an_index_is_followed_where_it_leads_to_one_thing() {
        let entry = |digest: &str, os: &str, architecture: &str| json!({"digest": digest, "platform": {"os": os, "architecture": architecture}});
        let index = |entries: Vec<Value>| {
            read(&serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap())
        };
        let (a, b) = (Layout::Index(A.parse().unwrap()), Layout::Index(B.parse().unwrap()));
        assert_eq!(index(vec![json!({"digest": A})]).unwrap(), a);
        assert_eq!(index(vec![entry(A, "unknown", "unknown"), entry(B, "wasip1", "wasm")]).unwrap(), b);
        let others = vec![entry(A, "linux", "amd64"), entry(B, "linux", "arm64")];
        let error = index(others).unwrap_err();
        assert!(error.contains(A) && error.contains(B) && error.contains("by its digest"), "{error}");
        let error =
            index(vec![entry(A, "wasi", "wasm"), entry(A, "linux", "arm64"), entry(B, "wasip2", "wasm")]).unwrap_err();
        assert!(error.contains("an index of 3 manifests") && error.contains(B), "{error}");
        assert!(index(vec![json!({"digest": "sha256:../x"})]).unwrap_err().contains("is no digest"));
        assert!(index(vec![]).unwrap_err().contains("an index of 0 manifests"));
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
