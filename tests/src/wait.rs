//! Waiting for something with an end.

use std::{thread, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks again and again until there is something.
///
/// # Errors
///
/// Nothing within the time; the error says what was waited for.
pub async fn wait_until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Tries again and again until it works.
///
/// # Errors
///
/// The last error, if it does not work within the time.
pub async fn eventually<T, F>(what: &str, within: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + within;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(error.context(format!("not within {within:?}: {what}"))),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Longer than anything on a node takes once.
const ON_A_NODE: Duration = Duration::from_secs(20);

/// The same without a runtime, for what happens on a node: within 20 s.
///
/// # Errors
///
/// The last error, if it does not work within the time.
pub fn soon<T>(what: &str, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let end = Instant::now() + ON_A_NODE;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("not within {ON_A_NODE:?}: {what}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
