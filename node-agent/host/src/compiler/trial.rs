//! What the engine would say of a component, found out with a hollow one: whether it links, serves HTTP and fits into the pool.

use wasmtime::{Engine, component::Component};

use super::{
    facts::{Facts, Refusal, world_of},
    hollow::{Hollow, hollow},
};
use crate::{engine::settings, guest::link};

/// Tries a component, which is valid: with its own types, and code that is never run.
///
/// # Errors
///
/// What keeps it from being served.
pub fn try_out(wasm: &[u8], facts: &Facts) -> Result<(), Refusal> {
    let world = facts.world;
    let Hollow { wasm, gone } = hollow(wasm).map_err(|error| Refusal::Broken(error.to_string()))?;
    let engine = Engine::new(&settings::judging(world, gone)).map_err(|error| Refusal::Engine(words(&error)))?;
    let component = Component::new(&engine, wasm).map_err(|error| Refusal::Misfit(words(&error)))?;
    // What links here links in the worker: every import is checked down to the types of its functions.
    let linker = link::linker(&engine, world).map_err(|error| Refusal::Engine(words(&error)))?;
    linker.instantiate_pre(&component).map_err(|error| Refusal::Link(words(&error)))?;
    for export in facts.exports.iter().filter(|export| world_of(export) == Some(world)).take(1) {
        let handles = link::handles_http(&linker, &component, export, world);
        if !handles.map_err(|error| Refusal::Link(words(&error)))? {
            return Err(Refusal::Handler(export.clone()));
        }
    }
    Ok(())
}

/// The engine's words have several lines.
fn words(error: &wasmtime::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}
