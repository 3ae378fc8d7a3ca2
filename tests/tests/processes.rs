//! Three processes: what each may do, and what happens when one dies. An idle host does nothing.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, FAULTS, Host, Protocol, eventually, get, place, process, wait_until};
use rustix::process::Signal;

async fn faults() -> Result<Host> {
    Host::of_faults(|component| component).await
}

#[tokio::test]
async fn a_worker_that_is_killed_is_replaced_within_200_ms_and_no_connection_is_refused() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    for restarts in 1..=3 {
        assert_eq!(get(Protocol::H1, port, "/hello").await?.text(), "hello\n");
        // A worker that dies within its first second may be one of many: the next ones are slowed down.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let worker = host.worker()?;
        process::signal(worker, Signal::KILL)?;
        wait_until("the end of the worker", Duration::from_secs(1), || (!process::runs(worker)).then_some(())).await?;
        let began = Instant::now();
        // The supervisor holds the listener: the kernel queues this connection for the next worker.
        let answer = get(Protocol::H1, port, "/hello").await.context("refused, or lost")?;
        let took = began.elapsed();
        assert_eq!(answer.text(), "hello\n");
        assert!(took < Duration::from_secs(4), "restart {restarts}: {took:?}");
        let event = host.events_of("worker").pop().context("no event `worker`")?;
        assert_eq!(event["restarts"], restarts, "{event}");
        assert_ne!(host.worker()?, worker);
    }
    Ok(())
}

#[tokio::test]
async fn the_next_worker_serves_what_the_one_before_did_whatever_became_of_the_file() -> Result<()> {
    let (folder, store) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let image = folder.path().join("x.wasm");
    fs::copy(place::guest("hello-wasip2")?, &image)?;
    let host = Host::of([Component::file("x", &image)]).store(store.path()).start().await?;
    for became in [Some("half of a file"), None] {
        match became {
            Some(text) => fs::write(&image, text)?,
            None => fs::remove_file(&image)?,
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let worker = host.worker()?;
        process::signal(worker, Signal::KILL)?;
        wait_until("the end of the worker", Duration::from_secs(1), || (!process::runs(worker)).then_some(())).await?;
        assert_eq!(get(Protocol::H1, host.port("x")?, "/").await?.text(), "hello\n");
    }
    assert_eq!(host.events_of("failed"), Vec::<serde_json::Value>::new());
    Ok(())
}

#[tokio::test]
async fn a_soft_limit_on_descriptors_is_raised_before_listeners_are_opened() -> Result<()> {
    let host = faults().await?;
    for process in [host.supervisor(), host.worker()?] {
        let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let files = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
        let fields: Vec<_> = files.split_whitespace().collect();
        assert_eq!(fields[3], fields[4], "soft and hard: {files}");
    }
    Ok(())
}

#[tokio::test]
async fn connections_made_while_there_is_no_worker_are_answered() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    process::signal(host.worker()?, Signal::KILL)?;
    let callers = (0..50).map(|_| async move {
        // Whom the old worker had accepted is cut off and tries again; nobody is ever refused.
        for _ in 0..3 {
            match get(Protocol::H1, port, "/hello").await {
                Ok(answer) => {
                    ensure!(answer.text() == "hello\n", "{}", answer.text());
                    return Ok(());
                }
                Err(error) => {
                    let refused = error.chain().any(|cause| {
                        let cause = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                        cause == Some(std::io::ErrorKind::ConnectionRefused)
                    });
                    ensure!(!refused, "a connection was refused: {error:#}");
                }
            }
        }
        anyhow::bail!("three times cut off")
    });
    futures::future::try_join_all(callers).await?;
    Ok(())
}

#[tokio::test]
async fn a_worker_that_dies_again_and_again_is_started_more_slowly_and_for_ever() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    for round in 0..5 {
        let worker = host.worker()?;
        process::signal(worker, Signal::KILL)?;
        let next = || host.worker().ok().filter(|&next| next != worker);
        wait_until("the next worker", Duration::from_secs(5), next).await.with_context(|| format!("round {round}"))?;
    }
    let answers = async || {
        ensure!(get(Protocol::H1, port, "/hello").await?.text() == "hello\n", "not hello");
        Ok(())
    };
    eventually("an answer", Duration::from_secs(5), answers).await
}

#[tokio::test]
async fn a_worker_ends_with_its_supervisor() -> Result<()> {
    let mut host = faults().await?;
    let worker = host.worker()?;
    let busy = tokio::spawn(get(Protocol::H1, host.port("faults-p2")?, "/loop"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.signal(Signal::KILL)?;
    wait_until("the end of the worker", Duration::from_secs(1), || (!process::runs(worker)).then_some(())).await?;
    assert!(busy.await?.is_err());
    host.end(Duration::from_secs(1)).await?;
    Ok(())
}

#[tokio::test]
async fn the_supervisor_starts_compilers_and_they_get_three_files_and_nothing_else() -> Result<()> {
    let store = tempfile::tempdir()?;
    let secret = ("A_SECRET", "of the environment");
    let host =
        Host::of([Component::guest("js", "hello-js")?]).store(store.path()).variable(secret.0, secret.1).spawn()?;
    let compiler = || {
        let worker = host.worker().ok()?;
        assert!(process::children(worker).is_empty(), "the worker started a process");
        let mut children = process::children(host.supervisor()).into_iter();
        children.find(|&child| process::arguments(child).starts_with("pillion compiler"))
    };
    let compiler = wait_until("a compiler", Duration::from_secs(20), compiler).await?;
    assert_eq!(process::parent(compiler)?, host.supervisor());
    // While it compiles: what it was started with is what it has.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let files = process::open_files(compiler)?;
    assert!(files.len() <= 3, "more than the component, the native code and the report: {files:?}");
    assert!(!files.iter().any(|file| file.to_string_lossy().starts_with("socket:")), "{files:?}");
    let environment = fs::read(format!("/proc/{compiler}/environ"))?;
    assert!(
        !String::from_utf8_lossy(&environment).contains(secret.0),
        "its environment holds what is not its business"
    );
    let threads = fs::read_dir(format!("/proc/{compiler}/task"))?.count();
    assert_eq!(threads, 1, "a compiler has one thread");
    let worker = host.worker()?;
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end && process::runs(compiler) {
        assert!(process::children(worker).is_empty(), "the worker started a process");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_compiler_ends_with_its_supervisor_or_soon_after() -> Result<()> {
    let store = tempfile::tempdir()?;
    let mut host = Host::of([Component::guest("python", "hello-python")?]).store(store.path()).spawn()?;
    let compiler = wait_until("a compiler", Duration::from_secs(20), || {
        let mut children = process::children(host.supervisor()).into_iter();
        children.find(|&child| process::arguments(child).starts_with("pillion compiler"))
    });
    let compiler = compiler.await?;
    host.signal(Signal::TERM)?;
    host.end(Duration::from_secs(5)).await?;
    let gone =
        wait_until("the end of the compiler", Duration::from_secs(2), || (!process::runs(compiler)).then_some(()))
            .await;
    if gone.is_err() {
        process::signal(compiler, Signal::KILL)?;
    }
    gone
}

/// CPU time, in ticks of 10 ms, that supervisor and worker use in 3 s of doing nothing.
async fn ticks_at_rest(host: &Host) -> Result<u64> {
    let ticks = || Ok::<_, anyhow::Error>(process::cpu_ticks(host.supervisor())? + process::cpu_ticks(host.worker()?)?);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = ticks()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(ticks()? - before)
}

#[tokio::test]
async fn an_idle_host_uses_no_cpu_time() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            get(protocol, host.port(guest)?, "/hello").await?;
        }
    }
    let ticks = ticks_at_rest(&host).await?;
    assert!(ticks <= 2, "{ticks} ticks in 3 s");
    Ok(())
}

#[tokio::test]
async fn an_idle_host_with_8_000_listeners_uses_no_cpu_time_either() -> Result<()> {
    // With the descriptors of this test, as many as the usual hard limit of 20,000 leaves room for: two addresses each.
    const MANY: usize = 4_000;
    let folder = tempfile::tempdir()?;
    // Its native code is there, so that it is found each time.
    drop(Host::of([Component::guest("hello", "hello-wasip2")?]).start().await?);
    for number in 0..MANY {
        let component = Component::guest(&format!("n{number}"), "hello-wasip2")?;
        fs::write(folder.path().join(format!("{number}.yaml")), component.yaml())?;
    }
    let began = Instant::now();
    let host = Host::of([]).args(["-f".as_ref(), folder.path().as_os_str()]).start().await?;
    let serving = host.event("serving").context("no event `serving`")?;
    assert_eq!((&serving["ready"], &serving["failed"]), (&MANY.into(), &0.into()));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let ready = host.events_of("ready");
    assert_eq!(ready.len(), MANY);
    for event in ready.iter().step_by(97) {
        let port = u16::try_from(event["port"].as_u64().context("a port")?)?;
        assert_eq!(get(Protocol::H1, port, "/").await?.text(), "hello\n", "{event}");
    }
    let ticks = ticks_at_rest(&host).await?;
    assert!(ticks <= 2, "{ticks} ticks in 3 s");
    Ok(())
}

#[tokio::test]
async fn a_second_run_on_the_same_store_is_no_trouble() -> Result<()> {
    let (first, second) = (faults().await?, faults().await?);
    for host in [&first, &second] {
        assert_eq!(get(Protocol::H1, host.port("faults-p2")?, "/hello").await?.text(), "hello\n");
    }
    drop(first);
    assert_eq!(get(Protocol::H1, second.port("faults-p3")?, "/hello").await?.text(), "hello\n");
    assert!(place::shared_store()?.join("native").is_dir());
    Ok(())
}

/// A thread of the worker that runs a guest at the back, by the CPU time that it uses.
fn busy_thread(worker: u32) -> Option<u32> {
    let used = || -> BTreeMap<u32, u64> {
        let tasks = fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
        let used = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, fields) = stat.rsplit_once(')')?;
            let ticks = name.ends_with("(back").then(|| fields.split_whitespace().nth(11)?.parse().ok())??;
            Some((task.file_name().to_str()?.parse().ok()?, ticks))
        };
        tasks.filter_map(used).collect()
    };
    let before = used();
    std::thread::sleep(Duration::from_millis(200));
    used()
        .into_iter()
        .find(|(thread, ticks)| before.get(thread).is_some_and(|before| ticks > &(before + 5)))
        .map(|(t, _)| t)
}

#[tokio::test]
async fn a_component_that_takes_the_worker_down_twice_is_not_run_again() -> Result<()> {
    let bad = Component::guest("bad", "faults-p2")?.limit("cpuTime", "60s").limit("headTimeout", "60s");
    let host = Host::of([bad, Component::guest("good", "hello-wasip2")?]).start().await?;
    let (bad, good) = (host.port("bad")?, host.port("good")?);
    let blamed = || host.log().iter().filter(|line| line.contains("died while it ran this component")).count();
    // Between two of its turns no thread runs the guest: then nobody is blamed, and it is done again.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let worker = host.worker()?;
        let spinning = tokio::spawn(async move { get(Protocol::H1, bad, "/spin?ms=50000").await });
        let find = || busy_thread(worker);
        let thread = wait_until("a thread that runs the guest", Duration::from_secs(20), find).await?;
        // As an abort of the host's on that thread would: no guest can cause one that is known.
        kill_thread(worker, thread)?;
        assert!(spinning.await?.is_err(), "its connection ends");
        assert_eq!(get(Protocol::H1, good, "/").await?.text(), "hello\n");
        let answer = get(Protocol::H1, bad, "/hello").await?;
        if blamed() < 2 {
            assert_eq!(answer.text(), "hello\n", "once may be chance");
            continue;
        }
        assert_eq!((answer.status.as_u16(), answer.header("pillion-error")), (503, "unavailable"));
        assert!(answer.text().contains("took the host's worker down"), "{}", answer.text());
        break;
    }
    assert_eq!(blamed(), 2);
    // Killed from outside is nobody's doing, and what was found out is remembered.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for _ in 0..2 {
        process::signal(host.worker()?, Signal::KILL)?;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_eq!(get(Protocol::H1, good, "/").await?.text(), "hello\n");
    }
    assert_eq!(get(Protocol::H1, bad, "/hello").await?.status, 503);
    Ok(())
}

/// Sends SIGABRT to one thread of a process that this test started.
#[allow(unsafe_code)]
fn kill_thread(process: u32, thread: u32) -> Result<()> {
    // SAFETY: the call takes three numbers and touches no memory of this process.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGABRT) };
    ensure!(sent == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}
