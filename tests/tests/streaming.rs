//! Bodies stream both ways, with backpressure, through a host whose memory stays flat.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use pillion_tests::{
    Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, request, streamed},
    get, pattern,
    process::{self, MIB, Peak},
};

/// A body that no buffer holds.
const LONG: u64 = 1_000_000_000;

/// What the worker may grow by, whatever passes through it.
const GROWTH: u64 = 64 * MIB;

async fn faults() -> Result<Host> {
    Host::of_faults(|component| component.limit("cpuTime", "10m").limit("headTimeout", "10m")).await
}

/// Reads a body and checks that it is the pattern; gives its length.
async fn check(mut body: Incoming) -> Result<u64> {
    let mut check = pattern::Check::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            check.push(&data)?;
        }
    }
    Ok(check.length())
}

/// Does something and checks that the worker did not grow with it.
async fn flat(host: &Host, work: impl Future<Output = Result<()>>) -> Result<()> {
    // What a first request leaves behind is no growth.
    for guest in FAULTS {
        get(Protocol::H1, host.port(guest)?, "/stream?bytes=1000000").await?;
    }
    let before = process::memory(host.worker()?)?;
    let peak = Peak::of(host.worker()?);
    work.await?;
    let growth = peak.most().saturating_sub(before);
    ensure!(growth < GROWTH, "the worker grew from {} by {} MiB", before / MIB, growth / MIB);
    Ok(())
}

#[tokio::test]
async fn a_gigabyte_comes_down_in_flat_memory() -> Result<()> {
    let host = faults().await?;
    flat(&host, async {
        for (guest, protocol) in [("faults-p2", Protocol::H1), ("faults-p3", Protocol::H1)] {
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            let response = connection.send(request("GET", &format!("/stream?bytes={LONG}"), empty())?).await?;
            let length = check(response.into_body()).await?;
            ensure!(length == LONG, "{guest} {protocol:?}: {length} bytes");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_gigabyte_goes_up_in_flat_memory() -> Result<()> {
    let host = faults().await?;
    flat(&host, async {
        for (guest, protocol) in [("faults-p2", Protocol::H1), ("faults-p3", Protocol::H1)] {
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            let answer = connection.fetch(request("POST", "/count", streamed(pattern::body(LONG)))?).await?;
            ensure!(answer.text() == LONG.to_string(), "{guest} {protocol:?}: {}", answer.text());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn long_bodies_go_both_ways_over_http_2_too() -> Result<()> {
    const LENGTH: u64 = 100_000_000;
    let host = faults().await?;
    flat(&host, async {
        for guest in FAULTS {
            let mut connection = Connection::open(Protocol::H2, host.port(guest)?).await?;
            let response = connection.send(request("GET", &format!("/stream?bytes={LENGTH}"), empty())?).await?;
            ensure!(check(response.into_body()).await? == LENGTH, "{guest}: down");
            let answer = connection.fetch(request("POST", "/count", streamed(pattern::body(LENGTH)))?).await?;
            ensure!(answer.text() == LENGTH.to_string(), "{guest}: up: {}", answer.text());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_echo_is_whole_while_it_goes_both_ways_at_once() -> Result<()> {
    const LENGTH: u64 = 50_000_000;
    let host = faults().await?;
    flat(&host, async {
        for guest in FAULTS {
            for protocol in Protocol::ALL {
                let mut connection = Connection::open(protocol, host.port(guest)?).await?;
                let response = connection.send(request("POST", "/echo", streamed(pattern::body(LENGTH)))?).await?;
                let length = check(response.into_body()).await?;
                ensure!(length == LENGTH, "{guest} {protocol:?}: {length} bytes");
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn each_piece_is_there_before_the_next_one_is_sent() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let (pieces, body) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(1);
            let body = futures::stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            pieces.send(Ok(Frame::data("0".into()))).await?;
            let mut answer = connection.send(request("POST", "/echo", streamed(body))?).await?.into_body();
            for number in 1..=5 {
                let next = tokio::time::timeout(Duration::from_secs(5), answer.frame());
                let piece = next.await?.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()));
                let expected = (number - 1).to_string();
                assert_eq!(piece.transpose()?.unwrap_or_default(), expected, "{guest} {protocol:?}");
                pieces.send(Ok(Frame::data(number.to_string().into()))).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_reads_nothing_holds_the_guest_back() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        get(Protocol::H1, port, "/stream?bytes=1000000").await?;
        let before = process::memory(host.worker()?)?;
        let peak = Peak::of(host.worker()?);
        let head = format!("GET /stream?bytes={LONG} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut raw = Raw::say(port, head).await?;
        raw.take(100_000).await?;
        // Now the sockets' buffers fill; then nothing moves, and nothing is computed.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let ticks = process::cpu_ticks(host.worker()?)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let ticks = process::cpu_ticks(host.worker()?)? - ticks;
        assert!(ticks <= 2, "{guest}: {ticks} ticks of CPU time for a caller that does not read");
        let growth = peak.most().saturating_sub(before);
        assert!(growth < 8 * MIB, "{guest}: the worker grew by {} MiB", growth / MIB);
        let more = raw.take(20_000_000).await?;
        assert_eq!(more.len(), 20_000_000, "{guest}: it goes on when the caller does");
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_reads_nothing_holds_the_caller_back() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        get(Protocol::H1, host.port(guest)?, "/stream?bytes=1000000").await?;
        for protocol in Protocol::ALL {
            let sent = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&sent);
            let body = pattern::body(LONG).inspect(move |frame| {
                let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                counted.fetch_add(length as u64, Relaxed);
            });
            let before = process::memory(host.worker()?)?;
            let peak = Peak::of(host.worker()?);
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            let answer = tokio::time::timeout(
                Duration::from_millis(800),
                connection.fetch_cut(request("POST", "/sleep?ms=60000", streamed(body))?),
            );
            assert!(answer.await.is_err(), "{guest} {protocol:?}: the guest sleeps");
            let sent = sent.load(Relaxed);
            assert!(sent < 32 * MIB, "{guest} {protocol:?}: {} MiB went to a guest that does not read", sent / MIB);
            let growth = peak.most().saturating_sub(before);
            assert!(growth < 8 * MIB, "{guest} {protocol:?}: the worker grew by {} MiB", growth / MIB);
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_reaches_the_caller() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut raw =
            Raw::say(host.port(guest)?, "POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nx").await?;
        let answer = raw.answer().await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{guest}");
        let mut connection = Connection::open(Protocol::H2, host.port(guest)?).await?;
        let never_ends = streamed(pattern::body(1_000).chain(futures::stream::pending()));
        let answer = connection.fetch(request("POST", "/hello", never_ends)?).await?;
        assert_eq!(answer.text(), "hello\n", "{guest}");
        assert_eq!(connection.get("/hello").await?.text(), "hello\n", "{guest}: on the same connection");
    }
    Ok(())
}
