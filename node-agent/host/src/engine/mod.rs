//! Wasmtime's engines: one for each world that is served.
//!
//! p2 components run on an engine without support for concurrency in the component model, which makes an instance a third
//! cheaper; p3 components need it. Each engine has a pool of its own and is made when its first component is prepared.

pub mod addresses;
pub mod cache;
pub mod settings;

use std::sync::{Arc, OnceLock};

use wasmtime::{
    Engine,
    component::{Component, Linker},
};
use wasmtime_wasi_http::{p2, p3};

use crate::{
    engine::settings::{Capacity, World},
    guest::{Guest, link},
    store::OpenNative,
    sys,
};

/// A component whose native code is mapped and linked.
pub struct Loaded {
    /// What instances are made from.
    pub pre: Pre,
    /// The size of its native code.
    pub bytes: u64,
}

/// What instances are made from.
pub enum Pre {
    /// Exports `wasi:http/incoming-handler@0.2.x`.
    P2(Arc<p2::bindings::ProxyPre<Guest>>),
    /// Exports `wasi:http/handler@0.3.x`.
    P3(Arc<p3::bindings::ServicePre<Guest>>),
}

/// Why a component could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine itself cannot be made on this machine.
    #[error("the {0} engine cannot be made: {1:#}")]
    Engine(World, wasmtime::Error),
    /// The native code is not this engine's, or needs what is not offered.
    #[error("native code cannot be loaded: {0:#}")]
    Native(wasmtime::Error),
}

/// The engines of this process.
pub struct Engines {
    capacity: Capacity,
    p2: OnceLock<Hosted>,
    p3: OnceLock<Hosted>,
    making: std::sync::Mutex<()>,
}

struct Hosted {
    engine: Engine,
    linker: Linker<Guest>,
}

impl Engines {
    /// Engines whose pools hold what `capacity` says. Nothing is reserved before the first component is prepared.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, p2: OnceLock::new(), p3: OnceLock::new(), making: std::sync::Mutex::new(()) }
    }

    /// Maps and links native code of `world`.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load(&self, world: World, native: &OpenNative, bytes: u64) -> Result<Loaded, LoadError> {
        let hosted = self.hosted(world).map_err(|e| LoadError::Engine(world, e))?;
        let component = sys::load_native_code(&hosted.engine, native.file()).map_err(LoadError::Native)?;
        let pre = hosted.link(world, &component).map_err(LoadError::Native)?;
        Ok(Loaded { pre, bytes })
    }

    /// Makes the engine of `world`, if it is not made yet.
    ///
    /// # Errors
    ///
    /// It cannot be made on this machine.
    pub fn make(&self, world: World) -> Result<(), LoadError> {
        self.hosted(world).map(|_| ()).map_err(|e| LoadError::Engine(world, e))
    }

    /// Tells every engine that a tick has passed, so that running guests look up.
    pub fn tick(&self) {
        for hosted in [&self.p2, &self.p3].into_iter().filter_map(OnceLock::get) {
            hosted.engine.increment_epoch();
        }
    }

    fn hosted(&self, world: World) -> wasmtime::Result<&Hosted> {
        let slot = match world {
            World::P2 => &self.p2,
            World::P3 => &self.p3,
        };
        if let Some(hosted) = slot.get() {
            return Ok(hosted);
        }
        // `get_or_try_init` is not stable: a pool reserves terabytes of addresses, so two must not be made by accident.
        let _making = self.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.get().is_none() {
            let engine = Engine::new(&settings::serving(world, self.capacity))?;
            let linker = link::linker(&engine, world)?;
            _ = slot.set(Hosted { engine, linker });
        }
        slot.get().ok_or_else(|| wasmtime::Error::msg("the engine was made and is gone"))
    }
}

impl Hosted {
    fn link(&self, world: World, component: &Component) -> wasmtime::Result<Pre> {
        let pre = self.linker.instantiate_pre(component)?;
        Ok(match world {
            World::P2 => Pre::P2(Arc::new(p2::bindings::ProxyPre::new(pre)?)),
            World::P3 => Pre::P3(Arc::new(p3::bindings::ServicePre::new(pre)?)),
        })
    }
}
