//! A component into a registry, as a CNCF Wasm artifact. The same component is the same artifact each time: nothing of the machine or
//! the hour is in it.

use std::time::Duration;

use bytes::Bytes;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use pillion_protocol::{digest::Digest, reference::Reference};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    client::{Ask, Operation, Remote},
    manifest::{WASM_CONFIG, WASM_LAYER},
    message::{Failure, Source, Step},
    problem::Problem,
};
use crate::compiler::facts::Interfaces;

/// How long a registry may take for one upload.
const UPLOAD: Duration = Duration::from_secs(900);

/// An artifact as it is pushed.
pub struct Artifact {
    config: Bytes,
    layer: Bytes,
    manifest: Bytes,
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest(bytes).to_string(),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    }
}

impl Artifact {
    /// The artifact of a component with these interfaces.
    ///
    /// # Errors
    ///
    /// None that can be: it is all text.
    pub fn new(component: Bytes, interfaces: &Interfaces) -> serde_json::Result<Self> {
        let config = json!({
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [digest(&component)],
            "component": {"exports": interfaces.exports, "imports": interfaces.imports},
        });
        let config = Bytes::from(serde_json::to_vec(&config)?);
        let manifest = OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(WASM_CONFIG, &config),
            layers: vec![descriptor(WASM_LAYER, &component)],
            ..OciImageManifest::default()
        };
        let manifest = Bytes::from(serde_json::to_vec(&manifest)?);
        Ok(Self { config, layer: component, manifest })
    }

    /// The manifest's digest.
    pub fn digest(&self) -> Digest {
        digest(&self.manifest)
    }

    /// Its bytes, all together.
    pub fn size(&self) -> u64 {
        [&self.config, &self.layer, &self.manifest].map(|bytes| bytes.len() as u64).iter().sum()
    }

    /// Pushes it, and tells how many bytes are there.
    ///
    /// # Errors
    ///
    /// A registry that does not take it.
    pub async fn push(self, reference: &Reference, source: Source, mut tell: impl FnMut(u64)) -> Result<(), Failure> {
        let at = |step: Step| {
            let (image, registry) = (reference.to_string(), source.registry.clone());
            move |problem: Problem| Failure { image, registry, step, passes: problem.passes(), problem: problem.text }
        };
        let registry = Remote::new(source.clone(), UPLOAD).map_err(at(Step::Login))?;
        registry.log_in(reference, Operation::Push, Ask::Again).await.map_err(at(Step::Login))?;
        let mut done = 0;
        for blob in [self.config, self.layer] {
            let digest = digest(&blob);
            done += blob.len() as u64;
            registry.push_blob(reference, blob, digest).await.map_err(at(Step::Push))?;
            tell(done);
        }
        registry.push_manifest(reference, &self.manifest).await.map_err(at(Step::Push))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::manifest::{Layout, check_config, read};

    #[test]
    fn what_is_pushed_is_what_is_pulled_and_always_the_same() {
        let interfaces = Interfaces { exports: vec!["wasi:http/handler@0.3.0".into()], ..Interfaces::default() };
        let artifact = || Artifact::new(Bytes::from_static(b"\0asm"), &interfaces).unwrap();
        assert_eq!(artifact().digest(), artifact().digest());
        let artifact = artifact();
        let Layout::Component { config, layer } = read(&artifact.manifest).unwrap() else { panic!("another layout") };
        assert_eq!((config.unwrap().digest, layer.digest), (digest(&artifact.config), digest(b"\0asm")));
        check_config(&artifact.config, &layer).unwrap();
    }
}
