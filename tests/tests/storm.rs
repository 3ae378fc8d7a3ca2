//! Hundreds of faults at once. In a program of its own: what it does to the machine would be felt by tests beside it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pillion_tests::{
    Answer, Component, Connection, FAULTS, Host, Protocol, eventually, get,
    process::{self, MIB},
};

/// Fetches a path so often at once, each time over a connection of its own.
async fn at_once(port: u16, path: &str, many: usize) -> Result<Vec<Answer>> {
    let answers = (0..many).map(|_| get(Protocol::H1, port, path));
    futures::future::join_all(answers).await.into_iter().collect()
}

/// Each misbehaviour with what its caller gets.
const STORM: [(&str, &str); 4] =
    [("/loop", "cpu-limit"), ("/alloc", "memory-limit"), ("/trap", "trap"), ("/never", "head-timeout")];

#[tokio::test]
async fn eight_hundred_faults_at_once_leave_others_alone_and_give_everything_back() -> Result<()> {
    // 100 of each in each generation.
    const EACH: usize = 100;
    let mut components = vec![Component::guest("good", "hello-wasip2")?];
    for guest in FAULTS {
        for (path, _) in STORM {
            let head = if path == "/never" { "2s" } else { "1m" };
            let component = Component::guest(&format!("{}-{guest}", path.trim_start_matches('/')), guest)?;
            let component = component.limit("cpuTime", "50ms").limit("memory", "16Mi").limit("headTimeout", head);
            components.push(component.limit("concurrency", 200).limit("queue", 0));
        }
    }
    let host = Host::of(components).start().await?;
    let good = host.port("good")?;
    let storm = async || {
        let faults = FAULTS.iter().flat_map(|guest| {
            let host = &host;
            STORM.iter().map(move |(path, reason)| async move {
                let port = host.port(&format!("{}-{guest}", path.trim_start_matches('/')))?;
                let answers = at_once(port, path, EACH).await?;
                let all: Vec<_> = answers.iter().map(|answer| answer.header("pillion-error")).collect();
                ensure!(all.iter().all(|seen| seen == reason), "{guest} {path}: {all:?}");
                Ok(())
            })
        });
        let others = async {
            let (mut connection, mut slowest) = (Connection::open(Protocol::H1, good).await?, Duration::ZERO);
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                let began = Instant::now();
                let answer = connection.get("/").await?;
                ensure!(answer.status == 200 && answer.text() == "hello\n", "{answer:?}");
                slowest = slowest.max(began.elapsed());
            }
            Ok(slowest)
        };
        let (_, slowest) = tokio::try_join!(futures::future::try_join_all(faults), others)?;
        anyhow::Ok(slowest)
    };
    // Pools keep some of what was used, and each storm may use other slots: in either engine, 100 slots keep 320 KiB of their
    // memory and tables, and every slot its stack, some 45 KiB. That fills up in some ten storms and then stays; 200 guests took
    // 16 MiB each.
    let kept = 2 * (100 * (320 << 10) + 4 * EACH as u64 * (64 << 10));
    storm().await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = process::memory(host.worker()?)?;
    let slowest = storm().await?;
    assert!(slowest < Duration::from_secs(8), "the good component answered after {slowest:?}");
    let back = async || {
        let after = process::memory(host.worker()?)?;
        ensure!(after < before + kept, "{} MiB before, {} MiB after", before / MIB, after / MIB);
        ensure!(after < 400 * MIB, "{} MiB", after / MIB);
        Ok(())
    };
    eventually("memory to come back", Duration::from_secs(5), back).await?;
    assert_eq!(host.events_of("worker").len(), 1, "the worker lives");
    Ok(())
}
