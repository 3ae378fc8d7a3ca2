//! Whether a component is valid for the engines here, told before anything is compiled, and by the names of WebAssembly's proposals.

use wasmparser::{Validator, WasmFeatures};

use super::facts::Refusal;
use crate::engine::settings::World;

/// What WebAssembly 3.0 has and is not offered: it needs a collector, or shared memory, in every instance. References to functions, and types
/// of functions as the proposal for garbage collection writes them, need none: these the engines read.
const NOT_OFFERED: WasmFeatures = WasmFeatures::GC_TYPES.union(WasmFeatures::EXCEPTIONS).union(WasmFeatures::THREADS);

/// Proposals that are not offered, the smaller ones first, with what each needs to be read.
const PROPOSALS: [(&str, WasmFeatures); 8] = [
    ("wide arithmetic", WasmFeatures::WIDE_ARITHMETIC),
    ("custom page sizes", WasmFeatures::CUSTOM_PAGE_SIZES),
    ("threads (shared memory)", WasmFeatures::THREADS),
    ("memory control", WasmFeatures::MEMORY_CONTROL),
    ("references to the host's objects (externref)", WasmFeatures::GC_TYPES),
    ("exceptions", WasmFeatures::EXCEPTIONS.union(WasmFeatures::GC_TYPES)),
    (
        "exceptions in their older form",
        WasmFeatures::LEGACY_EXCEPTIONS.union(WasmFeatures::EXCEPTIONS).union(WasmFeatures::GC_TYPES),
    ),
    ("garbage collection", GC),
];

const GC: WasmFeatures = WasmFeatures::GC.union(WasmFeatures::GC_TYPES);

/// What the engine of `world` reads: [`crate::engine::settings`] leaves wasmtime's defaults as they are, without a collector.
fn features(world: World) -> WasmFeatures {
    let concurrent = match world {
        World::P2 => WasmFeatures::empty(),
        World::P3 => WasmFeatures::CM_ASYNC,
    };
    WasmFeatures::WASM3.difference(NOT_OFFERED).union(WasmFeatures::COMPONENT_MODEL).union(concurrent)
}

/// Checks a component.
///
/// # Errors
///
/// The proposal that it uses, or what is wrong with it.
pub fn validate(wasm: &[u8], world: World) -> Result<(), Refusal> {
    let offered = features(world);
    let with = |features: WasmFeatures| Validator::new_with_features(features).validate_all(wasm);
    let Err(error) = with(offered) else { return Ok(()) };
    // Beside all that GC may write, what needs a collector looks as if references to the host's objects were all that it lacks.
    let plain = offered.difference(WasmFeatures::GC);
    let alone = PROPOSALS.iter().find(|(_, needs)| with(plain.union(*needs)).is_ok()).map(|(name, _)| *name);
    let all = || PROPOSALS.iter().fold(offered, |all, (_, needs)| all.union(*needs));
    Err(match alone {
        Some(name) => Refusal::Proposal(name),
        None if with(all()).is_ok() => Refusal::Proposals(error.to_string()),
        None => Refusal::Broken(error.to_string()),
    })
}
