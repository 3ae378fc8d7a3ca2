//! Memory: of bindings at rest, of components that are loaded, of requests in flight. PSS of supervisor and worker together.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    client,
    crowd::{Crowd, Group},
    figures::Unit,
    host::{Component, Pillion, Server},
    prime::{self, Primed},
    proc::{self, Memory, Sockets},
    report::{Row, Section, Series, Target},
    setup::{Setup, raise_open_files},
};

/// Sidecar processes that are measured together, since they share their program's pages.
const SIDECARS: usize = 20;

/// Listening sockets, to see what one takes in the kernel.
const LISTENERS: usize = 1_000;

/// How long memory may take to come to rest.
const SETTLE: Duration = Duration::from_secs(10);

/// Its options.
#[derive(Args, Default)]
pub struct Arguments {
    /// Distinct components, a binding each [default: 10000]
    #[arg(long, value_name = "N")]
    components: Option<usize>,
    /// Fewer of them, also those that are loaded [default: 1000]
    #[arg(long, value_name = "N")]
    fewer: Option<usize>,
    /// Requests in flight [default: 1000]
    #[arg(long, value_name = "N")]
    held: Option<usize>,
}

/// What is counted.
struct Counts {
    many: usize,
    few: usize,
    held: usize,
}

/// One run.
struct Sample {
    /// A sidecar as a process of its own.
    sidecar: f64,
    /// A listening socket in the kernel.
    listener: f64,
    /// `pillion run` with one binding, with few and with many.
    one: AtRest,
    few: AtRest,
    many: AtRest,
    /// What each loaded component adds.
    loaded: Memory,
    /// What each request in flight adds.
    held: Memory,
}

#[derive(Clone, Copy)]
struct AtRest {
    memory: Memory,
    /// Kernel memory of the whole machine since before the start.
    kernel: f64,
}

/// Runs it.
///
/// # Errors
///
/// A request that fails, a held one that ends.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    let counts = Counts {
        many: arguments.components.unwrap_or(setup.either(10_000, 100)),
        few: arguments.fewer.unwrap_or(setup.either(1_000, 50)),
        held: arguments.held.unwrap_or(setup.either(1_000, 50)),
    };
    ensure!(2 <= counts.few && counts.few <= counts.many, "--fewer {}: allowed are 2 to {}", counts.few, counts.many);
    let files = raise_open_files();
    ensure!(counts.held as u64 + 100 < files, "--held {}: this process may open {files} files", counts.held);
    let primed = prime::prepare(setup, counts.many)?;
    let mut samples = Vec::new();
    for run in 1..=setup.runs {
        eprintln!("memory: run {run} of {}", setup.runs);
        samples.push(Sample::take(setup, &primed, &counts)?);
    }
    let sidecar = setup.busybox.as_ref().map_or("the plain hyper server, as there is no busybox", |_| "busybox httpd");
    let notes = vec![
        "PSS of supervisor and worker; page tables and the kernel's socket memory are apart, and in no PSS".into(),
        format!(
            "a sidecar process: {sidecar}, the mean of {SIDECARS} that share their program; its kernel memory is not counted"
        ),
        "kernel memory: the machine's SUnreclaim from before the start, so others on this machine disturb it".into(),
        "a loaded component's PSS holds clean pages of its file, which the kernel can drop; anonymous memory it cannot"
            .into(),
    ];
    let title = "memory: bindings at rest, loaded components, requests in flight".to_owned();
    Ok(Section { title, notes, rows: rows(setup, sidecar, &counts, &samples) })
}

impl Sample {
    fn take(setup: &Setup, primed: &Primed, counts: &Counts) -> anyhow::Result<Self> {
        let sidecar = sidecar(setup)?;
        let listener = listener()?;
        let (one, _) = at_rest(setup, primed, 1)?;
        let (few, mut pillion) = at_rest(setup, primed, counts.few)?;
        let loaded = loaded(&mut pillion, counts.few)?;
        drop(pillion);
        let (many, _) = at_rest(setup, primed, counts.many)?;
        let held = held(setup, counts.held)?;
        Ok(Self { sidecar, listener, one, few, many, loaded, held })
    }
}

fn at_rest(setup: &Setup, primed: &Primed, count: usize) -> anyhow::Result<(AtRest, Pillion)> {
    let before = Sockets::read()?;
    let pillion = Pillion::start(setup, &primed.store, &primed.components(count), None)?;
    let memory = settled(|| pillion.memory())?;
    let after = Sockets::read()?;
    let listening = after.tcp - before.tcp;
    ensure!(listening >= count as f64, "{count} bindings have {listening} sockets");
    Ok((AtRest { memory, kernel: after.slab - before.slab }, pillion))
}

/// What each component adds that is loaded, which one request does.
fn loaded(pillion: &mut Pillion, count: usize) -> anyhow::Result<Memory> {
    // The first one also makes the engine.
    ask(pillion, 0)?;
    let before = settled(|| pillion.memory())?;
    for number in 1..count {
        ask(pillion, number)?;
    }
    let after = settled(|| pillion.memory())?;
    let files = proc::mappings(pillion.worker(), ".code")?.1;
    ensure!(files == count, "of {count} components {files} are loaded");
    pillion.check()?;
    Ok(after.since(before, count - 1))
}

fn ask(pillion: &Pillion, number: usize) -> anyhow::Result<()> {
    let name = prime::name(number);
    let answer = client::ask(pillion.port(&name)?, "/", Duration::ZERO)?.answer;
    ensure!(answer.status == 200, "{name}: {answer}");
    Ok(())
}

/// What each request adds whose guest waits for a timer.
fn held(setup: &Setup, count: usize) -> anyhow::Result<Memory> {
    let limits = json!({"concurrency": count, "headTimeout": "1h", "memory": "16Mi"});
    let sleeper = Component::new("sleeper", setup.guest("faults-p2")?).limits(limits);
    let mut pillion = Pillion::start(setup, &setup.store()?, &[sleeper], None)?;
    let port = pillion.port("sleeper")?;
    client::wait_for(port, "/hello", Duration::from_secs(10))?;
    let before = settled(|| pillion.memory())?;
    let group = Group { port, path: "/sleep?ms=3000000".into(), count };
    let crowd = Crowd::start(&[group], None)?;
    let after = settled(|| pillion.memory())?;
    crowd.check_held()?;
    pillion.check()?;
    Ok(after.since(before, count))
}

/// The smallest process that could be a sidecar, in bytes of PSS.
fn sidecar(setup: &Setup) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir().context("a temporary directory cannot be made")?;
    let start = || match &setup.busybox {
        Some(busybox) => Server::busybox(busybox, folder.path()),
        None => Server::hyper(None),
    };
    let servers: Vec<Server> = (0..SIDECARS).map(|_| start()).collect::<anyhow::Result<_>>()?;
    let sum: f64 =
        servers.iter().map(|server| server.memory().map(|memory| memory.pss)).sum::<anyhow::Result<f64>>()?;
    Ok(sum / SIDECARS as f64)
}

/// Kernel memory of a listening socket, in bytes.
fn listener() -> anyhow::Result<f64> {
    let before = Sockets::read()?;
    let listeners: Vec<TcpListener> =
        (0..LISTENERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let after = Sockets::read()?;
    Ok((after.slab - before.slab) / listeners.len() as f64)
}

/// Memory when it does not change any more.
fn settled(read: impl Fn() -> anyhow::Result<Memory>) -> anyhow::Result<Memory> {
    let until = Instant::now() + SETTLE;
    let mut last = read()?;
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = read()?;
        if (now.pss - last.pss).abs() < now.pss * 0.002 || Instant::now() > until {
            return Ok(now);
        }
        last = now;
    }
}

fn rows(setup: &Setup, sidecar: &str, counts: &Counts, samples: &[Sample]) -> Vec<Row> {
    let Counts { many, few, held } = counts;
    let series = |name: &str, value: &dyn Fn(&Sample) -> f64| Series::new(name, samples.iter().map(value).collect());
    let pillion = |value: &dyn Fn(&Sample) -> f64| series("pillion run", value);
    let sidecar = series(&format!("a sidecar process ({sidecar})"), &|sample| sample.sidecar);
    let one = series("pillion run with one binding", &|sample| sample.one.memory.pss);
    let listener = series("a listening socket", &|sample| sample.listener);
    let reproduce = setup.command(&format!("memory --components {many} --fewer {few} --held {held}"));
    let row = |what: String, measured: &Series, baseline: &Series| {
        Row::new(what, Unit::Bytes, measured, baseline, reproduce.clone())
    };
    let at_rest = |what: &str, count: usize, baseline: &Series, of: fn(&Sample) -> AtRest, most: f64| {
        let measured = pillion(&|sample| of(sample).memory.pss);
        row(format!("{count} {what}"), &measured, baseline).aim(Target::AtMost(most))
    };
    let each = |what: &str, value: &dyn Fn(&Sample) -> f64| row(what.to_owned(), &pillion(value), &sidecar);
    let count = *many as f64;
    let per_binding = |sample: &Sample| (sample.many.memory.pss - sample.one.memory.pss) / (count - 1.0);
    let kernel = pillion(&|sample| (sample.many.kernel - sample.one.kernel) / (count - 1.0));
    vec![
        at_rest("binding, nothing loaded", 1, &sidecar, |sample| sample.one, 12e6),
        at_rest("bindings, nothing loaded", *few, &one, |sample| sample.few, 20e6),
        at_rest("bindings, nothing loaded", *many, &one, |sample| sample.many, 50e6),
        each("each binding at rest", &per_binding),
        row("each binding at rest, in the kernel".into(), &kernel, &listener),
        each("each loaded component, anonymous", &|sample| sample.loaded.anonymous),
        each("each loaded component, PSS", &|sample| sample.loaded.pss),
        each("each request in flight, PSS", &|sample| sample.held.pss),
        each("each request in flight, page tables", &|sample| sample.held.page_tables),
        each("each request in flight, both", &|sample| sample.held.pss + sample.held.page_tables)
            .aim(Target::AtMost(75e3)),
    ]
}
