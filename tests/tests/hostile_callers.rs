//! Callers that mean harm, or are broken in the same ways: each costs little, and others notice nothing.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_sockets::listen;
use pillion_tests::{
    Component, Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, request},
    get,
    process::{self, MIB, Peak},
    wait_until,
};
use tokio::{io::AsyncWriteExt, net::TcpSocket};

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
async fn who_sends_no_next_head_within_60_seconds_of_an_answer_is_cut_off() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    let http_1 = async {
        let mut raw = Raw::say(port, "GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        ensure!(raw.answer().await?.text() == "hello\n", "an answer");
        let began = Instant::now();
        let rest = raw.rest_within(Duration::from_secs(75)).await?;
        ensure!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
        Ok(("HTTP/1.1", began.elapsed()))
    };
    let http_2 = async {
        // A caller that answers pings: it lives, and wants nothing.
        let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        let closed = tokio::spawn(connection);
        let request = hyper::Request::get(format!("http://localhost:{port}/hello")).body(())?;
        let (answer, _) = sender.ready().await?.send_request(request, true)?;
        let mut body = answer.await?.into_body();
        while body.data().await.transpose()?.is_some() {}
        let began = Instant::now();
        tokio::time::timeout(Duration::from_secs(75), closed).await.context("HTTP/2: open after 75 s")??.ok();
        anyhow::Ok(("HTTP/2", began.elapsed()))
    };
    let (http_1, http_2) = tokio::join!(http_1, http_2);
    for (protocol, took) in [http_1?, http_2?] {
        assert!((59_000..65_000).contains(&took.as_millis()), "{protocol}: cut off after {took:?}");
    }
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
const SMUGGLING: [(&str, &str); 10] = [
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
            assert!(!said.starts_with("HTTP/1.1 2"), "{guest}, {what}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_a_length_beside_chunks_nothing_is_left_for_a_second_request() -> Result<()> {
    let host = faults().await?;
    let both = ["content-length: 6", "transfer-encoding: chunked"];
    for guest in FAULTS {
        for [first, second] in [both, [both[1], both[0]]] {
            let head = format!("POST /count HTTP/1.1\r\nhost: a\r\n{first}\r\n{second}\r\n\r\n");
            let mut raw = Raw::say(host.port(guest)?, format!("{head}0\r\n\r\n{SMUGGLED}")).await?;
            let said = String::from_utf8_lossy(&raw.rest().await?).into_owned();
            assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{guest}, {first} first: one answer, then closed: {said}");
            assert!(!said.contains("not found"), "{guest}, {first} first: the smuggled request was answered: {said}");
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
    let all: [&[u8]; 4] = [
        tls_hello,
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        &[0xff; 100_000],
    ];
    for bytes in all {
        let mut raw = Raw::connect(host.port("faults-p2")?).await?;
        _ = raw.send(bytes).await;
        let said = raw.rest_within(Duration::from_secs(2)).await?;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

#[tokio::test]
async fn two_thousand_callers_that_hardly_read_cost_little_and_others_are_answered() -> Result<()> {
    const CALLERS: usize = 2_000;
    const AT_ONCE: u64 = 1_000;
    listen::raise_descriptor_limit();
    let slow = Component::guest("slow", "faults-p2")?.limit("concurrency", AT_ONCE).limit("queue", 10_000);
    let components =
        [slow.limit("headTimeout", "2m").limit("cpuTime", "1m"), Component::guest("good", "hello-wasip2")?];
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
    // Who waits for the others does so until the head's timeout, 10 s.
    assert!(slowest < Duration::from_secs(8), "the other component answered after {slowest:?}");
    let growth = peak.most().saturating_sub(before);
    assert!(growth < AT_ONCE * MIB, "the worker grew by {} MiB for {CALLERS} callers", growth / MIB);
    drop(callers);
    let free = || (process::descriptors(host.worker().ok()?).ok()? < 100).then_some(());
    wait_until("the connections to be gone", Duration::from_secs(10), free).await?;
    assert_eq!(get(Protocol::H1, slow, "/hello").await?.text(), "hello\n");
    Ok(())
}
