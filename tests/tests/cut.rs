//! A body that a fault ends early is never a complete one, however it is sent.

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, Connection, FAULTS, Host, Protocol, Raw,
    client::{empty, request},
    get,
};

/// What the guests send before their fault.
const SENT: usize = 10 * 1024;

/// A key of `spec.limits` and its value.
type Limit = (&'static str, &'static str);

/// What ends a body: a path, and the limit that it takes.
const FAULTS_IN_BODIES: [(&str, &str, Option<Limit>); 5] = [
    ("trap", "/body-trap", None),
    ("cpu", "/body-loop", Some(("cpuTime", "50ms"))),
    ("memory", "/body-alloc", Some(("memory", "16Mi"))),
    ("idle", "/body-never", Some(("idleTimeout", "300ms"))),
    ("total", "/body-never", Some(("totalTimeout", "300ms"))),
];

/// A host with a component for each fault and each generation, named like `trap-faults-p2`.
async fn host() -> Result<Host> {
    let mut components = Vec::new();
    for (fault, _, limit) in FAULTS_IN_BODIES {
        for guest in FAULTS {
            let component = Component::guest(&format!("{fault}-{guest}"), guest)?;
            components.push(match limit {
                Some((key, value)) => component.limit(key, value),
                None => component,
            });
        }
    }
    Host::of(components).start().await
}

/// Does something for each fault and generation, at the component's port.
async fn for_each(host: &Host, check: impl AsyncFn(u16, &str) -> Result<()>) -> Result<()> {
    let worker = host.worker()?;
    for (fault, path, _) in FAULTS_IN_BODIES {
        for guest in FAULTS {
            let port = host.port(&format!("{fault}-{guest}"))?;
            check(port, path).await.with_context(|| format!("{fault} in {guest}"))?;
            ensure!(
                get(Protocol::H1, port, "/hello").await?.text() == "hello\n",
                "{fault} in {guest}: the next request"
            );
        }
    }
    ensure!(host.worker()? == worker, "the worker died");
    Ok(())
}

#[tokio::test]
async fn in_http_1_the_last_chunk_is_missing_and_the_connection_closes() -> Result<()> {
    let host = host().await?;
    for_each(&host, async |port, path| {
        let mut raw = Raw::say(port, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await?;
        let head = raw.head().await?;
        ensure!(head.status == 200 && head.header("transfer-encoding") == "chunked", "{}", head.head);
        let body = raw.rest().await?;
        let sent = body.iter().filter(|&&byte| byte == b'x').count();
        ensure!(sent == SENT, "{sent} bytes came of {SENT}");
        ensure!(!body.ends_with(b"0\r\n\r\n"), "the body ends as if it were whole");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn in_http_1_a_body_of_known_length_falls_short_and_the_connection_closes() -> Result<()> {
    let host = host().await?;
    for_each(&host, async |port, path| {
        let mut raw = Raw::say(port, format!("GET {path}?length=1 HTTP/1.1\r\nhost: a\r\n\r\n")).await?;
        let head = raw.head().await?;
        ensure!(head.status == 200 && head.header("content-length") == "20480", "{}", head.head);
        let body = raw.rest().await?;
        ensure!(body == vec![b'x'; SENT], "{} bytes came of {SENT}", body.len());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn in_http_2_the_stream_is_reset_and_the_connection_goes_on() -> Result<()> {
    let host = host().await?;
    for length in ["", "?length=1"] {
        for_each(&host, async |port, path| {
            let mut connection = Connection::open(Protocol::H2, port).await?;
            let answer = connection.fetch_cut(request("GET", &format!("{path}{length}"), empty())?).await?;
            ensure!(answer.status == 200, "{}", answer.status);
            ensure!(answer.body.len() == SENT, "{} bytes came of {SENT}", answer.body.len());
            let error = answer.cut.context("the body ends as if it were whole")?;
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
            let reset = source.with_context(|| format!("no error of HTTP/2: {error:?}"))?;
            ensure!(reset.is_reset() && reset.is_remote(), "no RST_STREAM: {reset:?}");
            ensure!(reset.reason() != Some(h2::Reason::NO_ERROR), "{reset:?}");
            ensure!(connection.get("/hello").await?.text() == "hello\n", "the connection is of no use any more");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn hyper_calls_each_of_them_an_error() -> Result<()> {
    let host = host().await?;
    for length in ["", "?length=1"] {
        for_each(&host, async |port, path| {
            let mut connection = Connection::open(Protocol::H1, port).await?;
            let answer = connection.fetch_cut(request("GET", &format!("{path}{length}"), empty())?).await?;
            ensure!(answer.cut.is_some(), "the body looks whole: {} bytes", answer.body.len());
            Ok(())
        })
        .await?;
    }
    Ok(())
}
