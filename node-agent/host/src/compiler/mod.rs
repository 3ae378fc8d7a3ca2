//! The compiler: a short-lived child process that turns one component into native code.
//!
//! It reads bytes that a stranger wrote, with a large parser and a large compiler, so it has nothing worth taking: one thread,
//! three descriptors (the component in, the native code out, a pipe for its report), an empty environment, limits on memory,
//! time and output, a nice value. The supervisor starts it, so that the worker never executes a program.

pub mod facts;
mod hollow;
pub mod limits;
mod trial;
mod validity;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
};

use pillion_confine::Process;
use serde::{Deserialize, Serialize};
use wasmtime::Engine;

use crate::{
    compiler::facts::{Facts, Refusal},
    engine::settings,
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

/// Whether a component can be served, but for its limits: what a compiler is given, and what people ask. It takes a fraction of a compilation.
///
/// # Errors
///
/// Why not.
pub fn judge(wasm: &[u8]) -> Result<Facts, Refusal> {
    let facts = Facts::read(wasm)?.accept()?;
    validity::validate(wasm, facts.world)?;
    trial::try_out(wasm, &facts)?;
    Ok(facts)
}

fn compile(wasm: &[u8]) -> Result<(Facts, Vec<u8>), String> {
    let facts = judge(wasm).map_err(|refusal| refusal.to_string())?;
    let native = native_code(wasm, &facts)?;
    Ok((facts, native))
}

fn native_code(wasm: &[u8], facts: &Facts) -> Result<Vec<u8>, String> {
    let words = |error: wasmtime::Error| format!("{error:#}");
    let engine = Engine::new(&settings::compiling(facts.world)).map_err(words)?;
    engine.precompile_component(wasm).map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: &str = "wasi:http/incoming-handler@0.2.0";

    /// A component that exports `handle` without a parameter, and has `more` in it.
    fn component(more: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                {more}
                (core module $m (func (export "handle")))
                (core instance $i (instantiate $m))
                (func $handle (canon lift (core func $i "handle")))
                (instance $handler (export "handle" (func $handle)))
                (export "{HANDLER}" (instance $handler)))"#
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_is_not_offered_is_named_by_its_proposal_and_compiles_nowhere() {
        let table = [
            ("garbage collection", "(core module (type (struct)))"),
            ("exceptions", "(core module (tag))"),
            ("exceptions in their older form", "(core module (func try catch_all end))"),
            ("references to the host's objects (externref)", "(core module (func (param externref)))"),
            ("threads (shared memory)", "(core module (memory 1 1 shared))"),
            ("wide arithmetic", "(core module (func (param i64) local.get 0 local.get 0 i64.mul_wide_u drop drop))"),
            ("custom page sizes", "(core module (memory 1 (pagesize 1)))"),
        ];
        for (proposal, more) in table {
            let wasm = component(more);
            let Err(Refusal::Proposal(named)) = judge(&wasm) else { panic!("{proposal}: {:?}", judge(&wasm)) };
            assert!(proposal.starts_with(named) || named == proposal, "{proposal}: {named}");
            let facts = Facts::read(&wasm).unwrap();
            assert!(native_code(&wasm, &facts).is_err(), "{proposal} is offered after all");
        }
    }

    #[test]
    fn what_is_offered_is_valid_and_compiles() {
        for more in [
            "(core module (memory i64 1))",
            "(core module (func $f return_call $f))",
            "(core module (memory 1) (memory 1))",
            "(core module (type $t (func)) (func (param (ref $t)) local.get 0 call_ref $t))",
            "(core module (rec (type $t (sub (func))) (type (sub $t (func)))))",
        ] {
            let wasm = component(more);
            assert_eq!(judge(&wasm).unwrap_err(), Refusal::Handler(HANDLER.into()), "{more}");
            native_code(&wasm, &Facts::read(&wasm).unwrap()).unwrap();
        }
    }

    #[test]
    fn a_handler_of_another_type_is_refused() {
        let refused = compile(&component("")).unwrap_err();
        assert!(refused.contains(HANDLER) && refused.contains("another type"), "{refused}");
    }
}
