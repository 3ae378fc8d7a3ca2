//! Whether, and when, a registry is asked again.

use std::time::{Duration, Instant};

use super::problem::{Passes, Problem};

/// How often one question is asked at most.
pub(super) const ATTEMPTS: u32 = 5;

/// The first pause, and the longest.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// The longest that a registry may have us wait, and that one question is asked again: longer is a failure, for others wait too.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait after attempt number `attempt` (from 1) has failed; `None` if that was the last. `jitter` is from 0 to 1: callers that
/// failed together do not come back together.
pub(super) fn pause(attempt: u32, passes: Passes, jitter: f64) -> Option<Duration> {
    if attempt >= ATTEMPTS {
        return None;
    }
    match passes {
        Passes::No => None,
        Passes::Soon => {
            let whole = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
            Some(whole.mul_f64(0.5 + jitter / 2.0))
        }
        Passes::After(wait) if wait > PATIENCE => None,
        Passes::After(wait) => Some(wait + FIRST.mul_f64(jitter)),
    }
}

/// Asks until there is an answer, or it makes no sense any more.
pub(super) async fn again<T>(mut ask: impl AsyncFnMut() -> Result<T, Problem>) -> Result<T, Problem> {
    let (mut attempt, began) = (1, Instant::now());
    loop {
        let problem = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(problem) => problem,
        };
        match pause(attempt, problem.passes, fastrand::f64()).filter(|_| began.elapsed() < PATIENCE) {
            Some(pause) => tokio::time::sleep(pause).await,
            None if attempt > 1 => {
                return Err(Problem { text: format!("{} (asked {attempt} times)", problem.text), ..problem });
            }
            None => return Err(problem),
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_end() {
        let ms = |attempt, jitter| pause(attempt, Passes::Soon, jitter).map(|pause| pause.as_millis());
        assert_eq!(
            [1, 2, 3, 4, 5].map(|attempt| ms(attempt, 1.0)),
            [Some(500), Some(1000), Some(2000), Some(4000), None]
        );
        assert_eq!(ms(1, 0.0), Some(250), "half of it is by chance");
        assert_eq!(pause(1, Passes::No, 0.0), None);
    }

    #[test]
    fn a_registry_is_given_the_time_it_asks_for_within_reason() {
        assert_eq!(pause(1, Passes::After(Duration::from_secs(7)), 0.0), Some(Duration::from_secs(7)));
        assert_eq!(pause(1, Passes::After(Duration::from_secs(3_600)), 0.0), None);
    }
}
