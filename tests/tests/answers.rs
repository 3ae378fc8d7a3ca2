//! What a caller gets when the guest gives no answer: every row of SPECIFICATION.md §2's first two tables.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::stream;
use http_body::Frame;
use hyper::Request;
use pillion_tests::{
    Answer, Component, Connection, FAULTS, Host, Protocol, Raw,
    client::{self, Body, empty, fetch, request, streamed},
    eventually, get,
};

/// Checks everything that the specification promises of an answer in the guest's stead.
fn check(answer: &Answer, component: &str, status: u16, reason: &str) -> Result<()> {
    let body = answer.json();
    let context = || format!("{component}: {} {:?} {}", answer.status, answer.headers, answer.text());
    ensure!(answer.status == status, "expected {status}: {}", context());
    ensure!(answer.header("pillion-error") == reason, "expected {reason}: {}", context());
    ensure!(answer.header("content-type") == "application/problem+json", "{}", context());
    ensure!(
        body["status"] == status && body["component"] == component && body["binding"] == component,
        "{}",
        context()
    );
    ensure!(body["type"].as_str().is_some_and(|kind| kind.ends_with(reason)), "{}", context());
    for text in ["title", "detail"] {
        ensure!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{text} is missing: {}", context());
    }
    let again = ["concurrency-limit", "node-limit", "not-ready"].contains(&reason);
    ensure!(answer.header("retry-after") == if again { "1" } else { "" }, "{}", context());
    Ok(())
}

/// Asks both faults guests over both protocols, and checks.
async fn both(host: &Host, path: &str, status: u16, reason: &str) -> Result<()> {
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let answer = get(protocol, host.port(guest)?, path).await?;
            check(&answer, guest, status, reason)?;
        }
        // What happened to one request is nothing to the next.
        ensure!(get(Protocol::H1, host.port(guest)?, "/hello").await?.text() == "hello\n", "{guest} after {reason}");
    }
    Ok(())
}

/// A body that sends a little and then stands still.
fn stalling() -> Body {
    let first = stream::once(async { Ok(Frame::data("x".into())) });
    streamed(futures::StreamExt::chain(first, stream::pending()))
}

#[tokio::test]
async fn a_trap_is_502() -> Result<()> {
    both(&Host::of_faults(|component| component).await?, "/trap", 502, "trap").await
}

#[tokio::test]
async fn a_return_without_a_response_is_502() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for protocol in Protocol::ALL {
        check(&get(protocol, host.port("faults-p2")?, "/no-response").await?, "faults-p2", 502, "no-response")?;
        // p3 has no way to return without a response.
        check(&get(protocol, host.port("faults-p3")?, "/no-response").await?, "faults-p3", 502, "guest-error")?;
    }
    Ok(())
}

#[tokio::test]
async fn an_error_code_is_502_and_named() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    both(&host, "/error-code", 502, "guest-error").await?;
    for guest in FAULTS {
        let detail = get(Protocol::H1, host.port(guest)?, "/error-code").await?.json()["detail"].to_string();
        assert!(detail.to_lowercase().replace(['-', '_', ' '], "").contains("configurationerror"), "{guest}: {detail}");
    }
    Ok(())
}

#[tokio::test]
async fn memory_above_the_limit_is_502() -> Result<()> {
    both(&Host::of_faults(|component| component.limit("memory", "16Mi")).await?, "/alloc", 502, "memory-limit").await
}

#[tokio::test]
async fn cpu_time_above_the_limit_is_504() -> Result<()> {
    both(&Host::of_faults(|component| component.limit("cpuTime", "50ms")).await?, "/loop", 504, "cpu-limit").await
}

#[tokio::test]
async fn no_head_in_time_is_504() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("headTimeout", "200ms")).await?;
    both(&host, "/never", 504, "head-timeout").await?;
    let began = Instant::now();
    get(Protocol::H1, host.port("faults-p2")?, "/never").await?;
    assert!((190..4_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn the_total_time_before_a_head_is_504() -> Result<()> {
    both(&Host::of_faults(|component| component.limit("totalTimeout", "200ms")).await?, "/never", 504, "total-timeout")
        .await
}

#[tokio::test]
async fn a_request_body_that_stands_still_is_504() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("idleTimeout", "200ms")).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let answer = fetch(protocol, host.port(guest)?, request("POST", "/count", stalling())?).await?;
            check(&answer, guest, 504, "idle-timeout")?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_full_queue_is_503_at_once() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("concurrency", 1).limit("queue", 0)).await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        for protocol in Protocol::ALL {
            // The guest before may still be on its way out. When the head is out, this one has its place.
            let hold = async || {
                let mut connection = Connection::open(protocol, port).await?;
                let held = connection.send(request("GET", "/body-never", empty())?).await?;
                ensure!(held.status() == 200, "{}", held.status());
                Ok((connection, held))
            };
            let held = eventually("a place", Duration::from_secs(2), hold).await?;
            let began = Instant::now();
            check(&get(protocol, port, "/hello").await?, guest, 503, "concurrency-limit")?;
            assert!(began.elapsed() < Duration::from_secs(4), "it does not wait: {:?}", began.elapsed());
            drop(held);
            let free = async || {
                let answer = get(protocol, port, "/hello").await?;
                ensure!(answer.status == 200, "{}", answer.status);
                Ok(())
            };
            eventually("a free place", Duration::from_secs(2), free).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_node_without_room_is_503() -> Result<()> {
    let faults = FAULTS.map(|name| Component::guest(name, name));
    let host = Host::of(faults.into_iter().collect::<Result<Vec<_>>>()?).args(["--memory", "24Mi"]).start().await?;
    both(&host, "/touch?mib=64", 503, "node-limit").await
}

#[tokio::test]
async fn a_component_that_is_still_being_compiled_is_503() -> Result<()> {
    let store = tempfile::tempdir()?;
    let python = Component::guest("python", "hello-python")?.limit("headTimeout", "300ms");
    let host = Host::of([python]).store(store.path()).spawn()?;
    host.wait_for("an event `compiling`", Duration::from_secs(20), |event| event["event"] == "compiling").await?;
    let began = Instant::now();
    let answer = get(Protocol::H1, host.port("python")?, "/").await?;
    check(&answer, "python", 503, "not-ready")?;
    assert!(began.elapsed() < Duration::from_secs(8), "headTimeout is 300 ms, the answer took {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_component_that_cannot_be_served_is_503_and_says_why() -> Result<()> {
    let [bad, good] = [Component::guest("bad", "imports-unknown")?, Component::guest("good", "hello-wasip2")?];
    let host = Host::of([bad, good]).start().await?;
    for protocol in Protocol::ALL {
        let answer = get(protocol, host.port("bad")?, "/").await?;
        check(&answer, "bad", 503, "unavailable")?;
        assert!(answer.text().contains("acme:missing/thing@1.2.3"), "{}", answer.text());
    }
    Ok(())
}

/// Sends bytes and checks that they are a bad request, in the host's words.
async fn bad_request(host: &Host, bytes: &str) -> Result<()> {
    let answer = Raw::ask(host.port("faults-p2")?, bytes).await?;
    ensure!(answer.status == 400, "{bytes:?}: {} {}", answer.head, answer.text());
    ensure!(answer.header("pillion-error") == "bad-request", "{bytes:?}: {}", answer.head);
    let body: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(body["status"] == 400 && body["component"] == "faults-p2", "{bytes:?}: {body}");
    Ok(())
}

#[tokio::test]
async fn requests_that_two_readers_could_understand_differently_are_400() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for bytes in [
        "GET /hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
    ] {
        bad_request(&host, bytes).await?;
    }
    Ok(())
}

#[tokio::test]
async fn connect_is_400() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    bad_request(&host, "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n").await
}

#[tokio::test]
async fn an_invalid_host_is_400() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for name in ["a/hello?", "a/hello#", "a b", "[::1", "a:99999", "a%2fb", "u:p@a", ":80"] {
        bad_request(&host, &format!("GET /public HTTP/1.1\r\nhost: {name}\r\n\r\n")).await?;
    }
    for guest in FAULTS {
        let answer = Raw::ask(host.port(guest)?, "GET /hello HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n").await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{guest}: an empty one is valid");
    }
    Ok(())
}

#[tokio::test]
async fn http_1_0_without_a_host_is_served() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        let answer = Raw::ask(host.port(guest)?, "GET /hello HTTP/1.0\r\n\r\n").await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn malformed_requests_are_400_of_the_parser() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for bytes in [
        "GARBAGE\r\n\r\n",
        "GET  /hello HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /hello HTTP/9.9\r\nhost: a\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost a\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nx\0y: z\r\n\r\n",
        "POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        "POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        "POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n",
    ] {
        for guest in FAULTS {
            let mut raw = Raw::say(host.port(guest)?, bytes).await?;
            let answer = raw.answer().await?;
            assert_eq!((answer.status, answer.header("pillion-error")), (400, ""), "{bytes:?}: {}", answer.head);
            assert!(raw.rest().await?.is_empty(), "{bytes:?}: the connection is closed after it");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_length_beside_chunks_does_not_count_and_ends_the_connection() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for framing in
            ["content-length: 5\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 5"]
        {
            let bytes = format!("POST /count HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n0\r\n\r\n");
            let answer = Raw::ask(host.port(guest)?, bytes).await?;
            assert_eq!((answer.status, answer.header("connection")), (200, "close"), "{guest}: {framing}");
            assert_eq!(answer.text(), "0", "{guest}: {framing}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_malformed_chunk_size_is_400() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for size in ["zz", "-1", "10000000000000000", "", "0x5"] {
        for guest in FAULTS {
            let bytes = format!(
                "POST /count HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{size}\r\nhello\r\n0\r\n\r\n"
            );
            let answer = Raw::ask(host.port(guest)?, bytes).await?;
            assert_eq!(
                (answer.status, answer.header("pillion-error")),
                (400, "bad-request"),
                "{guest} {size:?}: {}",
                answer.text()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_long_target_is_414() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("headers", "256Ki")).await?;
    for guest in FAULTS {
        let target = format!("/hello?{}", "x".repeat(66_000));
        let answer = Raw::ask(host.port(guest)?, format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await?;
        assert_eq!(answer.status, 414, "{guest}");
        let target = format!("/hello?{}", "x".repeat(60_000));
        let answer = Raw::ask(host.port(guest)?, format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await?;
        assert_eq!(answer.status, 200, "{guest}: 60,000 bytes are no long target");
    }
    Ok(())
}

/// A request with so many headers of so many bytes.
fn with_headers(many: usize, bytes: usize) -> Result<Request<Body>> {
    let mut request = request("GET", "/hello", empty())?;
    for number in 0..many {
        let name: hyper::header::HeaderName = format!("x-{number}").parse()?;
        request.headers_mut().insert(name, "y".repeat(bytes).parse()?);
    }
    Ok(request)
}

#[tokio::test]
async fn a_head_above_the_limit_is_431() -> Result<()> {
    let host = Host::of_faults(|component| component.limit("headers", "16Ki")).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let answer = fetch(protocol, host.port(guest)?, with_headers(3, 8_000)?).await?;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (431, ""), "{guest} {protocol:?}");
            let answer = fetch(protocol, host.port(guest)?, with_headers(3, 4_000)?).await?;
            assert_eq!(answer.status, 200, "{guest} {protocol:?}: 12,000 bytes are allowed");
        }
    }
    Ok(())
}

#[tokio::test]
async fn more_than_100_headers_are_431_in_http_1() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    let port = host.port("faults-p2")?;
    assert_eq!(fetch(Protocol::H1, port, with_headers(120, 1)?).await?.status, 431);
    assert_eq!(fetch(Protocol::H1, port, with_headers(90, 1)?).await?.status, 200);
    assert_eq!(fetch(Protocol::H2, port, with_headers(120, 1)?).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_connection_outlives_answers_in_the_guests_stead() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            let mut connection = Connection::open(protocol, host.port(guest)?).await?;
            for _ in 0..3 {
                check(&connection.get("/trap").await?, guest, 502, "trap")?;
                assert_eq!(connection.get("/hello").await?.text(), "hello\n", "{guest} {protocol:?}");
            }
            let whole = client::full("some bytes");
            assert_eq!(connection.fetch(request("POST", "/count", whole)?).await?.text(), "10");
        }
    }
    Ok(())
}
