//! What is written to standard error while whoever reads it is slow.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pillion_tests::{Component, Connection, Host, Protocol, eventually, get};
use serde_json::Value;

/// What a slow reader takes in a second.
const SLOW: u64 = 1 << 20;

const SOON: Duration = Duration::from_secs(120);

/// How long each way of reading is looked at, and how often.
const PHASE: Duration = Duration::from_secs(3);
const TURNS: usize = 3;

/// Those that write much.
fn floods() -> Vec<String> {
    (0..8).map(|number| format!("flood-{number}")).collect()
}

async fn host() -> Result<Host> {
    let flood =
        |name: String| Ok(Component::guest(&name, "faults-p2")?.limit("cpuTime", "1h").limit("headTimeout", "1h"));
    let floods = floods().into_iter().map(flood);
    let quiet = ["quiet", "other"].map(|name| Component::guest(name, "faults-p2"));
    Host::of(floods.chain(quiet).collect::<Result<Vec<_>>>()?).start().await
}

fn log(host: &Host) -> impl Iterator<Item = Value> {
    host.log().into_iter().filter_map(|line| serde_json::from_str(&line).ok())
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// How many lines of each guest are in the log, and how many the log says were dropped.
fn written_and_dropped(host: &Host) -> BTreeMap<String, (u64, u64)> {
    let mut counts = BTreeMap::<String, (u64, u64)>::new();
    for line in log(host).filter(|line| text(line, "target") == "guest") {
        let count = counts.entry(text(&line, "binding").to_owned()).or_default();
        match line.get("dropped").and_then(Value::as_u64) {
            Some(dropped) => count.1 += dropped,
            None => count.0 += 1,
        }
    }
    counts
}

#[tokio::test]
async fn what_guests_write_too_much_is_counted_by_whom_and_the_agents_own_lines_arrive() -> Result<()> {
    const LINES: u64 = 2_000;
    let host = host().await?;
    host.read_log_at(SLOW);
    let (floods, port) = (floods(), host.port("other")?);
    let path = format!("/log?lines={LINES}&bytes=8000");
    let all = floods.iter().map(|name| Ok(get(Protocol::H1, host.port(name)?, &path))).collect::<Result<Vec<_>>>()?;
    let traps = async {
        for _ in 0..5 {
            get(Protocol::H1, port, "/trap").await?;
        }
        anyhow::Ok(())
    };
    let (answers, trapped) = futures::future::join(futures::future::join_all(all), traps).await;
    trapped?;
    for answer in answers {
        ensure!(answer?.text() == "done\n");
    }
    eventually("every line, written or counted", SOON, async || {
        let counts = written_and_dropped(&host);
        for name in &floods {
            let (written, dropped) = counts.get(name).copied().unwrap_or_default();
            // One more is on standard error.
            ensure!(written + dropped == LINES + 1, "{name}: {written} are there and {dropped} are said to be dropped");
        }
        Ok(())
    })
    .await?;
    let told = log(&host).filter(|line| line["message"] == "request failed" && line["binding"] == "other").count();
    ensure!(told == 5, "{told} of 5 traps are told");
    let bytes: usize = host.log().iter().filter(|line| line.contains("\"flood-")).map(String::len).sum();
    // A burst of a namespace, and what it may write in time.
    ensure!(bytes < 2 << 22, "guests wrote {bytes} bytes");
    Ok(())
}

/// How long answers take, one after the other.
async fn answers(port: u16) -> Result<Vec<Duration>> {
    let (mut took, end) = (Vec::new(), Instant::now() + PHASE);
    let mut connection = Connection::open(Protocol::H1, port).await?;
    while Instant::now() < end {
        let began = Instant::now();
        ensure!(connection.get("/hello").await?.text() == "hello\n");
        took.push(began.elapsed());
    }
    Ok(took)
}

#[tokio::test]
async fn a_log_that_is_read_slowly_delays_no_answer() -> Result<()> {
    let host = host().await?;
    let port = host.port("quiet")?;
    let ports = floods().iter().map(|name| host.port(name)).collect::<Result<Vec<_>>>()?;
    let flood = async |port: u16| -> Result<()> {
        loop {
            get(Protocol::H1, port, "/log?lines=100000&bytes=8000").await?;
        }
    };
    let measured = async {
        let (mut fast, mut slow) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            for (rate, took) in [(0, &mut fast), (SLOW, &mut slow)] {
                host.read_log_at(rate);
                took.extend(answers(port).await?);
            }
        }
        anyhow::Ok([fast, slow])
    };
    let floods = futures::future::try_join_all(ports.into_iter().map(flood));
    let [fast, slow] = tokio::select! {
        measured = measured => measured?,
        ended = floods => anyhow::bail!("the floods ended: {ended:?}"),
    };
    let p99 = |mut took: Vec<Duration>| {
        took.sort_unstable();
        took[took.len() * 99 / 100]
    };
    let (answers, fast, slow) = ([fast.len(), slow.len()], p99(fast), p99(slow));
    ensure!(
        slow < fast * 4,
        "p99 {slow:?} where the log is read slowly, {fast:?} where it is not ({answers:?} answers)"
    );
    Ok(())
}
