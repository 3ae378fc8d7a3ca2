//! A machine whose cores are all busy: with other programs, or with guests that answer at once. Guests that need their time get it.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pillion_tests::{
    Component, Host, Protocol, get,
    netns::Netns,
    node::{Node, Sandbox},
    place, process, program,
    spinning::{Session, Spinning},
};

const SESSIONS: [Session; 2] = [Session::Same, Session::Another];

/// How long an answer may take that costs 0.1 s of CPU time, beside a program that spins on each core.
const SOON: Duration = Duration::from_secs(5);

/// A guest that never ends by itself: its answer comes when it has used 0.1 s of CPU time, and says so.
fn looping(name: &str) -> Result<Component> {
    Ok(Component::guest(name, "faults-p2")?.limit("cpuTime", "100ms").limit("headTimeout", "60s"))
}

#[tokio::test]
async fn a_guest_gets_its_cpu_time_beside_programs_that_spin() -> Result<()> {
    let host = Host::of([looping("faults")?]).start().await?;
    let port = host.port("faults")?;
    for session in SESSIONS {
        let _busy = Spinning::start(session)?;
        for _ in 0..3 {
            let began = Instant::now();
            let answer = get(Protocol::H1, port, "/loop").await?;
            assert_eq!(answer.header("pillion-error"), "cpu-limit", "{session:?}: {answer:?}");
            assert!(began.elapsed() < SOON, "{session:?}: {:?}", began.elapsed());
        }
    }
    let log = host.log().join("\n");
    ensure!(!log.contains("cannot be lowered"), "{log}");
    Ok(())
}

/// As a node's host, which is a user without a capability, and whose long guests give way to every other program.
#[test]
fn a_pods_guest_gets_its_cpu_time_beside_programs_that_spin() -> Result<()> {
    let mut node = Node::with_keeper()?;
    node.add(&looping("faults")?)?;
    node.start_host()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    ensure!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "faults=8081"))?.success, "{}", node.log());
    netns.get(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081, "/hello")?;
    for session in SESSIONS {
        let _busy = Spinning::start(session)?;
        for _ in 0..3 {
            let began = Instant::now();
            let answer = netns.get(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081, "/loop")?;
            ensure!(answer.contains("cpu-limit"), "{session:?}: {answer}");
            ensure!(began.elapsed() < SOON, "{session:?}: {:?}", began.elapsed());
        }
    }
    ensure!(!node.log().contains("cannot be lowered"), "{}", node.log());
    Ok(())
}

/// Guests that answer at once could keep every core to themselves.
#[tokio::test]
async fn guests_that_run_for_long_keep_their_share_beside_a_neighbour_under_load() -> Result<()> {
    let endless = Component::guest("faults", "faults-p2")?.limit("cpuTime", "1h").limit("headTimeout", "1h");
    let host = Host::of([Component::guest("hello", "hello-wasip2")?, endless]).start().await?;
    let worker = host.worker()?;
    let port = host.port("faults")?;
    let long: Vec<_> = (0..4).map(|_| tokio::spawn(get(Protocol::H1, port, "/loop"))).collect();
    let url = format!("http://localhost:{}/", host.port("hello")?);
    let mut load = Command::new("wrk").args(["-t2", "-c64", "-d12s", &url]).stdout(Stdio::null()).spawn()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (began, before) = (Instant::now(), process::threads_ticks(worker, "back")?);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let used = process::threads_ticks(worker, "back")? - before;
    let all = began.elapsed().as_secs_f64() * 100.0 * f64::from(u32::try_from(thread::available_parallelism()?.get())?);
    long.iter().for_each(tokio::task::JoinHandle::abort);
    load.wait()?;
    let share = f64::from(u32::try_from(used)?) / all;
    assert!(share >= 0.04, "guests that run for long got {share:.3} of the CPU");
    Ok(())
}

/// How long it takes to compile the component of a guest that brings its interpreter, into a store of its own.
fn compile_python() -> Result<Duration> {
    let store = tempfile::tempdir()?;
    let mut command = Command::new(program::binary()?);
    command.arg("compile").arg(place::guest("hello-python")?).arg("--store").arg(store.path());
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{status}");
    Ok(began.elapsed())
}

#[test]
fn a_compilation_gives_way_and_still_ends_beside_programs_that_spin() -> Result<()> {
    let alone = compile_python()?;
    let _busy = Spinning::start(Session::Same)?;
    let beside = compile_python()?;
    assert!(beside < alone * 4, "{beside:?} beside programs that spin, {alone:?} alone");
    Ok(())
}
