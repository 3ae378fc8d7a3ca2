//! Callers that go away, one by one or in storms: their guests end, and nothing of them stays.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, request},
    eventually, get,
    process::{self, MIB, Peak},
    wait_until,
};
use tokio::net::TcpStream;

async fn faults() -> Result<Host> {
    Host::of_faults(|component| component).await
}

#[tokio::test]
async fn half_closed_connections_leave_nothing_behind() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    get(Protocol::H1, port, "/hello").await?;
    let before = process::descriptors(host.worker()?)?;
    let mut callers = Vec::new();
    for number in 0..200 {
        let first: &[u8] = match number % 4 {
            0 => b"",
            1 => b"GET /hel",
            2 => b"POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        };
        let mut raw = Raw::say(port, first).await?;
        raw.shut_sending().await?;
        callers.push(raw);
    }
    let gone = || (process::descriptors(host.worker().ok()?).ok()? <= before + 5).then_some(());
    wait_until("the host to let go of half-closed connections", Duration::from_secs(5), gone).await?;
    drop(callers);
    assert_eq!(get(Protocol::H1, port, "/hello").await?.text(), "hello\n");
    Ok(())
}

/// Opens streams and resets each at once, until the host has enough; gives how many it let pass.
async fn reset_storm(port: u16, path: &str, streams: u32) -> Result<u32> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    for number in 0..streams {
        let Ok(ready) = sender.ready().await else {
            driver.abort();
            return Ok(number);
        };
        sender = ready;
        let request = hyper::Request::get(format!("http://localhost:{port}{path}")).body(())?;
        let Ok((answer, mut body)) = sender.send_request(request, true) else {
            driver.abort();
            return Ok(number);
        };
        body.send_reset(h2::Reason::CANCEL);
        drop(answer);
        // Lets the connection write: streams that are reset before they are sent cost nobody anything.
        tokio::task::yield_now().await;
    }
    driver.abort();
    Ok(streams)
}

#[tokio::test]
async fn a_storm_of_resets_costs_little_and_others_are_answered() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        get(Protocol::H2, port, "/hello").await?;
        let before = process::memory(host.worker()?)?;
        let peak = Peak::of(host.worker()?);
        let storms = futures::future::try_join_all(
            (0..4).flat_map(|_| ["/hello", "/loop", "/sleep?ms=60000"].map(|path| reset_storm(port, path, 3_000))),
        );
        let others = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..50 {
                let began = Instant::now();
                // A storm may take all places for a moment: who says 503 does so at once.
                let answer = get(Protocol::H1, port, "/hello").await?;
                ensure!([200, 503].contains(&answer.status.as_u16()), "{}", answer.status);
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(slowest)
        };
        let (_, slowest) = tokio::try_join!(storms, others)?;
        assert!(slowest < Duration::from_secs(8), "{guest}: {slowest:?}");
        let growth = peak.most().saturating_sub(before);
        assert!(growth < 256 * MIB, "{guest}: the worker grew by {} MiB", growth / MIB);
        let answers = async || {
            ensure!(get(Protocol::H1, port, "/hello").await?.status == 200, "not yet");
            Ok(())
        };
        eventually("free places after the storm", Duration::from_secs(5), answers).await?;
        let idle = idle_within(host.worker()?, Duration::from_secs(3)).await;
        idle.with_context(|| format!("{guest}: no guest runs on for a caller that reset its stream"))?;
        assert_eq!(host.events_of("worker").len(), 1, "the worker lives");
    }
    Ok(())
}

/// Waits until a process used no CPU time for 100 ms; gives when that began.
async fn idle_within(pid: u32, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    let (mut ticks, mut since) = (process::cpu_ticks(pid)?, began.elapsed());
    while began.elapsed() < within + Duration::from_millis(120) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = process::cpu_ticks(pid)?;
        if now > ticks {
            (ticks, since) = (now, began.elapsed());
        }
        if began.elapsed() - since > Duration::from_millis(100) {
            return Ok(since);
        }
    }
    anyhow::bail!("the process is busy after {within:?}")
}

/// A caller whose answer is on its way: it goes when this is dropped.
async fn looping(protocol: Protocol, port: u16, path: &'static str) -> Result<tokio::task::JoinHandle<()>> {
    let mut connection = Connection::open(protocol, port).await?;
    Ok(tokio::spawn(async move {
        let Ok(request) = request("GET", path, empty()) else { return };
        if let Ok(answer) = connection.send(request).await {
            _ = pillion_tests::Answer::read(answer).await;
        }
    }))
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_guest() -> Result<()> {
    let host = Host::of_faults(|component| {
        component.limit("cpuTime", "1h").limit("headTimeout", "1h").limit("concurrency", 1).limit("queue", 0)
    })
    .await?;
    let worker = host.worker()?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        for protocol in Protocol::ALL {
            for path in ["/loop", "/body-loop"] {
                let caller = looping(protocol, port, path).await?;
                let before = process::cpu_ticks(worker)?;
                let busy = || (process::cpu_ticks(worker).ok()? > before + 15).then_some(());
                wait_until("a guest that loops", Duration::from_secs(5), busy).await?;
                let began = Instant::now();
                caller.abort();
                let free = async || {
                    ensure!(get(Protocol::H1, port, "/hello").await?.status == 200, "the place is taken");
                    Ok(())
                };
                eventually("a free place", Duration::from_millis(500), free)
                    .await
                    .with_context(|| format!("{guest} {protocol:?} {path}"))?;
                let idle = idle_within(worker, Duration::from_millis(500)).await;
                idle.with_context(|| format!("{guest} {protocol:?} {path}, after {:?}", began.elapsed()))?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_goes_away_behind_a_body_or_a_pipeline_that_nobody_reads_ends_its_guest_too() -> Result<()> {
    let host = Host::of_faults(|component| {
        component.limit("cpuTime", "1h").limit("headTimeout", "1h").limit("concurrency", 1).limit("queue", 0)
    })
    .await?;
    // More than hyper takes, less than the kernel does: beyond that the caller's own kernel keeps the news of its end.
    let body =
        [b"POST /loop HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n".as_slice(), &[b'x'; 50_000]].concat();
    let pipeline = b"GET /loop HTTP/1.1\r\nhost: a\r\n\r\n".repeat(20);
    for guest in FAULTS {
        let port = host.port(guest)?;
        for (what, said) in [("a body", &body), ("a pipeline", &pipeline)] {
            // The guest of the request before may still be on its way out of the only place.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut caller = Raw::connect(port).await?;
            caller.send(said).await?;
            // Who asks at the same time might take the place.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let answer = get(Protocol::H1, port, "/hello").await?;
            assert_eq!(answer.header("pillion-error"), "concurrency-limit", "{guest}, {what}: its guest runs");
            drop(caller);
            let free = async || {
                ensure!(get(Protocol::H1, port, "/hello").await?.status == 200, "the place is taken");
                Ok(())
            };
            let freed = eventually("a free place", Duration::from_secs(1), free).await;
            freed.with_context(|| format!("{guest}: gone behind {what}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_its_guest_and_not_the_connection() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("cpuTime", "1h").limit("headTimeout", "1h")).await?;
    let worker = host.worker()?;
    for guest in FAULTS {
        let mut connection = Connection::open(Protocol::H2, host.port(guest)?).await?;
        let answer = tokio::time::timeout(Duration::from_millis(300), connection.get("/loop")).await;
        assert!(answer.is_err(), "{guest}: it loops");
        idle_within(worker, Duration::from_millis(500)).await.with_context(|| format!("{guest}: after the reset"))?;
        assert_eq!(connection.get("/hello").await?.text(), "hello\n", "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn an_http_2_caller_that_takes_nothing_of_its_answer_loses_its_place() -> Result<()> {
    let host =
        Host::of_faults(|component| component.limit("idleTimeout", "300ms").limit("concurrency", 1).limit("queue", 0))
            .await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        // The connection lives and answers pings, but no stream ever has room.
        let (sender, connection) =
            h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await?;
        let driver = tokio::spawn(connection);
        let request = hyper::Request::get(format!("http://localhost:{port}/stream?bytes=10000000")).body(())?;
        let (answer, _body) = sender.ready().await?.send_request(request, true)?;
        let answer = answer.await?;
        assert_eq!(answer.status(), 200, "{guest}");
        assert_eq!(get(Protocol::H1, port, "/hello").await?.status, 503, "{guest}: it has the only place");
        let free = async || {
            ensure!(get(Protocol::H1, port, "/hello").await?.status == 200, "the place is taken");
            Ok(())
        };
        eventually("the place of a caller that takes nothing", Duration::from_secs(5), free).await?;
        drop(answer);
        driver.abort();
    }
    Ok(())
}
