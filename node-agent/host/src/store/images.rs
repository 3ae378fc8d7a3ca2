//! What registries' artifacts hold, by their manifests' digests, and what tags led to. What is here was pulled whole and checked:
//! a record is written after all that it names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pillion_protocol::{digest::Digest, reference::Reference};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Artifact, Store, StoreError, failed};
use crate::spin::App;

/// What an artifact holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Image {
    /// One component: a CNCF Wasm artifact.
    Component(Digest),
    /// A Spin application.
    App(App),
}

/// What a tag led to.
#[derive(Serialize, Deserialize)]
struct Tag {
    reference: Reference,
    digest: Digest,
}

impl Image {
    /// The components in it.
    pub fn components(&self) -> Vec<Digest> {
        match self {
            Self::Component(digest) => vec![*digest],
            Self::App(app) => app.digests().collect(),
        }
    }
}

impl Store {
    /// The image whose manifest has this digest, if all of it is here.
    pub fn image(&self, manifest: Digest) -> Option<(Image, Vec<Artifact>)> {
        let image: Image = read(&self.image_path(manifest))?;
        let artifacts = image.components().into_iter().map(|digest| self.artifact(digest)).collect::<Option<_>>()?;
        Some((image, artifacts))
    }

    /// Takes note of an image, all of whose components are here.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn add_image(&self, manifest: Digest, image: &Image) -> Result<(), StoreError> {
        self.write(&self.image_path(manifest), image)
    }

    /// What a tag led to when it was last looked at.
    pub fn tag(&self, reference: &Reference) -> Option<Digest> {
        // The name is a digest of the reference: two could only be the same by intent, and then this tells.
        read::<Tag>(&self.tag_path(reference)).filter(|tag| tag.reference == *reference).map(|tag| tag.digest)
    }

    /// Takes note of what a tag leads to.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn set_tag(&self, reference: &Reference, digest: Digest) -> Result<(), StoreError> {
        if self.tag(reference) == Some(digest) {
            return Ok(());
        }
        self.write(&self.tag_path(reference), &Tag { reference: reference.clone(), digest })
    }

    /// Removes records of what is not here any more.
    pub(super) fn forget_images(&self) {
        let files = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let named = |path: &Path| path.file_stem()?.to_str().and_then(|name| Digest::from_hex(name).ok());
        for path in files(self.images()) {
            if named(&path).and_then(|digest| self.image(digest)).is_none() {
                _ = fs::remove_file(path);
            }
        }
        for path in files(self.tags()) {
            if read::<Tag>(&path).is_none_or(|tag| !self.image_path(tag.digest).exists()) {
                _ = fs::remove_file(path);
            }
        }
    }

    fn image_path(&self, manifest: Digest) -> PathBuf {
        self.images().join(format!("{}.json", manifest.to_hex()))
    }

    fn tag_path(&self, reference: &Reference) -> PathBuf {
        self.tags().join(format!("{}.json", hex::encode(Sha256::digest(reference.to_string()))))
    }

    fn write(&self, path: &Path, what: &impl Serialize) -> Result<(), StoreError> {
        let mut file = self.new_file()?;
        serde_json::to_writer(file.as_file_mut(), what).map_err(|error| failed("write", path)(error.into()))?;
        file.persist(path).map_err(|error| failed("rename into the store", path)(error.error))?;
        Ok(())
    }
}

/// A record that cannot be read, after a power cut for example, is none.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_there_when_all_of_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let wasm = dir.path().join("x.wasm");
        fs::write(&wasm, b"abc").unwrap();
        let artifact = store.add(&wasm).unwrap();
        let manifest = Digest::from_sha256([7; 32]);
        assert!(store.image(manifest).is_none());
        let image = Image::Component(artifact.digest);
        store.add_image(manifest, &image).unwrap();
        assert_eq!(store.image(manifest).unwrap().0, image);
        store.add_image(manifest, &Image::Component(Digest::from_sha256([8; 32]))).unwrap();
        assert!(store.image(manifest).is_none(), "a component of it is missing");
        fs::write(store.image_path(manifest), b"{").unwrap();
        assert!(store.image(manifest).is_none(), "half a record");
        store.forget_images();
        assert!(!store.image_path(manifest).exists());
    }

    #[test]
    fn a_tag_leads_to_what_it_led_to_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let reference: Reference = "r.example/a:1".parse().unwrap();
        assert_eq!(store.tag(&reference), None);
        for n in [1, 2] {
            store.set_tag(&reference, Digest::from_sha256([n; 32])).unwrap();
        }
        assert_eq!(store.tag(&reference), Some(Digest::from_sha256([2; 32])));
    }
}
