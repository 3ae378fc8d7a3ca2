//! Calls that guests make: nowhere by default, and where the component says.

use std::net::Ipv4Addr;

use anyhow::Result;
use pillion_tests::{Answer, Component, FAULTS, Host, Protocol, get, upstream::Upstream, wait_until};
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// Until a line is in the log.
const SOON: std::time::Duration = std::time::Duration::from_secs(30);

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nupstream\n";

/// A host of both faults guests that may call these.
async fn calling(hosts: &[&str]) -> Result<Host> {
    let components = FAULTS.map(|name| {
        let component = Component::guest(name, name)?;
        Ok(hosts.iter().fold(component, |component, host| component.may_call(*host)))
    });
    Host::of(components.into_iter().collect::<Result<Vec<_>>>()?).start().await
}

async fn out(host: &Host, guest: &str, url: &str) -> Result<Answer> {
    get(Protocol::H1, host.port(guest)?, &format!("/out?url={}", url.replace('%', "%25"))).await
}

/// Waits for a line about a call of this guest's.
async fn told(host: &Host, what: &str, guest: &str, to: &str) -> Result<String> {
    let line = || {
        let parts = [what.to_owned(), format!("\"component\":\"{guest}\""), format!("\"to\":\"{to}\"")];
        host.log().into_iter().find(|line| parts.iter().all(|part| line.contains(part)))
    };
    wait_until("a line about the call", SOON, line).await
}

/// No warning leaves open whose guest it is about.
fn nothing_is_told_of_nobody(host: &Host) -> Result<()> {
    let of_nobody: Vec<_> =
        host.log().into_iter().filter(|line| line.contains("\"WARN\"") && !line.contains("\"component\"")).collect();
    anyhow::ensure!(of_nobody.is_empty(), "{of_nobody:#?}");
    Ok(())
}

/// Asks both guests, and checks that the call is denied and that nothing reached the server.
async fn denied(host: &Host, upstream: &Upstream, url: &str, code: &str) -> Result<()> {
    for guest in FAULTS {
        let answer = out(host, guest, url).await?;
        let said = answer.text().to_lowercase().replace(['-', '_'], "");
        anyhow::ensure!(
            answer.status == 502 && said.contains(code),
            "{guest} {url}: {} {}",
            answer.status,
            answer.text()
        );
    }
    anyhow::ensure!(upstream.calls() == 0, "{url}: there were {} connections", upstream.calls());
    Ok(())
}

#[tokio::test]
async fn nothing_is_allowed_by_default() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let host = calling(&[]).await?;
    for name in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"] {
        denied(&host, &upstream, &format!("http://{name}:{}/", upstream.port()), "httprequestdenied").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_named_is_reached() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let port = upstream.port();
    for name in ["127.0.0.1", "localhost"] {
        for entry in [format!("http://{name}:{port}"), format!("*://{name}:*"), format!("http://{name}:*")] {
            let host = calling(&[&entry]).await?;
            for guest in FAULTS {
                let answer = out(&host, guest, &format!("http://{name}:{port}/path")).await?;
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "upstream\n"), "{guest} {entry}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_named_is_denied() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let port = upstream.port();
    let other_port = format!("http://127.0.0.1:{}", port - 1);
    let host =
        calling(&["http://example.com", &other_port, "http://localhost", &format!("https://127.0.0.1:{port}")]).await?;
    for name in ["127.0.0.1", "localhost"] {
        denied(&host, &upstream, &format!("http://{name}:{port}/"), "httprequestdenied").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_name_allowed_by_a_star_does_not_lead_to_loopback() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let port = upstream.port();
    let host = calling(&["*://*:*"]).await?;
    // Ways to write 127.0.0.1 and 0.0.0.0, which is the same, some of them names to all but the resolver.
    for name in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0",
        "[::ffff:127.0.0.1]",
        "[::1]",
    ] {
        for guest in FAULTS {
            let answer = out(&host, guest, &format!("http://{name}:{port}/")).await?;
            assert_eq!(answer.status, 502, "{guest} {name}: {}", answer.text());
        }
        assert_eq!(upstream.calls(), 0, "{name} reached loopback");
    }
    denied(&host, &upstream, &format!("http://127.1:{port}/"), "destinationipprohibited").await
}

#[tokio::test]
async fn the_metadata_service_of_clouds_is_not_reached_by_a_star() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let host = calling(&["*://*:*"]).await?;
    for name in ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "[fe80::1]", "224.0.0.1"] {
        denied(&host, &upstream, &format!("http://{name}/latest/meta-data"), "destinationipprohibited").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_the_guests_to_follow_or_not() -> Result<()> {
    let target = Upstream::answering(HELLO).await?;
    let location = format!("http://127.0.0.1:{}/", target.port());
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let upstream = Upstream::answering(redirect).await?;
    let host = calling(&[&format!("http://127.0.0.1:{}", upstream.port())]).await?;
    for guest in FAULTS {
        let answer = out(&host, guest, &format!("http://127.0.0.1:{}/", upstream.port())).await?;
        assert_eq!(answer.status, 302, "{guest}: {}", answer.text());
        let followed = out(&host, guest, &location).await?;
        assert_eq!(followed.status, 502, "{guest}: where it leads is checked like any other call");
    }
    assert_eq!((upstream.calls(), target.calls()), (2, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_code_and_not_a_trap() -> Result<()> {
    let gone = Upstream::answering(HELLO).await?.port();
    let host = calling(&["http://127.0.0.1:*", "http://no-such-host.invalid"]).await?;
    for guest in FAULTS {
        for url in [format!("http://127.0.0.1:{gone}/"), "http://no-such-host.invalid/".into()] {
            let answer = out(&host, guest, &url).await?;
            assert_eq!(
                (answer.status.as_u16(), answer.header("pillion-error")),
                (502, ""),
                "{guest} {url}: {}",
                answer.text()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upstreams_body_is_streamed_and_one_that_is_cut_is_cut() -> Result<()> {
    let long = "x".repeat(3_000_000);
    let whole = Upstream::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n{long}")).await?;
    let cut = Upstream::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: 3000001\r\n\r\n{long}")).await?;
    let host = calling(&["http://127.0.0.1:*"]).await?;
    for guest in FAULTS {
        let answer = out(&host, guest, &format!("http://127.0.0.1:{}/", whole.port())).await?;
        assert_eq!(answer.body.len(), 3_000_000, "{guest}");
        let answer = out(&host, guest, &format!("http://127.0.0.1:{}/", cut.port())).await;
        assert!(answer.is_err(), "{guest}: a body that the upstream cut looks whole");
        told(&host, "call out broke off", guest, &format!("http://127.0.0.1:{}", cut.port())).await?;
    }
    nothing_is_told_of_nobody(&host)
}

#[tokio::test]
async fn an_empty_path_is_a_slash() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let url = format!("http://127.0.0.1:{}", upstream.port());
    let host = calling(&[&url]).await?;
    for guest in FAULTS {
        assert_eq!(out(&host, guest, &url).await?.text(), "upstream\n", "{guest}");
    }
    assert_eq!(upstream.request_lines(), ["GET / HTTP/1.1"; 2]);
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_denied_or_fails_is_told_to_the_log() -> Result<()> {
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let tls = format!("https://127.0.0.1:{}", plain.local_addr()?.port());
    // It ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            _ = stream.write_all(HELLO.as_bytes()).await;
        }
    });
    let host = calling(&["http://localhost:1", &tls]).await?;
    for guest in FAULTS {
        out(&host, guest, "http://example.test:8000/secret").await?;
        out(&host, guest, "http://localhost:1/").await?;
        out(&host, guest, &tls).await?;
        let denied = told(&host, "call out failed", guest, "http://example.test:8000").await?;
        anyhow::ensure!(denied.contains("spec.allowedOutboundHosts") && !denied.contains("secret"), "{denied}");
        told(&host, "call out failed", guest, "http://localhost:1").await?;
        told(&host, "call out failed", guest, &tls).await?;
    }
    nothing_is_told_of_nobody(&host)
}
