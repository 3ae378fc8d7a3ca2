//! Neighbours: the latency of a well-behaved binding, alone and beside guests that spin, take memory, trap or never answer.
//!
//! The machine has a part in it: beside programs that spin in the same class as the guests, and no guest, it shows what the kernel
//! and, on a virtual machine, its host take by themselves.
//!
//! Nothing is pinned: the server has all cores, as on a node. The client that measures is one thread that asks 500 times a second
//! and counts from when each request was due; the thread that keeps the neighbours busy sends each again at most ten times a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    client,
    crowd::{Crowd, Group, Tally},
    figures::{Unit, largest, median, percentile},
    host::{Component, Pillion},
    load::OpenLoop,
    report::{Row, Section, Series, Target},
    setup::{Setup, raise_open_files},
    spin,
};

/// A neighbour's request that has ended is sent again, at the earliest so long after it was sent before.
const AGAIN: Duration = Duration::from_millis(100);

/// How long neighbours run before anything is measured, and how long they may take to be gone.
const SETTLE: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(20);

/// The ways to misbehave at once.
const FAULTS: [&str; 4] = ["loop", "alloc", "trap", "never"];

/// Its options.
#[derive(Args, Default)]
pub struct Arguments {
    /// Requests per second to the well-behaved binding [default: 500]
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How long each run takes [default: 10]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Spinning guests, several times for several [default: 8 and 100]
    #[arg(long, value_name = "N")]
    spinning: Vec<usize>,
    /// Guests of each kind of fault at once [default: 200]
    #[arg(long, value_name = "N")]
    each: Option<usize>,
}

/// Who else is there.
#[derive(Clone, Copy)]
enum Neighbours {
    None,
    /// A program that spins on each core, and no guest.
    Machine,
    /// Guests in a loop that no limit ends.
    Spinning(usize),
    /// So many of each fault, with the default limits.
    Faults(usize),
}

/// One run beside some neighbours.
struct Sample {
    p50: f64,
    p99: f64,
    max: f64,
    /// When the client wrote its requests, against when they were due: its own 99th percentile.
    delay: f64,
    /// Cores that `pillion` used.
    cores: f64,
    /// How the neighbours' requests ended.
    tally: Tally,
}

/// A figure of a sample.
type Value = fn(&Sample) -> f64;

/// Runs it.
///
/// # Errors
///
/// A request to the well-behaved binding that is not answered with 200, a worker that dies.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    let rate = arguments.rate.unwrap_or(500);
    let seconds = arguments.seconds.unwrap_or(setup.either(10, 1));
    let each = arguments.each.unwrap_or(setup.either(200, 20));
    let spinning =
        if arguments.spinning.is_empty() { setup.either(vec![8, 100], vec![8]) } else { arguments.spinning.clone() };
    ensure!(rate > 0 && seconds > 0 && each > 0, "--rate, --seconds and --each must be more than 0");
    let most = spinning.iter().copied().max().unwrap_or(1).max(200);
    raise_open_files();
    let mut conditions = vec![Neighbours::None, Neighbours::Machine];
    conditions.extend(spinning.iter().map(|count| Neighbours::Spinning(*count)));
    conditions.push(Neighbours::Faults(each));

    let components = components(setup, most, each)?;
    let mut samples: Vec<Vec<Sample>> = conditions.iter().map(|_| Vec::new()).collect();
    for run in 1..=setup.runs {
        let mut pillion = Pillion::start(setup, &setup.store()?, &components, None)?;
        for (neighbours, samples) in conditions.iter().zip(&mut samples) {
            eprintln!("neighbour: {}, run {run} of {}", neighbours.name(), setup.runs);
            let sample = measure(&mut pillion, *neighbours, rate, Duration::from_secs(seconds));
            samples.push(sample.with_context(|| neighbours.name())?);
        }
    }
    let spinning: String = spinning.iter().map(|count| format!(" --spinning {count}")).collect();
    let command = setup.command(&format!("neighbour --rate {rate} --seconds {seconds}{spinning} --each {each}"));
    let notes = notes(rate, seconds, &conditions, &samples);
    Ok(Section {
        title: "neighbour: latency of a well-behaved binding beside others".into(),
        notes,
        rows: rows(&command, &conditions, &samples),
    })
}

fn components(setup: &Setup, spinning: usize, each: usize) -> anyhow::Result<Vec<Component>> {
    let faults = setup.guest("faults-p2")?;
    let endless = json!({"cpuTime": "1h", "headTimeout": "1h", "concurrency": spinning});
    let mut components = vec![
        Component::new("victim", setup.guest("hello-wasip2")?),
        Component::new("spinning", faults.clone()).limits(endless),
    ];
    components.extend(
        FAULTS.map(|fault| Component::new(fault, faults.clone()).limits(json!({"concurrency": each.max(100)}))),
    );
    Ok(components)
}

fn measure(pillion: &mut Pillion, neighbours: Neighbours, rate: u32, duration: Duration) -> anyhow::Result<Sample> {
    let port = pillion.port("victim")?;
    client::wait_for(port, "/", Duration::from_secs(10))?;
    calm(pillion)?;
    let crowd = neighbours.start(pillion)?;
    let spinning = match neighbours {
        Neighbours::Machine => spin::one_each_core(SETTLE + duration + CALM)?,
        _ => Vec::new(),
    };
    thread::sleep(SETTLE);
    let (before, began) = (pillion.cpu_time()?, Instant::now());
    let outcome = OpenLoop { port, path: "/", rate, duration }.run()?;
    let cores = (pillion.cpu_time()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    drop(spinning);
    outcome.check()?;
    let tally = match (crowd, neighbours) {
        (None, _) => Tally::new(),
        (Some(crowd), Neighbours::Spinning(_)) => crowd.check_held().and_then(|()| crowd.end())?,
        (Some(crowd), _) => crowd.end()?,
    };
    pillion.check()?;
    let idle = matches!(neighbours, Neighbours::Spinning(_) | Neighbours::Faults(_)) && cores < 0.5;
    ensure!(!idle, "pillion used {cores:.2} cores: its guests do not run");
    Ok(Sample::new(&outcome.latencies, &outcome.delays, cores, tally))
}

/// Until those who were there before are gone.
fn calm(pillion: &Pillion) -> anyhow::Result<()> {
    let until = Instant::now() + CALM;
    loop {
        let before = pillion.cpu_time()?;
        thread::sleep(Duration::from_millis(300));
        if pillion.cpu_time()? - before <= Duration::from_millis(20) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "guests still run {CALM:?} after their callers went away");
    }
}

impl Neighbours {
    fn name(self) -> String {
        match self {
            Self::None => "alone".into(),
            Self::Machine => "beside a program that spins on each core, and no guest".into(),
            Self::Spinning(count) => format!("beside {count} spinning"),
            Self::Faults(each) => format!("beside {each} each of {}", FAULTS.join(", ")),
        }
    }

    fn start(self, pillion: &Pillion) -> anyhow::Result<Option<Crowd>> {
        match self {
            Self::None | Self::Machine => Ok(None),
            Self::Spinning(count) => {
                let group = Group { port: pillion.port("spinning")?, path: "/loop".into(), count };
                Crowd::start(&[group], None).map(Some)
            }
            Self::Faults(count) => {
                let group = |fault| anyhow::Ok(Group { port: pillion.port(fault)?, path: format!("/{fault}"), count });
                let groups: Vec<Group> = FAULTS.into_iter().map(group).collect::<anyhow::Result<_>>()?;
                Crowd::start(&groups, Some(AGAIN)).map(Some)
            }
        }
    }
}

impl Sample {
    fn new(latencies: &[f64], delays: &[f64], cores: f64, tally: Tally) -> Self {
        let [p50, p99, max] = [percentile(latencies, 0.5), percentile(latencies, 0.99), largest(latencies)];
        Self { p50, p99, max, delay: percentile(delays, 0.99), cores, tally }
    }
}

fn notes(rate: u32, seconds: u64, conditions: &[Neighbours], samples: &[Vec<Sample>]) -> Vec<String> {
    let mut notes = vec![format!(
        "the well-behaved binding (hello-wasip2) gets {rate} requests a second for {seconds} s; latency from when each was due to its end"
    )];
    for (neighbours, samples) in conditions.iter().zip(samples) {
        let middle = |value: Value| median(&samples.iter().map(value).collect::<Vec<_>>());
        let (cores, delay) = (middle(|sample| sample.cores), Unit::Seconds.show(middle(|sample| sample.delay)));
        notes.push(format!(
            "{}: pillion used {cores:.2} cores; the client itself was late by p99 {delay}",
            neighbours.name()
        ));
        let mut ended = Tally::new();
        for (how, count) in samples.iter().flat_map(|sample| &sample.tally) {
            *ended.entry(how.clone()).or_default() += count;
        }
        if !ended.is_empty() {
            let ended: Vec<String> = ended.iter().map(|(how, count)| format!("{how} × {count}")).collect();
            notes.push(format!("  their requests ended: {}", ended.join("; ")));
        }
    }
    notes
}

fn rows(command: &str, conditions: &[Neighbours], samples: &[Vec<Sample>]) -> Vec<Row> {
    let mut all = conditions.iter().zip(samples);
    let Some((_, alone)) = all.next() else { return Vec::new() };
    let series = |name: &str, samples: &[Sample], value: Value| Series::new(name, samples.iter().map(value).collect());
    let figures: [(&str, Value); 3] =
        [("p50", |sample| sample.p50), ("p99", |sample| sample.p99), ("max", |sample| sample.max)];
    let mut rows = Vec::new();
    for (neighbours, samples) in all {
        for (figure, value) in figures {
            let (measured, alone) = (series("pillion run", samples, value), series("pillion run, alone", alone, value));
            let row = Row::new(
                format!("{}, {figure}", neighbours.name()),
                Unit::Seconds,
                &measured,
                &alone,
                command.to_owned(),
            );
            let most = 2.0 * alone.median + 1e-3;
            let aims = figure == "p99" && !matches!(neighbours, Neighbours::Machine);
            rows.push(if aims { row.aim(Target::AtMost(most)) } else { row });
        }
    }
    rows
}
