//! Cold start: the first request to each of many components, of which none is loaded. One at a time, each on a connection of its
//! own, timed by the client from just before it writes the request to the first byte of the answer.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use crate::{
    client,
    figures::{Unit, largest, percentile},
    host::{Pillion, Server},
    prime, proc,
    report::{Row, Section, Series, Target},
    setup::{Setup, raise_open_files},
};

/// How long a connection is open before its request: so the accept is over, and every request wakes the server.
const SETTLE: Duration = Duration::from_micros(500);

/// Requests to the plain server in each run: all go to one port, so more would use up the client's ports.
const ROUND_TRIPS: usize = 1_000;

/// Its options.
#[derive(Args, Default)]
pub struct Arguments {
    /// Distinct components [default: 10000]
    #[arg(long, value_name = "N")]
    components: Option<usize>,
}

impl Arguments {
    /// How many components.
    pub fn components(&self, setup: &Setup) -> usize {
        self.components.unwrap_or(setup.either(10_000, 100))
    }
}

/// Seconds, of each request of one run.
#[derive(Default)]
struct Times {
    first: Vec<f64>,
    second: Vec<f64>,
    plain: Vec<f64>,
}

/// Runs it.
///
/// # Errors
///
/// An answer that is not the component's own.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    let count = arguments.components(setup);
    raise_open_files();
    let primed = prime::prepare(setup, count)?;
    let hyper = Server::hyper(None)?;
    let mut pillion = Pillion::start(setup, &primed.store, &primed.components(count), None)?;
    let bytes = primed.read_all()?;
    let loaded_before = proc::mappings(pillion.worker(), ".code")?.1;
    ensure!(loaded_before == 0, "{loaded_before} components were loaded before the first request");

    let numbers: Vec<usize> = (0..count).collect();
    let mut runs = Vec::new();
    for (run, numbers) in numbers.chunks(count.div_ceil(setup.runs)).enumerate() {
        eprintln!("cold: run {} of {}, {} components", run + 1, setup.runs, numbers.len());
        let mut times = Times::default();
        for seconds in [&mut times.first, &mut times.second] {
            for number in numbers {
                seconds.push(ask(&pillion, *number)?);
            }
        }
        for _ in numbers.iter().take(ROUND_TRIPS) {
            times.plain.push(client::ask(hyper.port, "/", SETTLE)?.first_byte.as_secs_f64());
        }
        runs.push(times);
    }
    let loaded_after = proc::mappings(pillion.worker(), ".code")?.1;
    pillion.check()?;

    let all: Vec<f64> = runs.iter().flat_map(|times| times.first.iter().copied()).collect();
    let [p50, p99, max] =
        [percentile(&all, 0.5), percentile(&all, 0.99), largest(&all)].map(|value| Unit::Seconds.show(value));
    let notes = vec![
        format!(
            "{count} distinct components ({:.1} GB of native code, in the page cache), a binding each",
            bytes as f64 / 1e9
        ),
        format!("loaded before the first request: {loaded_before}; at the end: {loaded_after}"),
        format!(
            "a run is {} components: the first request to each, then the second to each, then the baseline",
            count.div_ceil(setup.runs)
        ),
        format!("all first requests together: p50 {p50}, p99 {p99}, max {max}"),
        "server's side: less the median that the same client needs for a request to the plain hyper server".into(),
    ];
    Ok(Section {
        title: "cold: the first request to a component that is not loaded".into(),
        notes,
        rows: rows(setup, count, &runs),
    })
}

fn ask(pillion: &Pillion, number: usize) -> anyhow::Result<f64> {
    let name = prime::name(number);
    let timed = client::ask(pillion.port(&name)?, "/", SETTLE).with_context(|| name.clone())?;
    let (answer, expected) = (timed.answer, prime::answer(number));
    ensure!(
        answer.status == 200 && answer.body == expected,
        "{name}: {answer}, {:?}",
        String::from_utf8_lossy(&answer.body)
    );
    Ok(timed.first_byte.as_secs_f64())
}

fn rows(setup: &Setup, count: usize, runs: &[Times]) -> Vec<Row> {
    let series = |name: &str, times: fn(&Times) -> &Vec<f64>, share: f64| {
        Series::new(name, runs.iter().map(|run| percentile(times(run), share)).collect())
    };
    let plain = |share| series("plain hyper server, the socket's round trip", |times| &times.plain, share);
    let (trip, slow_trip) = (plain(0.5), plain(0.99));
    let reproduce = setup.command(&format!("cold --components {count}"));
    let row = |what: &str, measured: &Series, baseline: &Series| {
        Row::new(what, Unit::Seconds, measured, baseline, reproduce.clone())
    };
    let first = [0.5, 0.99].map(|share| series("pillion run", |times| &times.first, share));
    let second = [0.5, 0.99].map(|share| series("pillion run", |times| &times.second, share));
    let [first_p50, first_p99] = &first;
    let [second_p50, second_p99] = &second;
    let server_side = |of: &Series| of.less("pillion run, server's side", &trip);
    vec![
        row("first request, p50", first_p50, &trip),
        row("first request, p99", first_p99, &slow_trip),
        row("first request, server's side, p50", &server_side(first_p50), &trip).aim(Target::AtMost(0.3e-3)),
        row("first request, server's side, p99", &server_side(first_p99), &trip).aim(Target::AtMost(1e-3)),
        row("second request, p50", second_p50, &trip),
        row("second request, p99", second_p99, &slow_trip),
        row("second request, server's side, p50", &server_side(second_p50), &trip),
    ]
}
