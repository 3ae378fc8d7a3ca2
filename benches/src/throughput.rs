//! Requests per second through one core, and the CPU time of each. Every server answers the same six bytes on a core of its own;
//! wrk asks from the other.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    child,
    figures::Unit,
    host::{Component, Pillion, Server},
    report::{Row, Section, Series, Target},
    setup::{Setup, two_cores},
};

/// Warm-up before each run, in seconds.
const WARM_UP: u64 = 1;

/// Its options.
#[derive(Args, Default)]
pub struct Arguments {
    /// Only this guest, several times for several
    #[arg(long, value_name = "NAME")]
    guest: Vec<String>,
    /// Connections [default: 16]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// How long each server is asked in each run [default: 3]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// A guest, and what `pillion` should reach with it.
struct Case {
    guest: &'static str,
    label: &'static str,
    servers: &'static [Contender],
    comparisons: &'static [Comparison],
}

/// A server that runs the guest, or none.
#[derive(Clone, Copy)]
enum Contender {
    Pillion,
    /// `spec.instances.reuse`
    PillionReusing(u32),
    Wasmtime,
    /// `--max-instance-reuse-count 1`
    WasmtimeFresh,
    Hyper,
}

/// Two of a case's servers: the measured one, the baseline, and the ratio that must, and that should, be reached.
struct Comparison(usize, usize, Option<f64>, Option<f64>);

/// By default both make an instance for each request of a p2 guest.
const P2: &[Contender] = &[Contender::Pillion, Contender::Wasmtime, Contender::Hyper];

/// `wasmtime serve` reuses instances of a p3 guest unless told otherwise, `pillion` does if told.
const P3: &[Contender] = &[
    Contender::Pillion,
    Contender::WasmtimeFresh,
    Contender::Hyper,
    Contender::PillionReusing(128),
    Contender::Wasmtime,
];

const CASES: [Case; 3] = [
    Case {
        guest: "hello-wasip2",
        label: "wasip2 guest",
        servers: P2,
        comparisons: &[Comparison(0, 1, Some(4.0), Some(5.0)), Comparison(0, 2, None, Some(0.5))],
    },
    Case {
        guest: "hello-wstd",
        label: "wstd guest",
        servers: P2,
        comparisons: &[Comparison(0, 1, Some(3.0), Some(4.0)), Comparison(0, 2, None, Some(0.5))],
    },
    Case {
        guest: "hello-spin",
        label: "spin-sdk guest (p3)",
        servers: P3,
        comparisons: &[
            Comparison(0, 1, Some(2.5), Some(4.0)),
            Comparison(0, 2, None, Some(0.5)),
            Comparison(0, 4, None, None),
            Comparison(3, 4, None, None),
        ],
    },
];

/// One server in one run.
#[derive(Clone, Copy)]
struct Sample {
    per_second: f64,
    cpu_seconds: f64,
}

/// Runs it.
///
/// # Errors
///
/// A server that fails or answers with anything but 200.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    let cores = two_cores()?;
    let wrk = Wrk {
        core: cores.1,
        connections: arguments.connections.unwrap_or(16),
        seconds: arguments.seconds.unwrap_or(setup.either(3, 1)),
    };
    let known = CASES.map(|case| case.guest);
    for guest in &arguments.guest {
        ensure!(known.contains(&guest.as_str()), "--guest {guest}: known are {}", known.join(", "));
    }
    let wanted = |case: &&Case| arguments.guest.is_empty() || arguments.guest.iter().any(|guest| guest == case.guest);
    let mut rows = Vec::new();
    for case in CASES.iter().filter(wanted) {
        let samples = case.measure(setup, cores.0, &wrk)?;
        rows.extend(case.rows(setup, &samples));
    }
    let notes = vec![
        format!("each server alone on core {}, {} after {WARM_UP} s of the same", cores.0, wrk.shown()),
        "CPU time: user and system of all its processes (supervisor and worker), from /proc/PID/stat".into(),
    ];
    Ok(Section { title: "throughput: a hello guest on one core".into(), notes, rows })
}

impl Case {
    /// For each server, one sample for each run.
    fn measure(&self, setup: &Setup, core: usize, wrk: &Wrk) -> anyhow::Result<Vec<Vec<Sample>>> {
        let wasm = setup.guest(self.guest)?;
        let mut samples = vec![Vec::new(); self.servers.len()];
        for run in 1..=setup.runs {
            eprintln!("throughput: {}, run {run} of {}", self.label, setup.runs);
            for (server, samples) in self.servers.iter().zip(&mut samples) {
                samples.push(server.measure(setup, &wasm, core, wrk).with_context(|| server.name())?);
            }
        }
        Ok(samples)
    }

    fn rows(&self, setup: &Setup, samples: &[Vec<Sample>]) -> Vec<Row> {
        let series = |index: usize, value: fn(&Sample) -> f64| {
            let runs = samples.get(index).map(|samples| samples.iter().map(value).collect());
            Series::new(
                self.servers.get(index).map(|server| server.name()).unwrap_or_default(),
                runs.unwrap_or_default(),
            )
        };
        let reproduce = setup.command(&format!("throughput --guest {}", self.guest));
        let mut rows = Vec::new();
        for Comparison(measured, baseline, must, aim) in self.comparisons {
            let row = |what: &str, unit: Unit, value: fn(&Sample) -> f64| {
                let (measured, baseline) = (series(*measured, value), series(*baseline, value));
                let what = format!("{}, {}: {what}", self.label, measured.name);
                Row::new(what, unit, &measured, &baseline, reproduce.clone())
            };
            let mut requests = row("requests", Unit::PerSecond, |sample| sample.per_second);
            if let Some(must) = must {
                requests = requests.must(Target::RatioAtLeast(*must));
            }
            if let Some(aim) = aim {
                requests = requests.aim(Target::RatioAtLeast(*aim));
            }
            rows.push(requests);
            rows.push(row("CPU time of one", Unit::Seconds, |sample| sample.cpu_seconds));
        }
        rows
    }
}

impl Contender {
    fn name(self) -> String {
        match self {
            Self::Pillion => "pillion run".into(),
            Self::PillionReusing(requests) => format!("pillion run, reuse {requests}"),
            Self::Wasmtime => "wasmtime serve -Scli".into(),
            Self::WasmtimeFresh => "wasmtime serve -Scli, reuse 1".into(),
            Self::Hyper => "plain hyper server".into(),
        }
    }

    /// Starts it, asks it, ends it.
    fn measure(self, setup: &Setup, wasm: &Path, core: usize, wrk: &Wrk) -> anyhow::Result<Sample> {
        match self {
            Self::Pillion => Self::pillion(setup, wasm, &json!({}), core, wrk),
            Self::PillionReusing(requests) => Self::pillion(setup, wasm, &json!({"reuse": requests}), core, wrk),
            Self::Wasmtime | Self::WasmtimeFresh => {
                let fresh: &[&str] =
                    if matches!(self, Self::WasmtimeFresh) { &["--max-instance-reuse-count", "1"] } else { &[] };
                let server = Server::wasmtime(setup, wasm, fresh, Some(core))?;
                wrk.sample(server.port, || server.cpu_time())
            }
            Self::Hyper => {
                let server = Server::hyper(Some(core))?;
                wrk.sample(server.port, || server.cpu_time())
            }
        }
    }

    fn pillion(setup: &Setup, wasm: &Path, instances: &Value, core: usize, wrk: &Wrk) -> anyhow::Result<Sample> {
        let mut component = Component::new("hello", wasm.to_owned());
        component.instances = instances.clone();
        let mut pillion = Pillion::start(setup, &setup.store()?, &[component], Some(core))?;
        let sample = wrk.sample(pillion.port("hello")?, || pillion.cpu_time());
        pillion.check()?;
        sample
    }
}

/// Who asks.
struct Wrk {
    core: usize,
    connections: usize,
    seconds: u64,
}

impl Wrk {
    fn shown(&self) -> String {
        format!("`wrk -t1 -c{} -d{}s` on core {}", self.connections, self.seconds, self.core)
    }

    fn sample(&self, port: u16, cpu_time: impl Fn() -> anyhow::Result<Duration>) -> anyhow::Result<Sample> {
        self.ask(port, WARM_UP)?;
        let before = cpu_time()?;
        let asked = self.ask(port, self.seconds)?;
        let used = cpu_time()? - before;
        Ok(Sample { per_second: asked.per_second, cpu_seconds: used.as_secs_f64() / asked.requests })
    }

    fn ask(&self, port: u16, seconds: u64) -> anyhow::Result<Asked> {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string(), "wrk", "-t1"]);
        command.args([format!("-c{}", self.connections), format!("-d{seconds}s"), format!("http://127.0.0.1:{port}/")]);
        let text = child::output("wrk", &mut command, Duration::from_secs(seconds + 60))?;
        Asked::parse(&text)
    }
}

/// What wrk says.
struct Asked {
    requests: f64,
    per_second: f64,
}

impl Asked {
    fn parse(text: &str) -> anyhow::Result<Self> {
        for error in ["Non-2xx", "Socket errors"] {
            let line = text.lines().find(|line| line.contains(error));
            ensure!(line.is_none(), "wrk: {}", line.unwrap_or_default().trim());
        }
        let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
        let per_second = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
        let requests = requests.filter(|requests| *requests > 0.0).with_context(|| format!("wrk: {text}"))?;
        Ok(Self { requests, per_second: per_second.with_context(|| format!("wrk: {text}"))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        "  1 threads and 16 connections\n  92384 requests in 3.10s, 11.72MB read\nRequests/sec:  29801.28\n";

    #[test]
    fn what_wrk_says_is_understood_and_errors_are_errors() {
        let asked = Asked::parse(SAID).unwrap();
        assert_eq!((asked.requests, asked.per_second), (92384.0, 29801.28));
        for error in ["  Non-2xx or 3xx responses: 12\n", "  Socket errors: connect 0, read 3, write 0, timeout 0\n"] {
            assert!(Asked::parse(&format!("{SAID}{error}")).is_err());
        }
        assert!(Asked::parse("").is_err());
    }

    #[test]
    fn every_comparison_is_between_servers_of_its_case() {
        for case in &CASES {
            for Comparison(measured, baseline, _, _) in case.comparisons {
                assert!(*measured < case.servers.len() && *baseline < case.servers.len());
            }
        }
    }
}
