//! The compiler: a short-lived child process that turns one component into native code.
//!
//! It reads bytes that a stranger wrote, with a large parser and a large compiler, so it has nothing worth taking: one thread,
//! three descriptors (the component in, the native code out, a pipe for its report), an empty environment, limits on memory,
//! time and output, a nice value. The supervisor starts it, so that the worker never executes a program.

pub mod facts;
pub mod limits;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
};

use pillion_confine::Process;
use serde::{Deserialize, Serialize};
use wasmtime::{Engine, component::Component};

use crate::{
    compiler::facts::Facts,
    engine::settings::{self, World},
    guest::link,
    program,
};

/// The largest component, in bytes.
pub const MAX_COMPONENT: u64 = 100 << 20;

/// What the child says at its end, as one line of JSON on its standard error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// Native code was written.
    Compiled(Facts),
    /// The component cannot be served, for this reason.
    Refused(String),
}

/// The child's main function: the component on standard input, native code to standard output, a [`Report`] to standard error.
/// `parent` started it.
///
/// # Errors
///
/// Only what keeps it from reporting.
pub fn main(parent: u32) -> anyhow::Result<()> {
    // Nobody waits for it once its supervisor is gone.
    program::end_with(parent)?;
    limits::Limits::of_this_process()?.enter()?;
    Process::Compiler.confine()?;
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let report = match read(input).and_then(|wasm| compile(&wasm)) {
        Ok((facts, native)) => match output.write_all(&native) {
            Ok(()) => Report::Compiled(facts),
            Err(error) => Report::Refused(format!("native code cannot be written: {error}")),
        },
        Err(reason) => Report::Refused(reason),
    };
    let line = serde_json::to_string(&report)?;
    // One write: whatever a library printed before stands on lines of its own.
    std::io::stderr().write_all(format!("\n{line}\n").as_bytes())?;
    Ok(())
}

fn read(input: File) -> Result<Vec<u8>, String> {
    let mut wasm = Vec::new();
    input.take(MAX_COMPONENT + 1).read_to_end(&mut wasm).map_err(|e| format!("the component cannot be read: {e}"))?;
    if wasm.len() as u64 > MAX_COMPONENT {
        return Err(format!("the component is larger than {} MiB, which is the most allowed", MAX_COMPONENT >> 20));
    }
    Ok(wasm)
}

fn compile(wasm: &[u8]) -> Result<(Facts, Vec<u8>), String> {
    let facts = Facts::read(wasm).and_then(Facts::accept).map_err(|refusal| refusal.to_string())?;
    let native = native_code(wasm, facts.world)?;
    Ok((facts, native))
}

fn native_code(wasm: &[u8], world: World) -> Result<Vec<u8>, String> {
    let words = |error: wasmtime::Error| format!("{error:#}");
    let engine = Engine::new(&settings::compiling(world)).map_err(words)?;
    let component = Component::new(&engine, wasm).map_err(words)?;
    if let Some(misfit) = component.resources_required().as_ref().and_then(settings::misfit) {
        return Err(misfit);
    }
    // What links here links in the worker: every import is checked down to the types of its functions.
    link::linker(&engine, world).and_then(|linker| linker.instantiate_pre(&component)).map_err(words)?;
    component.serialize().map_err(words)
}
