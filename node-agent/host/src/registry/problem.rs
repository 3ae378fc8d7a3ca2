//! What went wrong with a question to a registry: in words, without what must not be told, and whether it may pass.

use std::{error::Error, time::Duration};

use http::header::RETRY_AFTER;
use pillion_protocol::login::Login;
use reqwest::Response;
use serde::Deserialize;

use super::{manifest::shown, message::Source};

/// The most that is read of an answer that is no success, in bytes.
const MAX_ERROR: usize = 64 << 10;

/// What went wrong with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For people.
    pub text: String,
    /// Whether it may pass, and when to ask again at the earliest if the registry said so.
    pub passes: Passes,
}

/// Whether a problem may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// To ask again would not help.
    No,
    /// It may.
    Soon,
    /// The registry has said when.
    After(Duration),
}

impl Problem {
    /// One that stays.
    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self { text: text.into(), passes: Passes::No }
    }

    /// Whether it may pass.
    pub(super) fn passes(&self) -> bool {
        self.passes != Passes::No
    }

    /// One that may pass.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), passes: Passes::Soon }
    }
}

impl Problem {
    /// What an answer means that is no success. What a stranger writes into it is not told: only its status and the protocol's own codes.
    pub(super) async fn of_answer(answer: Response) -> Self {
        let status = answer.status().as_u16();
        let after = answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let codes = codes(&beginning(answer).await);
        let text = match codes.as_slice() {
            [] => format!("HTTP {status}"),
            codes => format!("HTTP {status}: {}", codes.join(", ")),
        };
        let is_limiting = codes.iter().any(|code| code == "TOOMANYREQUESTS");
        let passes = match (status, after) {
            (429 | 503, Some(seconds)) => Passes::After(Duration::from_secs(seconds)),
            (408 | 429 | 500.., _) => Passes::Soon,
            _ if is_limiting => Passes::Soon,
            _ => Passes::No,
        };
        Self { text, passes }
    }
}

/// What an answer begins with.
async fn beginning(mut answer: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ERROR {
            break;
        }
    }
    bytes
}

/// The codes of an error as the protocol has them.
fn codes(body: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Coded>,
    }
    #[derive(Deserialize)]
    struct Coded {
        code: String,
    }
    let is_code = |code: &str| {
        (1..=40).contains(&code.len())
            && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
    let codes = envelope.into_iter().flat_map(|envelope| envelope.errors).map(|error| error.code);
    codes.filter(|code| is_code(code)).take(3).collect()
}

impl Source {
    /// What an error of the connection means, without what must not be told.
    pub(super) fn problem(&self, error: reqwest::Error, timeout: Duration) -> Problem {
        let registry = &self.registry;
        if error.is_timeout() {
            return late(timeout);
        }
        let is_redirect = error.is_redirect();
        // Where a redirect has led to may have a signature in it.
        let text = shown(&chain(&error.without_url()));
        if is_redirect || text.contains("is next to this machine") {
            Problem::lasting(text)
        } else if text.contains("UnknownIssuer") || text.contains("CaUsedAsEndEntity") {
            Problem::lasting(format!(
                "{text}; give its authority's certificate: registries.{registry:?}.ca in the registries file"
            ))
        } else if text.contains("InvalidContentType") {
            Problem::lasting(format!(
                "it does not speak TLS; if that is meant: --plain-http {registry}, or plainHttp in the registries file"
            ))
        } else if text.contains("certificate") {
            Problem::lasting(text)
        } else {
            Problem::passing(text)
        }
    }

    pub(super) fn unauthorized(&self) -> Problem {
        Problem::lasting(match &self.login {
            Login::Anonymous => "HTTP 401: it wants to know who asks, and there are no credentials for it".to_owned(),
            Login::Basic { username, .. } => format!("HTTP 401: the credentials of {:?} are refused", shown(username)),
            Login::Identity { .. } => "HTTP 401: the identity token for it is refused".to_owned(),
        })
    }
}

pub(super) fn late(within: Duration) -> Problem {
    Problem::passing(format!("no whole answer within {}", humantime::format_duration(within)))
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_strangers_answer_only_codes_are_told() {
        let table = [
            (r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "hunter2"}]}"#, "MANIFEST_UNKNOWN"),
            (r#"{"errors": [{"code": "A"}, {"code": "B"}, {"code": "C"}, {"code": "D"}]}"#, "A B C"),
            (r#"{"errors": [{"code": "the secret is hunter2"}, {"code": "DENIED"}]}"#, "DENIED"),
            (r#"{"errors": "hunter2"}"#, ""),
            ("<html>hunter2</html>", ""),
            ("", ""),
        ];
        for (body, expected) in table {
            assert_eq!(codes(body.as_bytes()).join(" "), expected, "{body}");
        }
    }

    #[tokio::test]
    async fn an_answer_says_whether_and_when_it_is_asked_again() {
        let problem = async |status: u16, after: Option<&str>, body: &'static str| {
            let answer = http::Response::builder().status(status);
            let answer = after.into_iter().fold(answer, |answer, after| answer.header(RETRY_AFTER, after));
            Problem::of_answer(answer.body(body).unwrap().into()).await
        };
        let limited = r#"{"errors": [{"code": "TOOMANYREQUESTS"}]}"#;
        assert_eq!(problem(403, None, "go away").await, Problem::lasting("HTTP 403"));
        assert_eq!(problem(500, None, "").await, Problem::passing("HTTP 500"));
        assert_eq!(problem(403, None, limited).await, Problem::passing("HTTP 403: TOOMANYREQUESTS"));
        assert_eq!(problem(429, Some("7"), "").await.passes, Passes::After(Duration::from_secs(7)));
        assert_eq!(problem(429, Some("Fri, 31 Dec 1999 23:59:59 GMT"), "").await.passes, Passes::Soon);
    }
}
