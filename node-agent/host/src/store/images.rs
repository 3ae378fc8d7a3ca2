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
    /// What it led to when that could last be served: what it leads to now may turn out to be no component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<Digest>,
}

impl Tag {
    /// What it led to when that could last be served; before that, what it leads to.
    fn known(&self) -> Digest {
        self.served.unwrap_or(self.digest)
    }
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

    /// What a tag led to when that could last be served; if that never was, what it led to when it was last looked at.
    pub fn tag(&self, reference: &Reference) -> Option<Digest> {
        self.read_tag(reference).map(|tag| tag.known())
    }

    fn read_tag(&self, reference: &Reference) -> Option<Tag> {
        // The name is a digest of the reference: two could only be the same by intent, and then this tells.
        read::<Tag>(&self.tag_path(reference)).filter(|tag| tag.reference == *reference)
    }

    /// Takes note of what a tag leads to.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn set_tag(&self, reference: &Reference, digest: Digest) -> Result<(), StoreError> {
        let before = self.read_tag(reference);
        if before.as_ref().is_some_and(|tag| tag.digest == digest) {
            return Ok(());
        }
        // A record of before this was kept says of nothing that it was served, and of what it leads to that it may have been.
        let served = before.map(|tag| tag.known());
        self.write(&self.tag_path(reference), &Tag { reference: reference.clone(), digest, served })
    }

    /// Takes note that what a tag led to can be served.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn set_served(&self, reference: &Reference, version: Digest) -> Result<(), StoreError> {
        match self.read_tag(reference) {
            Some(tag) if tag.served != Some(version) => {
                self.write(&self.tag_path(reference), &Tag { served: Some(version), ..tag })
            }
            _ => Ok(()),
        }
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
            if read::<Tag>(&path).is_none_or(|tag| !self.image_path(tag.known()).exists()) {
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

    pub(super) fn write(&self, path: &Path, what: &impl Serialize) -> Result<(), StoreError> {
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
    fn a_tag_leads_to_what_could_be_served_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let reference: Reference = "r.example/a:1".parse().unwrap();
        assert_eq!(store.tag(&reference), None);
        let [first, second, third] = [1, 2, 3].map(|n| Digest::from_sha256([n; 32]));
        store.set_tag(&reference, first).unwrap();
        assert_eq!(store.tag(&reference), Some(first));
        store.set_tag(&reference, second).unwrap();
        assert_eq!(store.tag(&reference), Some(first), "nobody knows whether the second can be served");
        store.set_served(&reference, second).unwrap();
        assert_eq!(store.tag(&reference), Some(second));
        store.set_tag(&reference, third).unwrap();
        assert_eq!(store.tag(&reference), Some(second));
    }
}
