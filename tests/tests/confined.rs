//! Each process of a node is what it claims to be: read from what the kernel says of it.

use std::{fs, os::unix::fs::FileExt, time::Duration};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, Host, Protocol, get,
    netns::Netns,
    node::{HOST, Node, Sandbox},
    place, process,
    registry::{Artifact, Fault, FaultProxy, Registry, Seen, docker_config},
    wait_until,
};

const SYS_ADMIN: u64 = 1 << 21;
const SYS_PTRACE: u64 = 1 << 19;

/// A line of `/proc/PID/status` or of one of its threads.
fn field(status: &str, name: &str) -> Result<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {status}"))?.trim().to_owned())
}

/// The states of all threads of a process.
fn threads(pid: u32) -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    Ok(tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect())
}

/// Checks each thread: only these capabilities, nothing to be gained by starting a program, system calls filtered.
fn has_only(pid: u32, capabilities: u64) -> Result<()> {
    let threads = threads(pid)?;
    ensure!(!threads.is_empty(), "{pid} is not there");
    for status in threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"] {
            let is = u64::from_str_radix(&field(&status, set)?, 16)?;
            // What a process that never had rights could not drop from its bounding set, no_new_privs keeps out of its reach.
            let bounded = set == "CapBnd" && field(&status, "Uid")?.split_whitespace().all(|uid| uid != "0");
            let expected = if matches!(set, "CapInh" | "CapAmb") { 0 } else { capabilities };
            ensure!(is == expected || bounded, "{set} is {is:x}: {status}");
        }
        ensure!(field(&status, "NoNewPrivs")? == "1", "{status}");
        ensure!(field(&status, "Seccomp")? == "2", "{status}");
    }
    Ok(())
}

#[test]
fn the_keeper_has_two_capabilities_and_the_host_none_and_is_not_root() -> Result<()> {
    let mut node = Node::with_keeper()?;
    node.add(&Component::guest("hello", "hello-wasip2")?)?;
    node.start_host()?;
    let netns = Netns::with_loopback(node.folder(), "a")?;
    assert!(node.cni("ADD", &Sandbox::new("cart-0", "c1", &netns, "hello=8081"))?.success);
    assert!(netns.get([127, 0, 0, 1].into(), 8081, "/")?.ends_with("hello\n"));

    has_only(node.keeper()?, SYS_ADMIN | SYS_PTRACE)?;
    for process in [node.host()?, node.worker()?] {
        has_only(process, 0)?;
        for status in threads(process)? {
            let uids = field(&status, "Uid")?;
            assert!(uids.split_whitespace().all(|uid| uid == HOST.to_string()), "{status}");
        }
    }
    // Filters add up: the worker's own stands before the supervisor's, which it has, too.
    let filters = |pid| field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "Seccomp_filters");
    let (host, worker): (u32, u32) = (filters(node.host()?)?.parse()?, filters(node.worker()?)?.parse()?);
    assert_eq!(worker, host + 1);
    // None of the host's threads has entered the pod.
    let inside = fs::metadata(netns.path())?;
    for process in [node.host()?, node.worker()?] {
        for task in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
            let at = fs::metadata(task.path().join("ns/net"))?;
            assert_ne!(std::os::unix::fs::MetadataExt::ino(&at), std::os::unix::fs::MetadataExt::ino(&inside));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_laptops_host_has_no_capability_either() -> Result<()> {
    let host = Host::of([Component::guest("hello", "hello-wasip2")?]).start().await?;
    has_only(host.supervisor(), 0)?;
    has_only(host.worker()?, 0)
}

/// Whether the memory of a process holds a text: what it can write and has touched, page by page. The pool's reservations for guests
/// are too large to be walked, and are guests' only.
fn remembers(pid: u32, text: &str) -> Result<bool> {
    const MOST: u64 = 4 << 30;
    const PRESENT: u64 = 1 << 63;
    let page = rustix::param::page_size() as u64;
    let open = |name: &str| fs::File::open(format!("/proc/{pid}/{name}"));
    let (memory, pagemap) = (open("mem")?, open("pagemap")?);
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').context("a line of maps")?;
        let (from, to) = range.split_once('-').context("a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if !rest.starts_with("rw") || to - from > MOST {
            continue;
        }
        let mut entries = vec![0; usize::try_from((to - from) / page * 8)?];
        pagemap.read_exact_at(&mut entries, from / page * 8)?;
        // What begins on one page may end on the next.
        let mut bytes = Vec::new();
        for (entry, at) in entries.chunks_exact(8).zip((from..to).step_by(usize::try_from(page)?)) {
            let mut content = vec![0; usize::try_from(page)?];
            if u64::from_ne_bytes(entry.try_into()?) & PRESENT == 0 || memory.read_exact_at(&mut content, at).is_err() {
                bytes.clear();
                continue;
            }
            bytes.extend(content);
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                return Ok(true);
            }
            bytes.drain(..bytes.len() - text.len());
        }
    }
    Ok(false)
}

#[tokio::test]
async fn a_password_is_in_the_puller_and_never_in_the_worker() -> Result<()> {
    const PASSWORD: &str = "hunter2-is-no-password";
    let registry = Registry::with_htpasswd("ann", PASSWORD).await?;
    Artifact::wasm(fs::read(place::guest("hello-wasip2")?)?).push(&registry, "hello:1").await?;
    let proxy = FaultProxy::start(&registry)?;
    proxy.fault_times(1, Seen::gets_blob, Fault::Delay(Duration::from_secs(3)));
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("config.json"), docker_config(&proxy.host(), "ann", PASSWORD).to_string())?;
    let settings =
        serde_json::json!({"dockerConfig": "config.json", "registries": {proxy.host(): {"plainHttp": true}}});
    let registries = folder.path().join("registries.yaml");
    fs::write(&registries, settings.to_string())?;
    let component = Component::image("hello", &format!("{}/hello:1", proxy.host()));
    let host =
        Host::of([component]).args(["--registries".into(), registries]).store(&folder.path().join("store")).spawn()?;
    let puller = || {
        let is_waiting = proxy.seen().iter().any(Seen::gets_blob);
        let is_puller = |pid: &u32| process::arguments(*pid).starts_with("pillion puller");
        is_waiting.then(|| process::children(host.supervisor()).into_iter().find(is_puller)).flatten()
    };
    let puller = wait_until("a puller", Duration::from_secs(20), puller).await?;
    has_only(puller, 0)?;
    for file in ["cmdline", "environ"] {
        let text = String::from_utf8_lossy(&fs::read(format!("/proc/{puller}/{file}"))?).into_owned();
        ensure!(!text.contains(PASSWORD), "everybody on the machine can read {file}");
    }
    ensure!(remembers(puller, PASSWORD)?, "the puller has it, or this test looks at the wrong place");
    let worker = host.worker()?;
    ensure!(!remembers(worker, PASSWORD)?, "the worker has it");
    host.wait_for("an answer", Duration::from_secs(60), |event| event["event"] == "ready").await?;
    ensure!(get(Protocol::H1, host.port("hello")?, "/").await?.text() == "hello\n");
    ensure!(!remembers(worker, PASSWORD)?, "the worker has it after the pull");
    Ok(())
}

#[test]
fn a_host_does_not_start_as_root() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = std::process::Command::new(pillion_tests::program::binary()?)
        .args(["host", "--keeper-socket", "/nowhere", "--catalog"])
        .arg(folder.path())
        .arg("--store")
        .arg(folder.path().join("store"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("not as root") && said.contains("runAsUser"), "{said}");
    assert!(!folder.path().join("store").exists(), "nothing was done");
    Ok(())
}
