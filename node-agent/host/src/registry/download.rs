//! A blob on its way to disk: counted and hashed as it is written, so that no more of it is taken than its manifest says.

use std::{
    io::{self, Seek, Write},
    time::{Duration, Instant},
};

use pillion_protocol::digest::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::manifest::Blob;

/// A blob of which some bytes are here.
pub(super) struct Download {
    file: NamedTempFile,
    blob: Blob,
    hasher: Sha256,
    done: u64,
    hashing: Duration,
}

/// Why what came is not the blob.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("it is larger than the {0} bytes that the manifest says")]
    Larger(u64),
    #[error("its content has the digest {0}")]
    Digest(Digest),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Download {
    pub(super) fn new(file: NamedTempFile, blob: &Blob) -> Self {
        Self { file, blob: blob.clone(), hasher: Sha256::new(), done: 0, hashing: Duration::ZERO }
    }

    /// Bytes that are here.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done == self.blob.size
    }

    /// What comes next begins with this byte.
    pub(super) fn begin_at(&mut self, from: u64) -> Result<(), Wrong> {
        if from != self.done {
            self.file.as_file_mut().set_len(0)?;
            self.file.rewind()?;
            (self.hasher, self.done) = (Sha256::new(), 0);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let done = self.done.saturating_add(bytes.len() as u64);
        if done > self.blob.size {
            return Err(Wrong::Larger(self.blob.size));
        }
        self.file.write_all(bytes)?;
        let began = Instant::now();
        self.hasher.update(bytes);
        self.hashing += began.elapsed();
        self.done = done;
        Ok(())
    }

    /// The file, if it is the blob, on disk for good; and how long hashing took.
    pub(super) fn finish(self) -> Result<(NamedTempFile, Duration), Wrong> {
        let found = Digest::from_sha256(self.hasher.finalize().into());
        if found != self.blob.digest {
            return Err(Wrong::Digest(found));
        }
        // Its name says what is in it: after a power cut that must still be so.
        self.file.as_file().sync_all()?;
        Ok((self.file, self.hashing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn download(size: u64) -> Download {
        Download::new(NamedTempFile::new().unwrap(), &Blob { digest: ABC.parse().unwrap(), size })
    }

    #[test]
    fn a_blob_that_came_in_pieces_is_whole() {
        let mut download = download(3);
        download.begin_at(0).unwrap();
        download.write(b"ab").unwrap();
        assert!(!download.is_complete());
        download.begin_at(2).unwrap();
        download.write(b"c").unwrap();
        assert!(download.is_complete());
        assert_eq!(std::fs::read(download.finish().unwrap().0.path()).unwrap(), b"abc");
    }

    #[test]
    fn a_registry_that_begins_again_is_followed() {
        let mut download = download(3);
        download.write(b"ab").unwrap();
        download.begin_at(0).unwrap();
        download.write(b"abc").unwrap();
        assert_eq!(std::fs::read(download.finish().unwrap().0.path()).unwrap(), b"abc");
    }

    #[test]
    fn other_bytes_and_more_bytes_are_refused() {
        assert!(matches!(download(3).write(b"abcd"), Err(Wrong::Larger(3))));
        let mut other = download(3);
        other.write(b"abd").unwrap();
        assert!(matches!(other.finish(), Err(Wrong::Digest(_))));
    }
}
