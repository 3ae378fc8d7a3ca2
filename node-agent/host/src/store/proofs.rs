//! Whom registries have let to images, beside the images' records: what one namespace's login pulled is not served to another for that.
//! One file for each, so that pullers that end at once forget nothing of each other.

use std::path::PathBuf;

use pillion_protocol::{digest::Digest, name::Name};

use super::{Store, StoreError};

impl Store {
    /// Takes note that its registry has let the namespace to an image, by a login of its own; with none, everybody.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn prove(&self, manifest: Digest, namespace: Option<&Name>) -> Result<(), StoreError> {
        self.write(&self.proof_path(manifest, namespace), &true)
    }

    /// Whether its registry has ever let the namespace to an image, or everybody.
    pub fn is_proven(&self, manifest: Digest, namespace: Option<&Name>) -> bool {
        [None, namespace].into_iter().any(|whose| self.proof_path(manifest, whose).exists())
    }

    /// It goes with the image's record: the part before the dot is the same.
    fn proof_path(&self, manifest: Digest, namespace: Option<&Name>) -> PathBuf {
        let whose = namespace.map_or_else(|| "everybody".to_owned(), |namespace| format!("of-{namespace}"));
        self.images().join(format!("{}.{whose}", manifest.to_hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Image, *};

    #[test]
    fn a_proof_is_of_one_namespace_or_of_everybody_and_goes_with_its_image() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let [one, other] = [1, 2].map(|byte| Digest::from_sha256([byte; 32]));
        let [shop, bank]: [Name; 2] = ["shop", "everybody"].map(|name| name.parse().unwrap());
        assert!(!store.is_proven(one, Some(&shop)) && !store.is_proven(one, None));
        store.prove(one, Some(&shop)).unwrap();
        store.prove(one, Some(&bank)).unwrap();
        assert!(store.is_proven(one, Some(&shop)) && store.is_proven(one, Some(&bank)));
        assert!(!store.is_proven(one, None) && !store.is_proven(other, Some(&shop)));
        assert!(!store.is_proven(one, Some(&"another".parse().unwrap())));
        store.prove(other, None).unwrap();
        assert!(store.is_proven(other, Some(&shop)) && store.is_proven(other, None));
        // Neither image is here, nor what they are of.
        store.add_image(one, &Image::Component(other)).unwrap();
        store.forget_images();
        assert!(!store.is_proven(one, Some(&shop)) && !store.is_proven(other, None));
    }
}
