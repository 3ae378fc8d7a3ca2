//! Which interfaces a guest finds: the one list that the worker and the compiler child share.

use wasmtime::{Engine, component::Linker};

use super::{Guest, config};
use crate::engine::settings::World;

/// A linker with every interface that is offered, see [`crate::compiler::facts::is_offered`].
///
/// # Errors
///
/// An interface that is defined twice, which a test would show.
pub fn linker(engine: &Engine, world: World) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    config::add_to_linker(&mut linker, world)?;
    // p3 toolchains build on standard libraries that still import p2: their components need both.
    if world == World::P3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}
