//! What a large cluster costs control: memory, the time until every node has what it needs, and CPU time of a change.
//!
//! Control is started anew for each size, so that each figure is of what it found. What this machine does not carry is extrapolated, which a
//! row says of itself.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use kube::api::{Patch, PatchParams};
use pillion_sockets::listen;
use pillion_tests::control::{Control, Plane};
use serde_json::json;

use super::cluster::{self, Nodes};
use crate::{
    figures::Unit,
    proc,
    report::{Row, Section, Series, Target},
};

/// The cluster that control has to be enough for.
const NODES: f64 = 5_000.0;
const PODS: f64 = 150_000.0;

/// Changes whose CPU time is measured.
const CHANGES: usize = 300;

/// How long control may take to lead.
const LEAD: Duration = Duration::from_secs(300);

/// How large a cluster is made.
pub(super) struct Size {
    pub(super) nodes: usize,
    pub(super) pods: usize,
    pub(super) annotated: usize,
}

/// Control, and what it took to lead.
struct Led {
    control: Control,
    /// Seconds from its start until it served nodes.
    seconds: f64,
    /// Seconds of CPU time that it took itself.
    cpu: f64,
    /// The most memory it has had, in bytes.
    peak: f64,
}

pub(super) async fn measure(size: &Size, section: &mut Section) -> anyhow::Result<()> {
    listen::raise_descriptor_limit();
    let plane = Plane::start().await?;
    let client = cluster::client(&plane).await?;
    for name in ["common", "rare"] {
        // Nobody is there, so nodes are told the tag.
        plane.cluster_component(name, &json!({"image": format!("localhost:9/{name}:1")}))?;
    }
    let mut count = 0;
    let mut lead = async |what: &str| {
        count += 1;
        eprintln!("control: it starts with {what}");
        led(&plane, &format!("control-{count}")).await
    };
    let empty = lead("nothing").await?;
    drop(empty.control);
    eprintln!("control: {} nodes and {} pods are made", size.nodes, size.pods);
    let began = Instant::now();
    let tokens = cluster::agents(&client, size.nodes).await?;
    cluster::pods(&client, "plain", size.pods, size.nodes, None).await?;
    let plain = lead("pods that have no sidecars").await?;
    drop(plain.control);
    eprintln!("control: {} pods with sidecars are made", size.annotated);
    cluster::pods(&client, "served", size.annotated, size.nodes, Some("common=8081")).await?;
    cluster::pods(&client, "rare", 1, 1, Some("rare=8081")).await?;
    let made = began.elapsed();
    let whole = lead("pods that have some").await?;
    eprintln!("control: {} nodes come", size.nodes);
    let pid = whole.control.pid();
    let authority = plane.access(&whole.control, std::path::Path::new(""))?.authority;
    let came = Instant::now();
    let nodes = Nodes::connect(whole.control.port(), &authority, &tokens).await?;
    let told = came.elapsed().as_secs_f64();
    let connected = peak(pid)?;
    let many = change_costs(&client, pid, &nodes).await?;
    drop(nodes);
    let few =
        Nodes::connect(whole.control.port(), &authority, tokens.get(..size.nodes / 10).unwrap_or_default()).await?;
    let alone = change_costs(&client, pid, &few).await?;

    let one = |name: &str, value: f64| Series::new(name, vec![value]);
    let reproduce = || "pillion-bench control".to_owned();
    let mut row = |what: String, unit, measured: f64, name: &str, baseline: f64, aim: Option<f64>| {
        let row = Row::new(what, unit, &one("control", measured), &one(name, baseline), reproduce());
        section.rows.push(match aim {
            Some(most) => row.aim(Target::AtMost(most)),
            None => row,
        });
    };
    let (count, annotated) = (size.nodes as f64, size.annotated as f64);
    let others = (size.nodes + size.pods) as f64;
    row(format!("peak memory, {others} pods without sidecars"), Unit::Bytes, plain.peak, "no pods", empty.peak, None);
    row(
        format!("peak memory, {annotated} with sidecars too"),
        Unit::Bytes,
        whole.peak,
        "without them",
        plain.peak,
        None,
    );
    row(format!("peak memory, {count} nodes' streams too"), Unit::Bytes, connected, "no streams", whole.peak, None);
    row("start to lead".into(), Unit::Seconds, whole.seconds, "no pods", empty.seconds, None);
    row("CPU time of control until it leads".into(), Unit::Seconds, whole.cpu, "start to lead", whole.seconds, None);
    row(format!("{count} nodes come and have it all"), Unit::Seconds, told, "start to lead", whole.seconds, None);
    row(
        "CPU time of a change that one node needs".into(),
        Unit::Seconds,
        many,
        &format!("{} nodes", size.nodes / 10),
        alone,
        None,
    );
    let each = |after: f64, before: f64, count: f64| (after - before).max(0.0) / count.max(1.0);
    for (share, words) in [(0.1, "one in ten with sidecars"), (1.0, "all of them with sidecars")] {
        let sidecars = PODS * share;
        let memory = empty.peak
            + each(plain.peak, empty.peak, others) * (PODS - sidecars)
            + each(whole.peak, plain.peak, annotated) * sidecars
            + each(connected, whole.peak, count) * NODES;
        let seconds = empty.seconds
            + each(plain.seconds, empty.seconds, others) * (PODS - sidecars)
            + each(whole.seconds, plain.seconds, annotated) * sidecars
            + told / count * NODES;
        let of = format!("5,000 nodes, 150,000 pods, {words}: extrapolated");
        row(format!("memory, {of}"), Unit::Bytes, memory, "measured", connected, Some(1e9));
        row(
            format!("start until all nodes have it all, {of}"),
            Unit::Seconds,
            seconds,
            "measured",
            whole.seconds + told,
            Some(10.0),
        );
    }
    section.notes.push(format!(
        "the cluster: {count} agents' pods, {} pods without and {annotated} with sidecars, made by the API in {:.0} s; nodes are streams by TLS of \
         clients in this process, {} at a time as they come",
        size.pods,
        made.as_secs_f64(),
        cluster::CONNECTING,
    ));
    section.notes.push("extrapolated: what was measured, by a straight line for each kind of pod and for nodes; the machine has two cores for API server, control and nodes".into());
    Ok(())
}

async fn led(plane: &Plane, identity: &str) -> anyhow::Result<Led> {
    // Whoever led before has not given the Lease up.
    _ = plane.api.kubectl(&[
        "delete",
        "lease",
        "pillion-control",
        "-n",
        pillion_tests::control::NAMESPACE,
        "--ignore-not-found",
    ]);
    let began = Instant::now();
    let control = plane.control(identity)?;
    while !control.log().contains("\"leading\":\"Yes\"") {
        ensure!(began.elapsed() < LEAD, "it does not lead: {}", control.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (seconds, peak) = (began.elapsed().as_secs_f64(), peak(control.pid())?);
    let cpu = proc::cpu_time(control.pid())?.as_secs_f64();
    Ok(Led { control, seconds, cpu, peak })
}

/// The most memory that a process has had.
fn peak(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0)
}

/// CPU seconds that control takes for a change which one node needs, beyond what it takes when nothing changes. Nobody else may be told.
async fn change_costs(client: &kube::Client, pid: u32, nodes: &Nodes) -> anyhow::Result<f64> {
    let api = cluster::components(client.clone());
    // What came before is over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = cpu_of(pid, async { tokio::time::sleep(Duration::from_secs(10)).await }).await?;
    let before = nodes.said.load(Relaxed);
    let changes = cpu_of(pid, async {
        for number in 0..CHANGES {
            let patch = json!({"spec": {"env": [{"name": "NUMBER", "value": number.to_string()}]}});
            api.patch("rare", &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        // Status and Events are written afterwards.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok::<_, kube::Error>(())
    })
    .await?;
    changes.result?;
    let told = nodes.said.load(Relaxed) - before;
    // Changes that come while one is told are told as one.
    ensure!((1..=CHANGES).contains(&told), "{CHANGES} changes of one node's component were told {told} times");
    Ok((changes.cpu - idle.cpu / idle.seconds * changes.seconds).max(0.0) / CHANGES as f64)
}

struct Used<T> {
    cpu: f64,
    seconds: f64,
    result: T,
}

async fn cpu_of<T>(pid: u32, work: impl Future<Output = T>) -> anyhow::Result<Used<T>> {
    let (before, began) = (proc::cpu_time(pid)?, Instant::now());
    let result = work.await;
    Ok(Used { cpu: (proc::cpu_time(pid)? - before).as_secs_f64(), seconds: began.elapsed().as_secs_f64(), result })
}
