//! What pods notice: how much longer they take to start, how long endpoints wait for a worker after a crash, and connections that are
//! refused by it. A node without a cluster: the real keeper, host and plugin, in real network namespaces.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use pillion_tests::{
    load::{Knocking, Knocks, Load},
    netns::Netns,
    node::{Node, Sandbox},
    process, program, soon,
};
use rustix::process::Signal;

use crate::{
    figures::{Unit, percentile},
    report::{Row, Section, Series, Target},
    setup::{Setup, raise_open_files},
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a pod with sidecars asks for.
const SIDECARS: &str = "hello=8081, b=8082, c=8083, d=8084";

/// Listeners that it has then: four ports at two addresses.
const LISTENERS: usize = 8;

/// Pods that are called while a server dies.
const CALLED: usize = 20;

/// Its options.
#[derive(Args, Default)]
pub struct Arguments {
    /// Pods that start in each run [default: 300]
    #[arg(long, value_name = "N")]
    starts: Option<usize>,
    /// Listeners that are handed to a new worker [default: 10000]
    #[arg(long, value_name = "N")]
    listeners: Option<usize>,
}

/// Runs it.
///
/// # Errors
///
/// No root, a program that is not built, an endpoint that does not answer.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    raise_open_files();
    let starts = arguments.starts.unwrap_or(setup.either(300, 30));
    let listeners = arguments.listeners.unwrap_or(setup.either(10_000, 400));
    let mut rows = pod_starts(setup, starts)?;
    rows.push(handover(setup, listeners)?);
    rows.push(crashes(setup)?);
    let notes = vec![
        format!("a run is {starts} pods of each kind, in turns; ADD is timed from starting the plugin to its end"),
        "added: less the same percentile of a chained plugin that prints what came before and ends".into(),
        format!(
            "a crash is kill -9; {CALLED} pods call all the time (wrk, one connection), and open a connection every 10 ms"
        ),
    ];
    Ok(Section { title: "pod: what pods notice".into(), notes, rows })
}

fn add(node: &Node, pod: &str, netns: &Netns, sidecars: &str) -> anyhow::Result<()> {
    let said = node.cni("ADD", &Sandbox::new(pod, pod, netns, sidecars))?;
    ensure!(said.success, "{said:?}");
    Ok(())
}

/// Waits for an answer.
fn answers_soon(netns: &Netns) -> anyhow::Result<()> {
    soon("an answer", || netns.says_hello(8081))
}

/// The plugin's part in the start of a pod.
fn pod_starts(setup: &Setup, starts: usize) -> anyhow::Result<Vec<Row>> {
    let node = Node::with_hello()?;
    let no_op = program::named("no-op-plugin")?;
    let (mut none, mut without, mut with) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..setup.runs {
        eprintln!("pod: run {} of {}, {starts} pods of each kind", run + 1, setup.runs);
        let mut times: [Vec<f64>; 3] = Default::default();
        for i in 0..starts {
            let pod = format!("pod-{run}-{i}");
            let netns = Netns::with_loopback(node.folder(), &pod)?;
            let mut sandbox = Sandbox::new(&pod, &pod, &netns, SIDECARS);
            let bound = node.cni("ADD", &sandbox)?;
            ensure!(bound.success && node.cni("DEL", &sandbox)?.success, "{bound:?}");
            sandbox.annotations = serde_json::json!({});
            let passed = node.cni("ADD", &sandbox)?;
            let nothing = node.cni_of(&no_op, "ADD", &sandbox)?;
            ensure!(passed.success && nothing.success && passed.stdout == nothing.stdout, "{passed:?} {nothing:?}");
            for (times, said) in times.iter_mut().zip([nothing, passed, bound]) {
                times.push(said.took.as_secs_f64());
            }
        }
        let [nothing, passed, bound] = times;
        none.push(nothing);
        without.push(passed);
        with.push(bound);
    }
    let series = |name: &str, runs: &[Vec<f64>], share| {
        Series::new(name, runs.iter().map(|times| percentile(times, share)).collect())
    };
    let reproduce = setup.command(&format!("pod --starts {starts}"));
    let mut rows = Vec::new();
    for (share, label) in [(0.5, "p50"), (0.99, "p99")] {
        let baseline = series("no-op plugin", &none, share);
        for (kind, runs, aim) in [("without the annotation", &without, 1e-3), ("4 ports bound", &with, 5e-3)] {
            let whole = series("pillion-cni", runs, share);
            let added = whole.less("added", &baseline);
            let row =
                Row::new(format!("added to ADD, {kind}, {label}"), Unit::Seconds, &added, &baseline, reproduce.clone());
            rows.push(if label == "p99" { row.aim(Target::AtMost(aim)) } else { row });
        }
    }
    Ok(rows)
}

/// From a worker's death to the first answer of the endpoint that its successor hears of last.
fn handover(setup: &Setup, listeners: usize) -> anyhow::Result<Row> {
    let measure = |pods: usize| -> anyhow::Result<Vec<f64>> {
        let node = Node::with_hello()?;
        let name = |i: usize| format!("pod-{i:05}");
        let netns: Vec<Netns> =
            (0..pods).map(|i| Netns::with_loopback(node.folder(), &name(i))).collect::<Result<_, _>>()?;
        for (i, netns) in netns.iter().enumerate() {
            add(&node, &name(i), netns, SIDECARS)?;
        }
        let last = netns.last().context("no pod")?;
        answers_soon(last)?;
        let once = |_| {
            // A worker that dies within its first second is followed more slowly.
            thread::sleep(Duration::from_millis(1_500));
            let began = Instant::now();
            process::signal(node.worker()?, Signal::KILL)?;
            // What the dying worker has accepted still is lost.
            answers_soon(last)?;
            Ok(began.elapsed().as_secs_f64())
        };
        (0..setup.runs).map(once).collect()
    };
    eprintln!("pod: {listeners} listeners handed to a new worker");
    let many = Series::new("pillion", measure(listeners.div_ceil(LISTENERS))?);
    let one = Series::new(format!("{LISTENERS} listeners"), measure(1)?);
    let what = format!("a worker's death to an answer, {listeners} listeners");
    let reproduce = setup.command(&format!("pod --listeners {listeners}"));
    Ok(Row::new(what, Unit::Seconds, &many, &one, reproduce).aim(Target::AtMost(0.3)))
}

/// Connections that are refused when a server dies: ours, and one that nobody holds the listener for.
fn crashes(setup: &Setup) -> anyhow::Result<Row> {
    let deaths = setup.either(5, 2);
    let pods = |folder: &Path| -> anyhow::Result<Vec<Netns>> {
        (0..CALLED).map(|i| Netns::with_loopback(folder, &format!("called-{i}"))).collect()
    };
    // How many of the connections that are opened while `die` is done, so often, are refused.
    let refused = |pods: &[Netns], die: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<f64> {
        let loads: Vec<Load> = pods.iter().map(|netns| Load::start(netns, 8081, "/", 1)).collect::<Result<_, _>>()?;
        let knocking: Vec<Knocking> = pods.iter().map(|netns| Knocking::start(netns, 8081)).collect();
        for _ in 0..deaths {
            // A worker that dies within its first second is followed more slowly.
            thread::sleep(Duration::from_millis(1_100));
            die()?;
        }
        thread::sleep(Duration::from_millis(1_100));
        let knocks: Knocks = knocking.into_iter().map(Knocking::end).sum::<Result<_, _>>()?;
        loads.into_iter().try_for_each(|load| load.end().map(drop))?;
        Ok(knocks.refused as f64 / deaths as f64)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (node, folder) = (Node::with_hello()?, tempfile::tempdir()?);
    let (with, without) = (pods(node.folder())?, pods(folder.path())?);
    for (i, netns) in with.iter().enumerate() {
        add(&node, &format!("called-{i}"), netns, "hello=8081")?;
    }
    with.iter().try_for_each(answers_soon)?;
    for run in 0..setup.runs {
        eprintln!("pod: run {} of {}, {deaths} deaths under load", run + 1, setup.runs);
        ours.push(refused(&with, &mut || process::signal(node.worker()?, Signal::KILL))?);
        let mut servers: Vec<_> = without.iter().map(PlainServer::start).collect::<Result<_, _>>()?;
        theirs.push(refused(&without, &mut || servers.iter_mut().try_for_each(PlainServer::start_again))?);
    }
    let baseline = Series::new("plain hyper servers, each killed and started again at once", theirs);
    let measured = Series::new("pillion", ours);
    let what = format!("refused in {CALLED} pods by a crash");
    Ok(Row::new(what, Unit::Count, &measured, &baseline, setup.command("pod")).must(Target::AtMost(0.0)))
}

/// The plain server in a pod, as a container would run it.
struct PlainServer<'a> {
    netns: &'a Netns,
    process: std::process::Child,
}

impl<'a> PlainServer<'a> {
    fn start(netns: &'a Netns) -> anyhow::Result<Self> {
        let server = Self { netns, process: Self::spawn(netns)? };
        soon("a plain server", || netns.connect(V4, 8081))?;
        Ok(server)
    }

    fn spawn(netns: &Netns) -> anyhow::Result<std::process::Child> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.path().display())).arg(std::env::current_exe()?);
        command.args(["hyper-hello", "--address", "127.0.0.1:8081"]);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = Self::spawn(self.netns)?;
        Ok(())
    }
}

impl Drop for PlainServer<'_> {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
