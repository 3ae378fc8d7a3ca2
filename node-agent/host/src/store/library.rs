//! A store as those use it who want native code: components go in, native code comes out, made anew where it is missing or broken.

use std::{collections::HashSet, os::fd::OwnedFd, path::Path};

use pillion_protocol::{digest::Digest, name::Name, reference::Reference};

use super::{Artifact, Held, Image, Native, NativeCode, Store, StoreError};
use crate::{
    compiler::facts::Facts,
    engine::settings::{World, compatibility},
    spin,
};

/// A store with the native code of both engines.
pub struct Library {
    store: Store,
    p2: Native,
    p3: Native,
}

/// What an image holds, in the store.
#[derive(Debug)]
pub struct Stored {
    /// The digest of the component's file, or of the artifact's manifest.
    pub version: Digest,
    /// Its components.
    pub artifacts: Vec<Artifact>,
    /// The Spin application that they are of, in the order of its components.
    pub app: Option<spin::App>,
}

/// The two files of a compilation: what a compiler reads, and what it writes.
pub struct Job {
    component: std::fs::File,
    output: tempfile::NamedTempFile,
}

impl From<Artifact> for Stored {
    fn from(artifact: Artifact) -> Self {
        Self { version: artifact.digest, artifacts: vec![artifact], app: None }
    }
}

impl Library {
    /// Opens or makes the store in `root`.
    ///
    /// # Errors
    ///
    /// A directory that is not only ours; an engine that cannot be made.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let store = Store::open(root)?;
        let native = |world| anyhow::Ok(store.native(&compatibility(world).map_err(anyhow::Error::msg)?)?);
        Ok(Self { p2: native(World::P2)?, p3: native(World::P3)?, store })
    }

    /// A component that was taken in before.
    pub fn artifact(&self, digest: Digest) -> Option<Artifact> {
        self.store.artifact(digest)
    }

    /// Takes in the component at `path`.
    ///
    /// # Errors
    ///
    /// A file that cannot be taken in.
    pub fn add(&self, path: &Path) -> Result<Artifact, StoreError> {
        self.store.add(path)
    }

    /// The artifact whose manifest has this digest, if it was pulled before.
    pub fn image(&self, version: Digest) -> Option<Stored> {
        let (image, artifacts) = self.store.image(version)?;
        let app = match image {
            Image::Component(_) => None,
            Image::App(app) => Some(app),
        };
        Some(Stored { version, artifacts, app })
    }

    /// Takes note that what a tag led to can be served. Without that, a broken version at the same tag may leave nothing to serve after
    /// a restart.
    pub fn set_served(&self, reference: &Reference, version: Digest) {
        if let Err(error) = self.store.set_served(reference, version) {
            tracing::warn!(%reference, %error, "it cannot be noted what was served last");
        }
    }

    /// Whether its registry has ever let the namespace to an image, or everybody.
    pub fn is_proven(&self, version: Digest, namespace: Option<&Name>) -> bool {
        self.store.is_proven(version, namespace)
    }

    /// What a tag led to when that could last be served.
    pub fn tag(&self, reference: &Reference) -> Option<Digest> {
        self.store.tag(reference)
    }

    /// The component's native code, if there is some. Its bytes are read and compared with what was made unless they are to be
    /// believed for now: they are compared when they are loaded.
    pub fn native(&self, artifact: &Artifact, believed: bool) -> Option<NativeCode> {
        for native in [&self.p2, &self.p3] {
            let Some(code) = native.find(artifact.digest) else { continue };
            match if believed { Ok(()) } else { code.open().map(drop) } {
                Ok(()) => return Some(code),
                Err(error) => {
                    tracing::warn!(%error, "native code on disk cannot be used: the component is compiled again");
                    native.remove(artifact.digest, &code);
                }
            }
        }
        None
    }

    /// Removes native code that an engine refused, though it is what was written.
    pub fn forget(&self, artifact: &Artifact) {
        for native in [&self.p2, &self.p3] {
            if let Some(code) = native.find(artifact.digest) {
                native.remove(artifact.digest, &code);
            }
        }
    }

    /// Opens the files that a compilation of `artifact` needs.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn job(&self, artifact: &Artifact) -> Result<Job, StoreError> {
        Ok(Job { component: artifact.open()?, output: self.store.new_file()? })
    }

    /// Takes in what a compilation wrote.
    ///
    /// # Errors
    ///
    /// A full disk.
    pub fn finish(&self, artifact: &Artifact, job: Job, facts: Facts) -> Result<(), StoreError> {
        let native = match facts.world {
            World::P2 => &self.p2,
            World::P3 => &self.p3,
        };
        native.add(artifact.digest, facts, job.output)
    }

    /// See [`Store::make_room`].
    pub fn make_room(&self, quota: u64, bound: &HashSet<Digest>) -> Option<Held> {
        self.store.make_room(quota, bound)
    }
}

impl Job {
    /// The descriptors for a compiler: the component to read, the file to write.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn descriptors(&self) -> std::io::Result<[OwnedFd; 2]> {
        Ok([self.component.try_clone()?.into(), self.output.as_file().try_clone()?.into()])
    }
}
