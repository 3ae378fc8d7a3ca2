//! A store as those use it who want native code: components go in, native code comes out, made anew where it is missing or broken.

use std::{os::fd::OwnedFd, path::Path};

use pillion_protocol::digest::Digest;

use super::{Artifact, Native, NativeCode, Store, StoreError};
use crate::{
    compiler::facts::Facts,
    engine::settings::{World, compatibility},
};

/// A store with the native code of both engines.
pub struct Library {
    store: Store,
    p2: Native,
    p3: Native,
}

/// The two files of a compilation: what a compiler reads, and what it writes.
pub struct Job {
    component: std::fs::File,
    output: tempfile::NamedTempFile,
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

    /// Finds a component that was taken in before. Its native code is checked when it is first loaded: with thousands of components,
    /// reading all of them would keep callers waiting.
    pub fn find_again(&self, digest: Digest) -> Option<(Artifact, Option<NativeCode>)> {
        let artifact = self.store.artifact(digest)?;
        let native = [&self.p2, &self.p3].into_iter().find_map(|native| native.find(digest));
        Some((artifact, native))
    }

    /// Takes in the component at `path`, and finds its native code if there is some that is sound.
    ///
    /// # Errors
    ///
    /// A file that cannot be taken in.
    pub fn find(&self, path: &Path) -> Result<(Artifact, Option<NativeCode>), StoreError> {
        let artifact = self.store.add(path)?;
        for native in [&self.p2, &self.p3] {
            let Some(code) = native.find(artifact.digest) else { continue };
            match code.open() {
                Ok(_) => return Ok((artifact, Some(code))),
                Err(error) => {
                    tracing::warn!(%error, "native code on disk cannot be used: the component is compiled again");
                    native.remove(artifact.digest, &code);
                }
            }
        }
        Ok((artifact, None))
    }

    /// Removes native code that an engine refused, though it is what was written.
    pub fn forget(&self, artifact: &Artifact, code: &NativeCode) {
        self.native(code.world).remove(artifact.digest, code);
    }

    fn native(&self, world: World) -> &Native {
        match world {
            World::P2 => &self.p2,
            World::P3 => &self.p3,
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
    pub fn finish(&self, artifact: &Artifact, job: Job, facts: Facts) -> Result<NativeCode, StoreError> {
        self.native(facts.world).add(artifact.digest, facts, job.output)
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
