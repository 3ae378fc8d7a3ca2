//! The follower: a child process that follows the node's stream of control, for as long as its supervisor lives.
//!
//! It speaks TLS and HTTP with control, so that the supervisor, which holds the listeners, need not. What control says it hands on, line
//! by line; what the supervisor reports it brings to control. It knows nothing itself but which versions it has handed on.

mod client;
mod lines;
pub mod message;

use std::{
    io::{self, BufRead, Write},
    thread,
    time::{Duration, Instant},
};

use pillion_confine::Process;
use pillion_protocol::stream::Report;
use tokio::{runtime::Builder, sync::watch};

use self::{
    client::{Away, Connection},
    message::{Start, Word},
};
use crate::program;

/// How long to wait before control is asked again: at first, and at most. All nodes come back at once when a replica ends.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// A stream that ends sooner was none: control is not asked again at once.
const LASTING: Duration = Duration::from_secs(5);

/// The child's main function; `parent` started it.
///
/// # Errors
///
/// Only what keeps it from hearing or saying anything.
pub fn main(parent: u32) -> anyhow::Result<()> {
    program::end_with(parent)?;
    Process::Follower.confine()?;
    let mut lines = io::stdin().lock();
    let mut start = String::new();
    lines.read_line(&mut start)?;
    drop(lines);
    let start: Start = serde_json::from_str(&start)?;
    let (reports, latest) = watch::channel(None);
    thread::Builder::new().name("reports".into()).spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if let Ok(report) = serde_json::from_str::<Report>(&line) {
                reports.send_replace(Some(report));
            }
        }
    })?;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    runtime.block_on(follow(start, latest))
}

/// Says a word to the supervisor.
fn say(word: &Word) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, word)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Follows control until the supervisor is gone.
async fn follow(start: Start, mut reports: watch::Receiver<Option<Report>>) -> anyhow::Result<()> {
    let Start { settings, mut known } = start;
    let (mut pause, mut said) = (AGAIN, None);
    loop {
        let mut connection =
            Connection { settings: &settings, known: &mut known, reports: &mut reports, complete: false };
        let began = Instant::now();
        let away = connection.follow().await;
        if connection.complete && began.elapsed() > LASTING {
            (pause, said) = (AGAIN, None);
        }
        match away {
            Away::SupervisorGone(error) => return Err(error.into()),
            Away::Control(why) => {
                if said.as_ref() != Some(&why) {
                    say(&Word::Away(why.clone()))?;
                    said = Some(why);
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}
