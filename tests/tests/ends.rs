//! A caller always learns how a request ended, whatever the moment, and so does who reads the log.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use pillion_tests::{
    Component, Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, fetch, request, streamed},
    wait_until,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;

/// How a caller of HTTP/1 asks, and whether its connection is to be kept.
const HEADS: [(&str, &str); 4] = [
    ("HTTP/1.0", ""),
    ("HTTP/1.0", "connection: keep-alive\r\n"),
    ("HTTP/1.1", ""),
    ("HTTP/1.1", "connection: close\r\n"),
];

/// Waits and bytes between the head and the fault.
const PAUSES: [u64; 3] = [0, 1, 100];
const BYTES: [usize; 3] = [0, 1, 64 << 10];

/// Whether an answer with its length is whole: its connection may then go on.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.and_then(|length| length.parse().ok()) == Some(body.len())
}

/// All that comes until the answer is whole or the connection ends, and whether it ended by a reset.
async fn all(raw: &mut Raw) -> Result<(Vec<u8>, bool)> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let read = tokio::time::timeout(Duration::from_secs(60), raw.stream().read(&mut buffer)).await?;
        match read {
            Ok(0) => return Ok((bytes, false)),
            Ok(read) => {
                bytes.extend_from_slice(&buffer[..read]);
                if is_whole(&bytes) {
                    return Ok((bytes, false));
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok((bytes, true)),
            Err(error) => bail!(error),
        }
    }
}

/// An answer to HTTP/1: either the host's own words, or a body that is visibly not whole.
fn told(answer: &[u8], reset: bool, version: &str) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").context("there is no head")?;
    if head.split(' ').nth(1) == Some("502") {
        ensure!(head.contains("pillion-error: trap"), "{head}");
        return Ok(());
    }
    ensure!(head.split(' ').nth(1) == Some("200"), "{head}");
    match version {
        "HTTP/1.0" => ensure!(reset, "the body ends as if it were whole, after {} bytes", body.len()),
        _ => {
            ensure!(!body.ends_with("0\r\n\r\n") && head.contains("transfer-encoding: chunked"), "the last chunk came")
        }
    }
    Ok(())
}

fn failures(host: &Host) -> Vec<Value> {
    let lines = host.log();
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == "request failed").collect()
}

#[tokio::test]
async fn who_speaks_http_1_learns_of_each_fault_at_each_moment() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for (pause, bytes) in PAUSES.into_iter().flat_map(|pause| BYTES.map(|bytes| (pause, bytes))) {
            for (version, connection) in HEADS {
                for _ in 0..5 {
                    let path = format!("/body-trap?pause={pause}&bytes={bytes}");
                    let head = format!("GET {path} {version}\r\nhost: a\r\n{connection}\r\n");
                    let mut raw = Raw::say(host.port(guest)?, &head).await?;
                    let (answer, reset) = all(&mut raw).await?;
                    told(&answer, reset, version).with_context(|| format!("{guest}: {head:?}"))?;
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_speaks_http_2_learns_of_each_fault_at_each_moment() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let mut connection = Connection::open(Protocol::H2, host.port(guest)?).await?;
        for (pause, bytes) in PAUSES.into_iter().flat_map(|pause| BYTES.map(|bytes| (pause, bytes))) {
            let path = format!("/body-trap?pause={pause}&bytes={bytes}");
            let answer = connection.fetch_cut(request("GET", &path, empty())?).await?;
            match answer.status.as_u16() {
                502 => ensure!(answer.header("pillion-error") == "trap", "{guest} {path}: {:?}", answer.headers),
                200 => ensure!(answer.cut.is_some(), "{guest} {path}: the body looks whole"),
                other => bail!("{guest} {path}: {other}"),
            }
            ensure!(connection.get("/hello").await?.text() == "hello\n", "{guest} {path}: the next stream");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_whole_body_of_http_1_0_is_no_reset() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for path in ["/hello", "/stream?bytes=1000000", "/stream?bytes=0"] {
            let mut raw = Raw::say(host.port(guest)?, format!("GET {path} HTTP/1.0\r\n\r\n")).await?;
            let (answer, reset) = all(&mut raw).await?;
            ensure!(answer.starts_with(b"HTTP/1.0 200") && !reset, "{guest} {path}");
            ensure!(path != "/stream?bytes=1000000" || answer.len() > 1_000_000, "{guest}: {} bytes", answer.len());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_fails_right_after_its_head_has_given_no_answer() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for protocol in Protocol::ALL {
        let mut whole = 0;
        for _ in 0..20 {
            let mut connection = Connection::open(protocol, host.port("faults-p2")?).await?;
            let answer = connection.fetch_cut(request("GET", "/body-trap?pause=0&bytes=0", empty())?).await?;
            if answer.status == 502 {
                ensure!(answer.header("pillion-error") == "trap", "{:?}", answer.headers);
                whole += 1;
            } else {
                // A tick came between the head and the trap, and the head has left.
                ensure!(answer.cut.is_some(), "the body looks whole");
            }
        }
        ensure!(whole >= 5, "{protocol:?}: {whole} of 20 were told by the host");
    }
    Ok(())
}

#[tokio::test]
async fn each_end_is_one_warning_within_bounds() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("cpuTime", "100ms")).await?;
    for guest in FAULTS {
        for (path, reason) in [
            ("/trap", "trap"),
            ("/loop", "cpu-limit"),
            ("/error-code", "guest-error"),
            ("/body-trap", "trap"),
            ("/answer?status=103", "guest-error"),
            ("/answer?length=5&bytes=3", "guest-error"),
        ] {
            let before = failures(&host).len();
            let mut connection = Connection::open(Protocol::H1, host.port(guest)?).await?;
            connection.fetch_cut(request("GET", path, empty())?).await?;
            let told = format!("a warning for {path}");
            let new = || (failures(&host).len() > before).then_some(());
            wait_until(&told, Duration::from_secs(20), new).await?;
            let new = failures(&host).split_off(before);
            ensure!(new.len() == 1, "{guest} {path}: {new:?}");
            let line = &new[0];
            ensure!(line["level"] == "WARN" && line["reason"] == reason, "{guest} {path}: {line}");
            ensure!(line["component"] == guest && line["binding"] == guest, "{guest} {path}: {line}");
            ensure!(line["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{guest} {path}: {line}");
        }
    }
    let before = failures(&host).len();
    let mut connection = Connection::open(Protocol::H1, host.port("faults-p2")?).await?;
    for _ in 0..200 {
        connection.get("/trap").await?;
    }
    let told = failures(&host).len() - before;
    ensure!(told < 100, "{told} warnings of 200 traps");
    Ok(())
}

#[tokio::test]
async fn answers_that_cannot_be_sent_are_the_hosts_own() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for status in [100, 101, 103, 199] {
            for protocol in Protocol::ALL {
                let mut connection = Connection::open(protocol, host.port(guest)?).await?;
                let answer = connection.get(&format!("/answer?status={status}")).await?;
                ensure!(answer.status == 502 && answer.header("pillion-error") == "guest-error", "{guest} {status}");
                ensure!(connection.get("/hello").await?.text() == "hello\n", "{guest} {status}: the next request");
            }
        }
        for (length, bytes) in [(5, 3), (50_000, 40_000), (5, 0)] {
            for protocol in Protocol::ALL {
                let mut connection = Connection::open(protocol, host.port(guest)?).await?;
                let path = format!("/answer?length={length}&bytes={bytes}");
                let answer = connection.fetch_cut(request("GET", &path, empty())?).await;
                let answer = answer.with_context(|| format!("{guest} {protocol:?} {path}"))?;
                ensure!(answer.status == 502 || answer.cut.is_some(), "{guest} {protocol:?} {path}: looks whole");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_cannot_give_the_hosts_word() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            let answer = connection.get("/answer?bytes=3").await?;
            ensure!(answer.status == 200 && answer.text() == "xxx", "{guest}: {}", answer.status);
            ensure!(!answer.headers.contains_key("pillion-error"), "{guest}: {:?}", answer.headers);
        }
    }
    Ok(())
}

#[tokio::test]
async fn writes_of_nothing_are_no_sign_of_life() -> Result<()> {
    let set = |component: Component| component.limit("idleTimeout", "300ms").limit("cpuTime", "1h");
    let host = Host::of_faults(set).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            let answer = connection.fetch_cut(request("GET", "/nothings", empty())?).await?;
            ensure!(answer.cut.is_some() && answer.body.is_empty(), "{guest} {protocol:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn frames_of_nothing_of_a_caller_are_no_sign_of_life() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("idleTimeout", "500ms")).await?;
    for guest in FAULTS {
        let nothings = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok(Frame::data(Bytes::new())), ()))
        });
        let asked = request("POST", "/count", streamed(nothings))?;
        let answer = fetch(Protocol::H2, host.port(guest)?, asked).await?;
        ensure!(answer.status == 504 && answer.header("pillion-error") == "idle-timeout", "{guest}: {}", answer.status);
    }
    Ok(())
}
