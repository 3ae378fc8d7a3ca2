//! Callers that mean harm, or are broken in the same ways: each costs little, and others notice nothing.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, request},
    eventually, get, place,
    process::{self, MIB, Peak},
    wait_until,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

async fn faults() -> Result<Host> {
    Host::of_faults(|component| component).await
}

/// The first bytes of a caller, what follows one byte a second, and whether that is HTTP/2.
const SLOW: [(&str, &[u8], &[u8]); 6] = [
    ("nothing", b"", b""),
    ("a slow first byte", b"G", b"ET /hello HTTP/1.1\r\n"),
    ("a head without an end", b"GET /hello HTTP/1.1\r\nhost: a\r\n", b""),
    ("slow headers", b"GET /hello HTTP/1.1\r\nhost: a\r\nx-slow: ", b"0123456789012345678901234567890"),
    ("half a preface", b"PRI * HTTP/2.0\r\n\r\nSM", b""),
    ("a preface and nothing else", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b""),
];

#[tokio::test]
async fn who_sends_no_head_within_10_seconds_is_cut_off() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    let callers = SLOW.map(|(what, first, then)| async move {
        let began = Instant::now();
        let mut raw = Raw::say(port, first).await?;
        let mut dripping = then.iter();
        loop {
            let closed = raw.rest_within(Duration::from_secs(1)).await;
            if closed.is_ok() || began.elapsed() > Duration::from_secs(15) {
                break;
            }
            if let Some(&byte) = dripping.next() {
                // It may have been closed by now.
                _ = raw.send([byte]).await;
            }
        }
        let took = began.elapsed();
        ensure!((9_500..12_500).contains(&took.as_millis()), "{what}: cut off after {took:?}");
        Ok(())
    });
    let meanwhile = async {
        for _ in 0..50 {
            ensure!(get(Protocol::H1, port, "/hello").await?.text() == "hello\n", "others");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::try_join!(futures::future::try_join_all(callers), meanwhile)?;
    Ok(())
}

#[tokio::test]
async fn a_megabyte_of_headers_is_refused_and_not_kept() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    get(Protocol::H1, port, "/hello").await?;
    let before = process::memory(host.worker()?)?;
    let peak = Peak::of(host.worker()?);
    for _ in 0..20 {
        let mut raw = Raw::connect(port).await?;
        // The answer may come, and the connection close, before everything is sent.
        let line = format!("x-header: {}\r\n", "y".repeat(9_980));
        _ = raw.send(format!("GET /hello HTTP/1.1\r\nhost: a\r\n{}\r\n", line.repeat(100))).await;
        let said = String::from_utf8(raw.rest().await?)?;
        // A reset that is faster than the answer is an answer too.
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");
    }
    for _ in 0..20 {
        let mut connection = Connection::open(Protocol::H2, port).await?;
        let mut large = request("GET", "/hello", empty())?;
        for number in 0..60 {
            let name: hyper::header::HeaderName = format!("x-{number}").parse()?;
            large.headers_mut().insert(name, "y".repeat(16_000).parse()?);
        }
        if let Ok(answer) = connection.fetch_cut(large).await {
            assert_eq!(answer.status, 431);
        }
    }
    let growth = peak.most().saturating_sub(before);
    assert!(growth < 16 * MIB, "the worker grew by {} MiB", growth / MIB);
    assert_eq!(get(Protocol::H1, port, "/hello").await?.text(), "hello\n");
    Ok(())
}

/// What one reader takes for the body is to another one the next request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// Heads after which `SMUGGLED` must never be read as a request.
const SMUGGLING: [(&str, &str); 12] = [
    ("length, then chunked", "content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunked, then length", "transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n"),
    ("two lengths", "content-length: 0\r\ncontent-length: 35\r\n\r\n"),
    ("two lengths in one", "content-length: 0, 35\r\n\r\n"),
    ("a length with a sign", "content-length: +0\r\n\r\n"),
    ("a coding that only looks like chunked", "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("chunked that is not last", "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("a blank before the colon", "transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("a folded line", "transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("a control character in a value", "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("a carriage return alone", "x: y\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a chunk size that is too large", "transfer-encoding: chunked\r\n\r\nfffffffffffffffff0\r\n\r\n"),
];

#[tokio::test]
async fn a_request_cannot_be_smuggled_inside_another() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        for (what, rest) in SMUGGLING {
            let bytes = format!("POST /count HTTP/1.1\r\nhost: a\r\n{rest}{SMUGGLED}");
            let mut raw = Raw::say(host.port(guest)?, bytes).await?;
            let said = String::from_utf8_lossy(&raw.rest().await?).into_owned();
            assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{guest}, {what}: one answer, then closed: {said}");
            assert!(!said.contains("not found"), "{guest}, {what}: the smuggled request was answered: {said}");
            let refused = said.starts_with("HTTP/1.1 400 ");
            assert!(refused, "{guest}, {what}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_lengths_that_agree_are_one() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let bytes = "POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello";
        let answer = Raw::ask(host.port(guest)?, bytes).await?;
        assert!([200, 400].contains(&answer.status), "{guest}: {}", answer.head);
        assert!(answer.status == 400 || answer.text() == "5", "{guest}: {}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_http_are_answered_or_cut_off_at_once() -> Result<()> {
    let host = faults().await?;
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let all: [&[u8]; 4] = [tls_hello, b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n", b"SSH-2.0-x\r\n\r\n", &[0xff; 100_000]];
    for bytes in all {
        let mut raw = Raw::connect(host.port("faults-p2")?).await?;
        _ = raw.send(bytes).await;
        let said = raw.rest_within(Duration::from_secs(2)).await?;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&said));
    }
    Ok(())
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
        let storms = futures::future::try_join_all((0..4).flat_map(|_| {
            ["/hello", "/loop", "/sleep?ms=60000"].map(|path| reset_storm(port, path, 3_000))
        }));
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
        assert!(slowest < Duration::from_secs(2), "{guest}: {slowest:?}");
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
async fn two_thousand_callers_that_hardly_read_cost_little_and_others_are_answered() -> Result<()> {
    const CALLERS: usize = 2_000;
    const AT_ONCE: u64 = 1_000;
    place::raise_descriptor_limit();
    let slow = Component::guest("slow", "faults-p2")?.limit("concurrency", AT_ONCE).limit("queue", 10_000);
    let components = [slow.limit("headTimeout", "2m").limit("cpuTime", "1m"), Component::guest("good", "hello-wasip2")?];
    let host = Host::of(components).start().await?;
    let (slow, good) = (host.port("slow")?, host.port("good")?);
    get(Protocol::H1, slow, "/stream?bytes=1000000").await?;
    get(Protocol::H1, good, "/").await?;
    let before = process::memory(host.worker()?)?;
    let peak = Peak::of(host.worker()?);
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4_096)?;
        let mut stream = socket.connect((Ipv4Addr::LOCALHOST, slow).into()).await?;
        stream.write_all(b"GET /stream?bytes=100000000 HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        callers.push(stream);
    }
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        // Each reads a few bytes now and then.
        for stream in callers.iter().skip(round).step_by(20) {
            _ = stream.try_read(&mut [0; 100]);
        }
        let began = Instant::now();
        assert_eq!(get(Protocol::H1, good, "/").await?.text(), "hello\n");
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(slowest < Duration::from_secs(1), "the other component answered after {slowest:?}");
    let growth = peak.most().saturating_sub(before);
    assert!(growth < AT_ONCE * MIB, "the worker grew by {} MiB for {CALLERS} callers", growth / MIB);
    drop(callers);
    let free = || (process::descriptors(host.worker().ok()?).ok()? < 100).then_some(());
    wait_until("the connections to be gone", Duration::from_secs(10), free).await?;
    assert_eq!(get(Protocol::H1, slow, "/hello").await?.text(), "hello\n");
    Ok(())
}
