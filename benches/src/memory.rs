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
    proc::{self, Memory},
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
    sidecar: Memory,
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
    let sidecar = setup.busybox.as_ref().map_or("plain hyper server", |_| "busybox httpd");
    let notes = vec![
        "PSS of supervisor and worker; page tables and the kernel's socket memory are apart, and in no PSS".into(),
        format!("{sidecar}: the mean of {SIDECARS} processes that share their program, as containers of one image do"),
        "in the kernel: the machine's SUnreclaim from before the start, so others on this machine disturb it".into(),
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
    let before = proc::kernel_memory()?;
    let pillion = Pillion::start(setup, &primed.store, &primed.components(count), None)?;
    let memory = settled(|| pillion.memory())?;
    let kernel = proc::kernel_memory()? - before;
    let sockets = proc::open_sockets(pillion.worker())?;
    ensure!(sockets >= count, "{count} bindings have {sockets} sockets");
    Ok((AtRest { memory, kernel }, pillion))
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

/// The smallest process that could be a sidecar.
fn sidecar(setup: &Setup) -> anyhow::Result<Memory> {
    let folder = tempfile::tempdir().context("a temporary directory cannot be made")?;
    let start = || match &setup.busybox {
        Some(busybox) => Server::busybox(busybox, folder.path()),
        None => Server::hyper(None),
    };
    let servers: Vec<Server> = (0..SIDECARS).map(|_| start()).collect::<anyhow::Result<_>>()?;
    let pids: Vec<u32> = servers.iter().map(Server::pid).collect();
    Ok(Memory::of_all(&pids)?.since(Memory::default(), SIDECARS))
}

/// Kernel memory of a listening socket, in bytes.
fn listener() -> anyhow::Result<f64> {
    let before = proc::kernel_memory()?;
    let listeners: Vec<TcpListener> =
        (0..LISTENERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    Ok((proc::kernel_memory()? - before) / listeners.len() as f64)
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

/// A figure of a process's memory.
type Part = fn(&Memory) -> f64;

const PSS: Part = |memory| memory.pss;
const ANONYMOUS: Part = |memory| memory.anonymous;
const PAGE_TABLES: Part = |memory| memory.page_tables;
const BOTH: Part = |memory| memory.pss + memory.page_tables;

fn rows(setup: &Setup, sidecar: &str, counts: &Counts, samples: &[Sample]) -> Vec<Row> {
    let Counts { many, few, held } = counts;
    let reproduce = setup.command(&format!("memory --components {many} --fewer {few} --held {held}"));
    let series = |name: &str, value: &dyn Fn(&Sample) -> f64| Series::new(name, samples.iter().map(value).collect());
    let row = |what: String, value: &dyn Fn(&Sample) -> f64, baseline: Series| {
        Row::new(what, Unit::Bytes, &series("pillion run", value), &baseline, reproduce.clone())
    };
    // What pillion adds for one thing, beside one sidecar process.
    let each = |what: &str, of: &dyn Fn(&Sample) -> Memory, part: Part| {
        row(format!("each {what}"), &|sample| part(&of(sample)), series(sidecar, &|sample| part(&sample.sidecar)))
    };
    let one = |part: Part| series("with one binding", &|sample| part(&sample.one.memory));
    let at_rest = |count: usize, what: &str, of: fn(&Sample) -> AtRest, part: Part, baseline: Series| {
        row(format!("{count} bindings at rest, {what}"), &|sample| part(&of(sample).memory), baseline)
    };
    let kernel = |sample: &Sample| (sample.many.kernel - sample.one.kernel) / (*many as f64 - 1.0);
    let binding = |sample: &Sample| sample.many.memory.since(sample.one.memory, many - 1);
    let process = |part: Part| series(sidecar, &|sample| part(&sample.sidecar));
    let listener = series("a listening socket", &|sample| sample.listener);
    vec![
        at_rest(1, "PSS", |sample| sample.one, PSS, process(PSS)).aim(Target::AtMost(12e6)),
        at_rest(1, "anonymous", |sample| sample.one, ANONYMOUS, process(ANONYMOUS)),
        at_rest(*few, "PSS", |sample| sample.few, PSS, one(PSS)).aim(Target::AtMost(20e6)),
        at_rest(*many, "PSS", |sample| sample.many, PSS, one(PSS)).aim(Target::AtMost(50e6)),
        each("binding at rest, PSS", &binding, PSS),
        row("each binding at rest, in the kernel".into(), &kernel, listener),
        each("loaded component, anonymous", &|sample| sample.loaded, ANONYMOUS),
        each("loaded component, PSS", &|sample| sample.loaded, PSS),
        each("request in flight, PSS", &|sample| sample.held, PSS),
        each("request in flight, page tables", &|sample| sample.held, PAGE_TABLES),
        each("request in flight, both", &|sample| sample.held, BOTH).aim(Target::AtMost(75e3)),
    ]
}
