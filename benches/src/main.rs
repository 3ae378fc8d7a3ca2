//! `pillion-bench`: throughput, cold start, memory, fairness and pulls of the released `pillion`, each against a named baseline
//! that is measured in the same run.
//!
//! | file | holds |
//! |---|---|
//! | [`throughput`], [`cold`], [`memory`], [`neighbour`], [`pod`], [`registry`], [`control`] | one bench each |
//! | [`setup`] | what all benches need to know: programs, runs, cores |
//! | [`child`], [`host`] | processes that are started, and ended whatever happens; `pillion run` among them |
//! | [`start`] | one start of `pillion run`, split by what it says on the way |
//! | [`prime`] | thousands of distinct components, compiled once |
//! | [`client`], [`load`], [`crowd`] | one request at a time; an open loop; many requests that are held or repeated |
//! | [`hyper_hello`], [`spin`] | the plain server that is the baseline for a request without a guest; a program that spins |
//! | [`proc`], [`figures`], [`report`] | what the kernel says; medians and ratios; table and JSON |

#![forbid(unsafe_code)]

mod child;
mod client;
mod cold;
mod control;
mod crowd;
mod figures;
mod host;
mod hyper_hello;
mod load;
mod memory;
mod neighbour;
mod pod;
mod prime;
mod proc;
mod registry;
mod report;
mod setup;
mod spin;
mod start;
mod throughput;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{report::Report, setup::Setup};

/// Measures `pillion` against named baselines.
#[derive(Parser)]
#[command(name = "pillion-bench", version)]
struct CommandLine {
    #[command(flatten)]
    setup: setup::Options,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Requests per second and CPU time per request on one core, beside `wasmtime serve` and a plain hyper server
    Throughput(throughput::Arguments),
    /// The first request to each of many components, none of which is loaded
    Cold(cold::Arguments),
    /// Memory of bindings at rest, of loaded components and of requests in flight
    Memory(memory::Arguments),
    /// Latency of a well-behaved binding beside guests that are not
    Neighbour(neighbour::Arguments),
    /// What pods notice: time added to their start, and what the death of a worker costs. Needs root
    Pod(pod::Arguments),
    /// From an artifact's reference to its first answer, by a docker-registry on this machine
    Registry,
    /// From a change of the catalog to an answer, and what a cluster of thousands of nodes costs control. Needs root
    Control(control::Arguments),
    /// Everything above, one after the other
    All,
    /// Only makes what `cold` and `memory` need: distinct components, compiled
    Prime(cold::Arguments),
    /// A hyper server that answers `hello`
    #[command(hide = true)]
    HyperHello(hyper_hello::Arguments),
    /// Spins
    #[command(hide = true)]
    Spin(spin::Arguments),
}

fn main() -> ExitCode {
    match run(CommandLine::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pillion-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: CommandLine) -> anyhow::Result<ExitCode> {
    if let Bench::HyperHello(arguments) = &line.bench {
        return hyper_hello::serve(arguments).map(|()| ExitCode::SUCCESS);
    }
    if let Bench::Spin(arguments) = &line.bench {
        spin::spin(arguments);
        return Ok(ExitCode::SUCCESS);
    }
    child::end_all_on_signals().context("signals cannot be handled")?;
    let setup = Setup::new(&line.setup)?;
    let mut report = Report::new(&setup);
    match &line.bench {
        Bench::Throughput(arguments) => report.add("throughput", throughput::run(&setup, arguments)),
        Bench::Cold(arguments) => report.add("cold", cold::run(&setup, arguments)),
        Bench::Memory(arguments) => report.add("memory", memory::run(&setup, arguments)),
        Bench::Neighbour(arguments) => report.add("neighbour", neighbour::run(&setup, arguments)),
        Bench::Pod(arguments) => report.add("pod", pod::run(&setup, arguments)),
        Bench::Registry => report.add("registry", registry::run(&setup)),
        Bench::Control(arguments) => report.add("control", control::run(&setup, arguments)),
        Bench::All => {
            report.add("throughput", throughput::run(&setup, &throughput::Arguments::default()));
            report.add("cold", cold::run(&setup, &cold::Arguments::default()));
            report.add("memory", memory::run(&setup, &memory::Arguments::default()));
            report.add("neighbour", neighbour::run(&setup, &neighbour::Arguments::default()));
            report.add("pod", pod::run(&setup, &pod::Arguments::default()));
            report.add("registry", registry::run(&setup));
            report.add("control", control::run(&setup, &control::Arguments::usual()));
        }
        Bench::Prime(arguments) => {
            prime::prepare(&setup, arguments.components(&setup))?;
            return Ok(ExitCode::SUCCESS);
        }
        Bench::HyperHello(_) | Bench::Spin(_) => {}
    }
    report.print(&setup)?;
    let failed = report.failed() || setup.strict && report.missed();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::CommandLine::command().debug_assert();
    }
}
