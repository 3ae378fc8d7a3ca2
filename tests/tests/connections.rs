//! How connections behave: SPECIFICATION.md §2's last table.

use std::time::Duration;

use anyhow::{Result, ensure};
use hyper::HeaderMap;
use pillion_tests::{
    Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, fetch, request, streamed},
    get,
};

async fn faults() -> Result<Host> {
    Host::of_faults(|component| component).await
}

#[tokio::test]
async fn one_port_speaks_both_protocols() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let port = host.port(guest)?;
        let both = tokio::try_join!(get(Protocol::H1, port, "/hello"), get(Protocol::H2, port, "/hello"))?;
        assert_eq!((both.0.text().as_str(), both.1.text().as_str()), ("hello\n", "hello\n"), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn localhost_is_both_of_its_addresses() -> Result<()> {
    let host = faults().await?;
    let port = host.port("faults-p2")?;
    // A machine without IPv6 has no such address to connect to.
    if std::net::TcpListener::bind(("::1", 0)).is_ok() {
        tokio::net::TcpStream::connect(("::1", port)).await?;
    }
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    assert!(tokio::net::TcpStream::connect(("127.0.0.2", port)).await.is_err(), "other addresses are not listened on");
    Ok(())
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut raw = Raw::connect(host.port(guest)?).await?;
        for _ in 0..5 {
            raw.send("GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await?;
            assert_eq!(raw.answer().await?.text(), "hello\n", "{guest}");
        }
        raw.send("GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        assert_eq!(raw.answer().await?.text(), "hello\n", "{guest}");
        assert!(raw.rest().await?.is_empty(), "{guest}: closed when the caller says so");
    }
    Ok(())
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let all = ["/sleep?ms=100", "/hello", "/nowhere"].map(|path| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
        let mut raw = Raw::say(host.port(guest)?, all.concat()).await?;
        for expected in [(200, "done\n"), (200, "hello\n"), (404, "not found\n")] {
            let answer = raw.answer().await?;
            assert_eq!((answer.status, answer.text().as_str()), expected, "{guest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_expects_100_continue_gets_it_before_the_body() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let head = "POST /count HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
        let mut raw = Raw::say(host.port(guest)?, head).await?;
        assert_eq!(raw.head().await?.status, 100, "{guest}");
        raw.send("hello").await?;
        let answer = raw.answer().await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "5"), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn head_has_headers_and_no_body() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut raw = Raw::say(host.port(guest)?, "HEAD /hello HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        let head = raw.head().await?;
        assert_eq!((head.status, head.header("content-length")), (200, "6"), "{guest}: {}", head.head);
        raw.send("HEAD /method HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        assert_eq!(raw.head().await?.header("x-method"), "HEAD", "{guest}: no body was between the heads");
        for path in ["/hello", "/stream?bytes=100000"] {
            let answer = fetch(Protocol::H2, host.port(guest)?, request("HEAD", path, empty())?).await?;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, ""), "{guest} {path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn answers_have_a_date() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        for (protocol, path) in [(Protocol::H1, "/hello"), (Protocol::H2, "/hello"), (Protocol::H1, "/trap")] {
            let answer = get(protocol, host.port(guest)?, path).await?;
            assert!(answer.header("date").ends_with(" GMT"), "{guest} {protocol:?} {path}: {:?}", answer.headers);
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_methods_that_http_knows_reach_the_guest() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
            let answer = fetch(Protocol::H1, host.port(guest)?, request(method, "/method", empty())?).await?;
            assert_eq!(answer.header("x-method"), method, "{guest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_stops_sending_before_the_answer_has_gone() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut raw = Raw::say(host.port(guest)?, "GET /sleep?ms=500 HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        raw.shut_sending().await?;
        let rest = raw.rest_within(Duration::from_millis(300)).await?;
        assert!(rest.is_empty(), "{guest}: {:?}", String::from_utf8_lossy(&rest));
    }
    Ok(())
}

#[tokio::test]
async fn a_body_may_come_in_any_pieces() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut raw = Raw::connect(host.port(guest)?).await?;
        let bytes =
            "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n";
        for byte in bytes.as_bytes() {
            raw.send([*byte]).await?;
            tokio::task::yield_now().await;
        }
        let answer = raw.answer().await?;
        assert_eq!(answer.status, 200, "{guest}");
        let body = answer.text();
        let data: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(data, "abc", "{guest}: {body:?}");
    }
    Ok(())
}

/// `/echo` with a trailer, in HTTP/1.1.
async fn echo_trailers(port: u16, te: &str) -> Result<String> {
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: a\r\n{te}trailer: x-sum\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let mut raw = Raw::say(port, format!("{head}5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n")).await?;
    let answer = raw.head().await?;
    ensure!(answer.status == 200, "{}", answer.head);
    Ok(String::from_utf8(raw.rest().await?)?)
}

#[tokio::test]
async fn trailers_go_both_ways_in_http_1_to_who_says_te_trailers() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let body = echo_trailers(host.port(guest)?, "te: trailers\r\n").await?;
        assert!(body.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{guest}: {body:?}");
        let body = echo_trailers(host.port(guest)?, "").await?;
        assert!(body.ends_with("0\r\n\r\n") && !body.contains("x-sum"), "{guest}: without TE: {body:?}");
    }
    Ok(())
}

#[tokio::test]
async fn trailers_go_both_ways_in_http_2() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse()?);
        let frames = [Ok(http_body::Frame::data("hello".into())), Ok(http_body::Frame::trailers(trailers.clone()))];
        let body = streamed(futures::stream::iter(frames));
        let answer = fetch(Protocol::H2, host.port(guest)?, request("POST", "/echo", body)?).await?;
        assert_eq!(answer.text(), "hello", "{guest}");
        assert_eq!(answer.trailers, Some(trailers), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn bare_line_feeds_end_lines_in_heads() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let answer = Raw::ask(host.port(guest)?, "GET /hello HTTP/1.1\nhost: a\n\n").await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{guest}");
    }
    Ok(())
}

#[tokio::test]
async fn many_http_2_requests_share_a_connection() -> Result<()> {
    let host = faults().await?;
    for guest in FAULTS {
        let mut connection = Connection::open(Protocol::H2, host.port(guest)?).await?;
        let mut heads = Vec::new();
        for number in 0..150 {
            heads.push((number, connection.send(request("GET", "/hello", empty())?).await?));
        }
        for (number, head) in heads {
            let answer = pillion_tests::Answer::read(head).await;
            assert_eq!(answer.text(), "hello\n", "{guest} {number}");
        }
    }
    Ok(())
}
