//! Loaded components: the ones that were called last, bounded by number and by bytes.
//!
//! A loaded component costs about 72 kB of memory, three mappings and a descriptor. One that leaves the cache is loaded again in
//! a fraction of a millisecond; requests in flight keep theirs.

use std::sync::Arc;

use moka::{future::Cache as Moka, policy::EvictionPolicy};
use pillion_protocol::digest::Digest;

use super::{Engines, LoadError, Loaded};
use crate::store::{NativeCode, NativeError};

/// Native code up to this size is mapped on the thread that asks: handing it over would take longer.
const INLINE: u64 = 2 << 20;

/// Mapped native code, in bytes, that all loaded components may have together. It is page cache: the kernel can drop it.
const MAX_BYTES: u64 = 2 << 30;

/// A component's weight is a share of the cache: by bytes or by number, whichever is more. One of `MAX` is this many units.
const UNITS: u64 = 1_000;

/// Why a component could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Its native code is not what was compiled.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The engine refuses it.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The cache.
pub struct Cache {
    engines: Arc<Engines>,
    loaded: Moka<Digest, Arc<Loaded>>,
}

fn weight(max_loaded: u32) -> impl Fn(u64) -> u32 {
    move |bytes| {
        let by_bytes = bytes.saturating_mul(u64::from(max_loaded) * UNITS) / MAX_BYTES;
        u32::try_from(by_bytes.max(UNITS)).unwrap_or(u32::MAX)
    }
}

impl CacheError {
    /// Whether the code is at fault, and not that the node has no descriptor or memory left.
    pub fn is_of_the_code(&self) -> bool {
        match self {
            Self::Native(NativeError::Corrupt { .. }) | Self::Load(LoadError::Native(_)) => true,
            Self::Native(NativeError::Store(error)) => error.is_missing(),
            Self::Load(LoadError::Engine(..)) => false,
        }
    }

    /// Whether the engine refuses the very bytes that its compiler wrote.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Load(LoadError::Native(error)) if !is_of_the_machine(error))
    }
}

/// Whether the machine, and not the engine, refused: it has no memory or no mapping left.
fn is_of_the_machine(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| cause.is::<std::io::Error>() || cause.is::<rustix::io::Errno>())
}

impl Cache {
    /// A cache of at most `max_loaded` components.
    pub fn new(engines: Arc<Engines>, max_loaded: u32) -> Self {
        // To unmap code takes a while, several at once longer: not on the thread of the request that made room.
        let (unload, unloaded) = std::sync::mpsc::channel::<Arc<Loaded>>();
        let unloading =
            std::thread::Builder::new().name("unload".into()).spawn(move || unloaded.into_iter().for_each(drop));
        if let Err(error) = unloading {
            tracing::warn!(%error, "components are unloaded on the threads that serve");
        }
        // The weigher sees only what is loaded, so that carries its size.
        let weight = weight(max_loaded);
        let loaded = Moka::builder()
            .max_capacity(u64::from(max_loaded) * UNITS)
            .weigher(move |_, loaded: &Arc<Loaded>| weight(loaded.bytes))
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, loaded, _| _ = unload.send(loaded))
            .build();
        Self { engines, loaded }
    }

    /// The component with this digest, whose native code is `native`; loads it if it is not loaded, once, however many ask.
    ///
    /// # Errors
    ///
    /// See [`CacheError`]. Whoever asks next tries again.
    pub async fn load(&self, component: Digest, native: &Arc<NativeCode>) -> Result<Arc<Loaded>, Arc<CacheError>> {
        if let Some(loaded) = self.loaded.get(&component).await {
            return Ok(loaded);
        }
        let (engines, native) = (Arc::clone(&self.engines), Arc::clone(native));
        let load = async move {
            if native.size <= INLINE {
                return load(&engines, &native);
            }
            let loading = tokio::task::spawn_blocking(move || load(&engines, &native));
            loading.await.unwrap_or_else(|error| Err(LoadError::Native(wasmtime::Error::msg(error.to_string())).into()))
        };
        self.loaded.try_get_with(component, load).await
    }
}

fn load(engines: &Engines, native: &NativeCode) -> Result<Arc<Loaded>, CacheError> {
    Ok(Arc::new(engines.load(native.world, &native.open()?, native.size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_by_number_and_by_bytes() {
        let weight = weight(4_000);
        let full = 4_000 * UNITS;
        assert_eq!(full / u64::from(weight(300_000)), 4_000, "small ones by number");
        assert_eq!(full / u64::from(weight(64 << 20)), 32, "large ones by bytes: 2 GiB of 64 MiB each");
        assert_eq!(weight(u64::MAX), u32::MAX);
    }
}
