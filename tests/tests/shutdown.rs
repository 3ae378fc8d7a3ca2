//! Ctrl-C, and SIGTERM from whoever runs it: requests in flight finish first.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;
use pillion_tests::{Component, Connection, Host, Protocol, get};
use rustix::process::Signal;

async fn faults() -> Result<Host> {
    Host::of([Component::guest("faults", "faults-p2")?]).drain_timeout("20s").start().await
}

#[tokio::test]
async fn ctrl_c_lets_requests_in_flight_finish_and_ends_with_0() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM] {
        let mut host = faults().await?;
        let port = host.port("faults")?;
        for protocol in Protocol::ALL {
            get(protocol, port, "/hello").await?;
        }
        let in_flight = Protocol::ALL.map(|protocol| tokio::spawn(get(protocol, port, "/sleep?ms=1000")));
        tokio::time::sleep(Duration::from_millis(300)).await;
        host.signal(signal)?;
        let began = Instant::now();
        for answer in in_flight {
            let answer = answer.await??;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "done\n"), "{signal:?}");
        }
        // Each has 700 ms left, and the time to drain is 30 s.
        assert_eq!(host.end(Duration::from_secs(20)).await?.code(), Some(0), "{signal:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "it ends when the requests have: {:?}", began.elapsed());
        assert_eq!(host.event("drained").map(|event| event["requests"].clone()), Some(4.into()), "{:?}", host.events());
        assert!(get(Protocol::H1, port, "/hello").await.is_err(), "nobody listens any more");
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_host_ends_at_once_also_with_connections_open() -> Result<()> {
    let mut host = faults().await?;
    let mut idle = Vec::new();
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, host.port("faults")?).await?;
        connection.get("/hello").await?;
        idle.push(connection);
    }
    let silent = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, host.port("faults")?)).await?;
    host.signal(Signal::INT)?;
    let began = Instant::now();
    assert_eq!(host.end(Duration::from_secs(20)).await?.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4), "the time to drain is waited for: {:?}", began.elapsed());
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn a_connection_in_use_gets_one_more_answer_that_says_it_is_the_last() -> Result<()> {
    let mut host = faults().await?;
    let port = host.port("faults")?;
    let mut connection = Connection::open(Protocol::H1, port).await?;
    connection.get("/hello").await?;
    // Drains while this lasts.
    let slow = tokio::spawn(async move { get(Protocol::H1, port, "/sleep?ms=700").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    connection.get("/hello").await?;
    host.signal(Signal::TERM)?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let last = connection.get("/hello").await?;
    assert_eq!((last.status.as_u16(), last.header("connection")), (200, "close"));
    assert_eq!(slow.await??.status, 200);
    assert_eq!(host.end(Duration::from_secs(5)).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_time_to_drain_is_bounded() -> Result<()> {
    let mut host = Host::of([Component::guest("faults", "faults-p2")?]).drain_timeout("500ms").start().await?;
    let port = host.port("faults")?;
    let never = tokio::spawn(get(Protocol::H1, port, "/sleep?ms=60000"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.signal(Signal::INT)?;
    let began = Instant::now();
    assert_eq!(host.end(Duration::from_secs(5)).await?.code(), Some(0));
    let took = began.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(2)).contains(&took), "{took:?}");
    assert!(never.await?.is_err(), "cut");
    Ok(())
}

#[tokio::test]
async fn ctrl_c_twice_ends_at_once() -> Result<()> {
    let mut host = faults().await?;
    let port = host.port("faults")?;
    let never = tokio::spawn(get(Protocol::H1, port, "/sleep?ms=60000"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.signal(Signal::INT)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(host.ended().is_none(), "the first one waits for requests");
    host.signal(Signal::INT)?;
    host.end(Duration::from_secs(1)).await?;
    assert!(never.await?.is_err(), "cut");
    Ok(())
}
