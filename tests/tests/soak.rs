//! What takes long by nature: many deaths, upgrades and pods. A short form runs with all tests, the whole with `make soak`, which
//! prints its figures.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    is_soak,
    load::{Knocking, Knocks, Load, Seen},
    netns::Netns,
    node::{Node, Sandbox},
    process, soon,
};
use rustix::process::Signal;

/// Pods that are called all the time.
const PODS: usize = 20;

/// How often something is done: in the short form, and in the whole.
fn times(short: usize, whole: usize) -> usize {
    if is_soak() { whole } else { short }
}

/// Calls in `PODS` pods, on connections that are kept and on new ones, while `work` is done; gives what all of them saw.
fn under_load(node: &mut Node, work: impl FnOnce(&mut Node) -> Result<()>) -> Result<(Seen, Knocks)> {
    let pods: Vec<Netns> =
        (0..PODS).map(|i| Netns::with_loopback(node.folder(), &format!("pod-{i}"))).collect::<Result<_>>()?;
    for (i, netns) in pods.iter().enumerate() {
        let (pod, id) = (format!("cart-{i}"), format!("c{i}"));
        let said = node.cni("ADD", &Sandbox::new(&pod, &id, netns, "hello=8081"))?;
        ensure!(said.success, "{said:?}");
    }
    pods.iter().try_for_each(|netns| soon("an answer", || netns.says_hello(8081)))?;
    let loads: Vec<Load> = pods.iter().map(|netns| Load::start(netns, 8081, "/", 1)).collect::<Result<_>>()?;
    let knocking: Vec<Knocking> = pods.iter().map(|netns| Knocking::start(netns, 8081)).collect();
    thread::sleep(Duration::from_millis(300));
    work(node)?;
    thread::sleep(Duration::from_millis(300));
    for netns in &pods {
        netns.says_hello(8081)?;
    }
    let knocks: Knocks = knocking.into_iter().map(Knocking::end).sum::<Result<_>>()?;
    ensure!(knocks.opened > 100, "{knocks:?}");
    Ok((loads.into_iter().map(Load::end).sum::<Result<_>>()?, knocks))
}

#[test]
fn a_worker_that_is_killed_again_and_again_costs_only_what_is_in_flight() -> Result<()> {
    let deaths = times(3, 50);
    let mut node = Node::with_hello()?;
    let (seen, knocks) = under_load(&mut node, |node| {
        for _ in 0..deaths {
            // One that dies within its first second is followed more slowly.
            thread::sleep(Duration::from_millis(1_100));
            let worker = node.worker()?;
            process::signal(worker, Signal::KILL)?;
            soon("the next worker", || {
                ensure!(node.worker()? != worker, "it is the old one");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    println!("{deaths} workers killed under load in {PODS} pods: {seen:?}, {knocks:?}");
    assert_eq!((knocks.refused, seen.bad), (0, 0), "{seen:?}");
    assert!(seen.lost <= (deaths * PODS) as u64, "more than one request for each connection: {seen:?}");
    assert!(seen.answers > 1_000, "{seen:?}");
    Ok(())
}

#[test]
fn upgrades_and_rollbacks_lose_nothing() -> Result<()> {
    // A rollback is an upgrade to what was there before: another pod, of a generation of its own.
    let replaced = times(4, 25);
    let mut node = Node::with_hello()?;
    let mut longest = Duration::ZERO;
    let (seen, knocks) = under_load(&mut node, |node| {
        for _ in 0..replaced {
            let began = Instant::now();
            node.replace_agent()?;
            longest = longest.max(began.elapsed());
        }
        Ok(())
    })?;
    println!("{replaced} agents replaced under load in {PODS} pods, at most {longest:.1?} each: {seen:?}, {knocks:?}");
    assert_eq!((knocks.refused, seen.lost, seen.bad), (0, 0, 0), "nothing is refused, lost or wrong");
    assert!(seen.answers > 1_000, "{seen:?}");
    assert_eq!(node.status()?["listeners"], 2 * PODS);
    Ok(())
}

#[test]
fn a_keeper_that_is_killed_again_and_again_holds_everything_again() -> Result<()> {
    let deaths = times(3, 20);
    let mut node = Node::with_hello()?;
    let (seen, knocks) = under_load(&mut node, |node| {
        for _ in 0..deaths {
            thread::sleep(Duration::from_millis(100));
            node.start_keeper()?;
            soon("everything", || {
                let status = node.status()?;
                ensure!(status["listeners"] == 2 * PODS && status["hosts"] == 1, "{status}");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    println!("{deaths} keepers killed under load in {PODS} pods: {seen:?}, {knocks:?}");
    assert_eq!((knocks.refused, seen.lost, seen.bad), (0, 0, 0), "nobody notices");
    assert!(seen.answers > 1_000, "{seen:?}");
    Ok(())
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    memory: u64,
}

impl Held {
    fn by(pid: u32) -> Result<Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
        Ok(Self { descriptors: process::descriptors(pid)?, threads, memory: process::memory(pid)? })
    }
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() -> Result<()> {
    let (cycles, warm) = (times(100, 2_000), 50);
    let namespaces = || Ok::<_, anyhow::Error>(fs::read_to_string("/proc/mounts")?.matches(" nsfs ").count());
    let mounted = namespaces()?;
    let node = Node::with_hello()?;
    let cycle = |i: usize| -> Result<()> {
        let (pod, id) = (format!("cart-{i}"), format!("c{i}"));
        let netns = Netns::with_loopback(node.folder(), &pod)?;
        // A name that nobody knows stays nowhere, either.
        let sidecars = format!("hello=8081, unknown-{i}=8082");
        let sandbox = Sandbox::new(&pod, &id, &netns, &sidecars);
        ensure!(node.cni("ADD", &sandbox)?.success, "ADD");
        netns.says_hello(8081)?;
        ensure!(node.cni("DEL", &sandbox)?.success, "DEL");
        Ok(())
    };
    let held =
        || -> Result<[Held; 3]> { Ok([Held::by(node.keeper()?)?, Held::by(node.host()?)?, Held::by(node.worker()?)?]) };
    (0..warm).try_for_each(cycle)?;
    thread::sleep(Duration::from_millis(500));
    let before = held()?;
    (warm..warm + cycles).try_for_each(cycle)?;
    let after = soon("what was held before", || {
        let after = held()?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(after.descriptors <= before.descriptors, "{before:?} became {after:?}");
            ensure!(after.threads <= before.threads, "{before:?} became {after:?}");
        }
        Ok(after)
    })?;
    println!("{cycles} pods came and went; keeper, supervisor, worker before: {before:?}, after: {after:?}");
    for (before, after) in before.iter().zip(&after) {
        // Pages that allocators keep; a leak of 1 KiB for each pod would be 2 MiB at 2,000.
        assert!(after.memory <= before.memory + (2 << 20), "{before:?} became {after:?}");
    }
    let status = node.status()?;
    assert_eq!((&status["pods"], &status["listeners"]), (&0.into(), &0.into()));
    // Namespaces that nothing holds are gone with their mounts; one that a listener held would still be seen by its sockets.
    assert!(namespaces()? <= mounted, "{mounted} mounts of namespaces became {}", namespaces()?);
    Ok(())
}

#[test]
fn many_pods_are_bound_at_once() -> Result<()> {
    let pods = times(50, 500);
    let node = Node::with_hello()?;
    let netns: Vec<Netns> =
        (0..pods).map(|i| Netns::with_loopback(node.folder(), &format!("pod-{i}"))).collect::<Result<_>>()?;
    // One component may stand in an annotation once: the others are not known, and bound all the same.
    let sidecars = "hello=8081, b=8082, c=8083, d=8084";
    let began = Instant::now();
    let ids: Vec<(String, String)> = (0..pods).map(|i| (format!("cart-{i}"), format!("c{i}"))).collect();
    thread::scope(|scope| -> Result<()> {
        let chunk = pods.div_ceil(8);
        let adding: Vec<_> = netns
            .chunks(chunk)
            .zip(ids.chunks(chunk))
            .map(|(netns, ids)| {
                let node = &node;
                scope.spawn(move || -> Result<()> {
                    for (netns, (pod, id)) in netns.iter().zip(ids) {
                        let said = node.cni("ADD", &Sandbox::new(pod, id, netns, sidecars))?;
                        ensure!(said.success, "{said:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        adding.into_iter().try_for_each(|adding| adding.join().ok().context("it panicked")?)
    })?;
    let took = began.elapsed();
    assert_eq!(node.status()?["listeners"], pods * 8);
    for netns in netns.iter().step_by(10) {
        soon("an answer", || netns.says_hello(8081))?;
        assert_eq!(netns.accepts(8084), (true, true));
    }
    println!("{pods} pods with 4 ports each are bound in {took:.1?}: {}", node.status()?);
    Ok(())
}
