//! What guests hold of the host: as much as their memory allows, also where a garbage collector gives it back late.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use pillion_tests::{
    Component, Host, Protocol,
    client::{fetch, request, streamed},
    get, is_soak,
    upstream::Upstream,
};

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nupstream\n";

/// A guest in JavaScript, with the default memory and as much time as a slow machine needs.
fn script() -> Result<Component> {
    let component = Component::guest("script", "hello-js")?.may_call("http://localhost:*");
    Ok(["cpuTime", "headTimeout"].into_iter().fold(component, |component, limit| component.limit(limit, "10m")))
}

async fn read_in_pieces(host: &Host, pieces: usize, bytes: usize) -> Result<()> {
    let piece = Bytes::from(vec![b'x'; bytes]);
    let frames = stream::iter((0..pieces).map(move |_| Ok(Frame::data(piece.clone()))));
    let answer = fetch(Protocol::H1, host.port("script")?, request("POST", "/pieces", streamed(frames))?).await?;
    ensure!(answer.text() == format!("{} bytes\n", pieces * bytes), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_guest_with_a_garbage_collector_reads_long_bodies_and_many_pieces() -> Result<()> {
    let host = Host::of([script()?]).start().await?;
    let (long, many) = if is_soak() { (1_600, 100_000) } else { (800, 20_000) };
    read_in_pieces(&host, long, 64 << 10).await?;
    read_in_pieces(&host, many, 10).await
}

#[tokio::test]
async fn it_makes_many_calls_and_holds_many_timers() -> Result<()> {
    let upstream = Upstream::answering(HELLO).await?;
    let host = Host::of([script()?]).start().await?;
    let port = host.port("script")?;
    let calls = format!("/calls?n=1000&url=http://localhost:{}/", upstream.port());
    assert_eq!(get(Protocol::H1, port, &calls).await?.text(), "1000 calls\n");
    assert_eq!(get(Protocol::H1, port, "/timers?n=1000").await?.text(), "1000 timers\n");
    Ok(())
}

#[tokio::test]
async fn more_than_its_memory_allows_is_a_matter_of_its_memory() -> Result<()> {
    let host = Host::of([script()?.limit("memory", "40Mi")]).start().await?;
    let answer = get(Protocol::H1, host.port("script")?, "/timers?n=1000000").await?;
    assert_eq!((answer.status.as_u16(), answer.header("pillion-error")), (502, "memory-limit"), "{answer:?}");
    Ok(())
}
