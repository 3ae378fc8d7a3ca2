//! Guests in little address space: a limit on it (`ulimit -v`), or a kernel that has few bits of it.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use pillion_tests::{Component, Connection, Host, Protocol, get};
use serde_json::Value;

fn components() -> Result<[Component; 2]> {
    Ok([Component::guest("p2", "faults-p2")?, Component::guest("p3", "faults-p3")?])
}

/// The lines that say how few requests are served at once.
fn warnings(host: &Host) -> Vec<Value> {
    let lines = host.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["level"] == "WARN" && line["usual"].is_u64()).collect()
}

/// Serves from as many slots as there is room for, which the log says once.
async fn serves(gib: u64) -> Result<u64> {
    let host = Host::of(components()?).addresses(gib).start().await?;
    let serving = host.event("serving").context("no event `serving`")?;
    ensure!(serving["ready"] == 2, "{serving}");
    // One after another, each in a slot that another one has left: of both engines, whose pools are apart.
    for component in ["p2", "p3"] {
        let mut connection = Connection::open(Protocol::H1, host.port(component)?).await?;
        for number in 0..50 {
            let answer = connection.get("/hello").await?;
            ensure!(answer.status == 200, "{component}, request {number}: {}", answer.text());
        }
    }
    let warnings = warnings(&host);
    ensure!(warnings.len() == 1, "the log says once how few are served at once: {warnings:?}");
    let slots = warnings.first().and_then(|line| line["instances"].as_u64()).context("no number")?;
    // All at once: whoever is above the number is told so, and can come again.
    let port = host.port("p3")?;
    let answers = join_all((0..slots + 5).map(|_| get(Protocol::H1, port, "/sleep?ms=2000"))).await;
    let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
    let served = answers.iter().filter(|answer| answer.status == 200).count() as u64;
    ensure!(served >= slots, "{served} of {slots} at once");
    let others = answers.iter().filter(|answer| answer.status != 200);
    ensure!(others.clone().all(|answer| answer.header("pillion-error") == "node-limit"), "{answers:?}");
    let mut connection = Connection::open(Protocol::H2, port).await?;
    ensure!(connection.get("/hello").await?.status == 200, "it goes on");
    Ok(slots)
}

#[tokio::test]
async fn guests_are_served_from_as_many_slots_as_the_address_space_holds() -> Result<()> {
    let slots = serves(400).await?;
    ensure!((16..=30).contains(&slots), "{slots} slots of 8 GiB in each of two engines");
    let slots = serves(40).await?;
    ensure!(slots == 2, "{slots}: what is left is for the fewest there are");
    Ok(())
}

#[tokio::test]
async fn an_address_space_that_is_too_small_ends_the_program_with_words_about_it() -> Result<()> {
    let mut host = Host::of(components()?).addresses(4).spawn()?;
    let status = host.end(Duration::from_secs(60)).await?;
    let said = host.log().join("\n");
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(host.events_of("ready").is_empty(), "{:?}", host.events());
    ensure!(said.contains("address space") && said.contains("4096 MiB") && said.contains("ulimit -v"), "{said}");
    Ok(())
}
