//! Which interfaces a guest finds: the one list that the worker and the compiler child share.

use wasmtime::{
    Engine,
    component::{
        Component, Linker, ResourceType,
        types::{ComponentItem, Type},
    },
};
use wasmtime_wasi_http::{p2, p3};

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

/// Whether the function `handle` of the interface `export` takes, and gives, what the host's call gives and takes. Its name alone says nothing:
/// its resources may be the component's own.
///
/// # Errors
///
/// A component that does not link.
pub fn handles_http(
    linker: &Linker<Guest>,
    component: &Component,
    export: &str,
    world: World,
) -> wasmtime::Result<bool> {
    let engine = linker.engine();
    let component = linker.substituted_component_type(component)?;
    let interface = component.get_export(engine, export).map(|export| export.ty);
    let Some(ComponentItem::ComponentInstance(interface)) = interface else { return Ok(false) };
    let Some(ComponentItem::ComponentFunc(handle)) = interface.get_export(engine, "handle").map(|handle| handle.ty)
    else {
        return Ok(false);
    };
    let params: Vec<_> = handle.params().map(|(_, param)| param).collect();
    let results: Vec<_> = handle.results().collect();
    let is = |param: &Type, expected| matches!(param, Type::Own(resource) if *resource == expected);
    Ok(match (world, params.as_slice(), results.as_slice()) {
        (World::P2, [request, out], []) => {
            is(request, ResourceType::host::<p2::types::HostIncomingRequest>())
                && is(out, ResourceType::host::<p2::types::HostResponseOutparam>())
        }
        (World::P3, [request], [Type::Result(result)]) => {
            is(request, ResourceType::host::<p3::Request>())
                && result.ok().is_some_and(|response| is(&response, ResourceType::host::<p3::Response>()))
        }
        _ => false,
    })
}
