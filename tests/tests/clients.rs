//! What real clients send beside a plain request: offers to go on with another protocol, absolute targets, large headers.

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, FAULTS, Host, Protocol, Raw,
    client::{empty, fetch, request},
};

/// Heads as these clients send them, but for the path and the port; each asks for `/hello`.
const OFFERS: [(&str, &str); 5] = [
    (
        "the JDK's java.net.http client",
        "GET /hello HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: localhost:8080\r\n\
         HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client/21.0.5\r\n\r\n",
    ),
    (
        "the same with a body",
        "POST /hello HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 2\r\nHost: localhost:8080\r\n\
         HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client/21.0.5\r\n\r\nhi",
    ),
    (
        "Apache HttpClient 5.4",
        "GET /hello HTTP/1.1\r\nAccept-Encoding: gzip, x-gzip, deflate\r\nHost: localhost:8080\r\nUser-Agent: Apache-HttpClient/5.4 (Java/21.0.5)\r\n\
         Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n\r\n",
    ),
    (
        "curl --http2",
        "GET /hello HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/8.11.0\r\nAccept: */*\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
    ),
    (
        "nginx's auth_request of a WebSocket handshake",
        "GET /hello HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ),
];

#[tokio::test]
async fn an_offer_of_another_protocol_is_ignored_and_the_connection_goes_on() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for (client, head) in OFFERS {
            let mut raw = Raw::connect(host.port(guest)?).await?;
            for _ in 0..2 {
                raw.send(head).await?;
                let answer = raw.answer().await.with_context(|| format!("{guest}: {client}"))?;
                ensure!(
                    (answer.status, answer.text().as_str()) == (200, "hello\n"),
                    "{guest}: {client}: {}",
                    answer.head
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_absolute_target_counts_and_its_host_is_ignored() -> Result<()> {
    let host = Host::of_faults(|component| component).await?;
    for guest in FAULTS {
        for (target, name) in [
            // A client behind `http_proxy=` sends the first.
            ("http://shop.test/hello", "shop.test"),
            ("http://localhost:21006/hello", "other"),
            ("http://localhost/hello", "localhost:80"),
            ("http://localhost:80/hello", "localhost"),
            ("http://localhost./hello", "localhost"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
            let answer = Raw::ask(host.port(guest)?, &head).await?;
            ensure!((answer.status, answer.text().as_str()) == (200, "hello\n"), "{guest}: {head:?}: {}", answer.head);
        }
    }
    Ok(())
}

#[tokio::test]
async fn headers_that_are_let_in_can_be_copied() -> Result<()> {
    let host = Host::of_faults(|component: Component| component).await?;
    for guest in FAULTS {
        for protocol in Protocol::ALL {
            for bytes in [16_100, 20_000, 60_000] {
                let mut copied = request("GET", "/copy", empty())?;
                copied.headers_mut().insert("cookie", "c".repeat(bytes).parse()?);
                let answer = fetch(protocol, host.port(guest)?, copied).await?;
                let text = answer.text();
                let counts: Vec<_> = text.split(' ').collect();
                let copied = matches!(*counts, [all, listed, failed] if all == listed && failed == "0");
                ensure!(answer.status == 200 && copied, "{guest} {protocol:?} {bytes}: {} {text}", answer.status);
            }
            let mut large = request("GET", "/copy", empty())?;
            large.headers_mut().insert("cookie", "c".repeat(70_000).parse()?);
            let answer = fetch(protocol, host.port(guest)?, large).await?;
            ensure!(answer.status == 431, "{guest} {protocol:?}: {}", answer.status);
        }
        // By hand: hyper's client reads at most 100 headers.
        let many = "GET /answer?headers=400&length=0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = Raw::ask(host.port(guest)?, many).await?;
        let headers = answer.head.lines().filter(|line| *line == "h: x").count();
        ensure!(answer.status == 200 && headers == 400, "{guest}: {headers} headers: {}", answer.status);
    }
    Ok(())
}
