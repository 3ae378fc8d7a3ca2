//! One start of `pillion run`, split by what it says on the way.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    client,
    host::{Pillion, Said},
    setup::Setup,
};

/// Every guest that is asked here answers it with 200.
const PATH: &str = "/hello";

/// One start of `pillion run`, up to an answer. All in seconds.
pub struct Start {
    /// From the program's start until it looks for the component.
    pub before: f64,
    /// From there to the answer.
    pub whole: f64,
    /// From `pulling` to `pulled`.
    pub pulled: f64,
    /// Of that, to find out where the tag leads.
    pub resolve: f64,
    /// Of that, to pull what was missing.
    pub pull: f64,
    /// Of the pull, to check digests.
    pub verify: f64,
    /// From `compiling` to `ready`.
    pub compile: f64,
    /// From `ready` to the answer.
    pub answer: f64,
}

/// What `pillion run` should do at a start.
pub enum Expected {
    /// Serve a file.
    File {
        /// It is compiled for that.
        compiled: bool,
    },
    /// Pull an artifact and compile it.
    Pulled {
        /// It has as many bytes, at least.
        least: u64,
    },
    /// Serve an artifact that is in the store, as its native code is.
    Known {
        /// The registry cannot be asked.
        stale: bool,
    },
}

impl Start {
    /// Starts `pillion run` with these arguments, asks at `port` when it is ready, and ends it.
    ///
    /// # Errors
    ///
    /// An answer that is not 200; another start than what was expected.
    pub fn take(
        setup: &Setup,
        store: &Path,
        port: u16,
        arguments: &[String],
        expected: &Expected,
    ) -> anyhow::Result<Self> {
        let began = Instant::now();
        let (mut pillion, said) = Pillion::start_with(setup, store, arguments)?;
        let answer = client::ask(port, PATH, Duration::ZERO)?.answer;
        let answered = Instant::now();
        ensure!(answer.status == 200, "{answer}");
        pillion.check()?;
        expected.check(&said)?;
        Self::read(began, &said, answered)
    }

    fn read(began: Instant, said: &[Said], answered: Instant) -> anyhow::Result<Self> {
        let ready = event(said, "ready").context("there was no event ready")?;
        let pulled = event(said, "pulled");
        let of_pulled = |field| pulled.map_or(Ok(0.0), |pulled| seconds(pulled, field));
        let between = |from: &str, to: Option<&Said>| {
            event(said, from).zip(to).map_or(0.0, |(from, to)| to.at.duration_since(from.at).as_secs_f64())
        };
        // No event says when a file is looked for.
        let looked = match event(said, "pulling") {
            Some(pulling) => pulling.at,
            None => ready
                .at
                .checked_sub(Duration::from_secs_f64(seconds(ready, "seconds")?))
                .context("it took longer than the clock goes back")?,
        };
        Ok(Self {
            before: looked.duration_since(began).as_secs_f64(),
            whole: answered.duration_since(looked).as_secs_f64(),
            pulled: between("pulling", pulled),
            resolve: of_pulled("resolveSeconds")?,
            pull: of_pulled("pullSeconds")?,
            verify: of_pulled("verifySeconds")?,
            compile: between("compiling", Some(ready)),
            answer: answered.duration_since(ready.at).as_secs_f64(),
        })
    }
}

impl Expected {
    /// That it was so.
    fn check(&self, said: &[Said]) -> anyhow::Result<()> {
        let field = |name, field| event(said, name).and_then(|said| said.event.get(field)).cloned();
        let (bytes, stale) = (field("pulled", "bytes"), field("pulled", "stale"));
        let compiled = field("ready", "compiled") == Some(Value::Bool(true));
        let has_bytes = bytes.as_ref().and_then(Value::as_u64);
        let right = match self {
            Self::File { compiled: expected } => bytes.is_none() && compiled == *expected,
            Self::Pulled { least } => has_bytes.is_some_and(|bytes| bytes >= *least) && compiled,
            Self::Known { stale: expected } => has_bytes == Some(0) && stale == Some((*expected).into()) && !compiled,
        };
        ensure!(right, "another start than was to be measured: {said:?}");
        Ok(())
    }
}

fn event<'a>(said: &'a [Said], name: &str) -> Option<&'a Said> {
    said.iter().find(|said| said.event.get("event").and_then(Value::as_str) == Some(name))
}

fn seconds(said: &Said, field: &str) -> anyhow::Result<f64> {
    said.event.get(field).and_then(Value::as_f64).with_context(|| format!("no {field} in {}", said.event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_split_by_its_events() {
        let began = Instant::now();
        let said = |ms, event: Value| Said { at: began + Duration::from_millis(ms), event };
        let events = [
            said(10, serde_json::json!({"event": "pulling"})),
            said(
                30,
                serde_json::json!({"event": "pulled", "resolveSeconds": 0.004, "pullSeconds": 0.01, "verifySeconds": 0.001}),
            ),
            said(31, serde_json::json!({"event": "compiling"})),
            said(131, serde_json::json!({"event": "ready", "seconds": 0.121})),
        ];
        let start = Start::read(began, &events, began + Duration::from_millis(140)).unwrap();
        let ms = [start.before, start.whole, start.pulled, start.compile, start.answer].map(|s| (s * 1e3).round());
        assert_eq!(ms, [10.0, 130.0, 20.0, 100.0, 9.0]);
        assert_eq!((start.resolve, start.pull, start.verify), (0.004, 0.01, 0.001));
        let of_file = Start::read(began, &events[3..], began + Duration::from_millis(140)).unwrap();
        assert_eq!([of_file.before, of_file.whole, of_file.pulled].map(|s| (s * 1e3).round()), [10.0, 130.0, 0.0]);
    }
}
