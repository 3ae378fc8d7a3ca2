//! What went wrong with a question to a registry: in words, without what must not be told, and whether it may pass.

use std::{error::Error, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use oci_client::errors::{OciDistributionError, OciEnvelope, OciErrorCode};
use pillion_protocol::login::Login;

use super::{manifest::shown, message::Source};

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

impl Source {
    /// What an error of the library means, without what must not be told.
    pub(super) fn problem(&self, error: OciDistributionError, timeout: Duration) -> Problem {
        let registry = &self.registry;
        match error {
            OciDistributionError::RequestError(error) if error.is_timeout() => late(timeout),
            // An upload's refusals come as these.
            OciDistributionError::RequestError(error) if error.status().is_some() => {
                let code = error.status().map_or(0, |status| status.as_u16());
                match code {
                    401 => self.unauthorized(),
                    code => self.answered(code, "it refuses"),
                }
            }
            OciDistributionError::RequestError(error) => {
                // Where a redirect has led to may have a signature in it.
                let text = self.words(&chain(&error.without_url()));
                if text.contains("UnknownIssuer") {
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
            OciDistributionError::IoError(error) => Problem::passing(self.words(&chain(&error))),
            OciDistributionError::ServerError { code, message, .. } => self.answered(code, &message),
            OciDistributionError::RegistryError { envelope, .. } => {
                let words = envelope
                    .errors
                    .iter()
                    .take(3)
                    .map(|error| format!("{}: {}", self.words(&code(&error.code)), self.words(&error.message)));
                let text = words.collect::<Vec<_>>().join("; ");
                if is_limiting(&envelope) { Problem::passing(text) } else { Problem::lasting(text) }
            }
            OciDistributionError::UnauthorizedError { .. } => self.unauthorized(),
            OciDistributionError::AuthenticationFailure(reason) => {
                let text = format!("its token server gives no token: {}", self.words(&reason));
                // The library keeps no status: what does not sound like a refusal may pass.
                let refusals = ["unauthorized", "denied", "forbidden", "incorrect", "invalid", "authentication"];
                let reason = reason.to_ascii_lowercase();
                let refused = refusals.iter().any(|word| reason.contains(word));
                if refused { Problem::lasting(text) } else { Problem::passing(text) }
            }
            other => Problem::lasting(self.words(&chain(&other))),
        }
    }

    /// What a status means that is no success.
    fn answered(&self, code: u16, message: &str) -> Problem {
        let text = format!("HTTP {code}: {}", self.words(message));
        if code == 429 || code == 408 || code >= 500 { Problem::passing(text) } else { Problem::lasting(text) }
    }

    fn unauthorized(&self) -> Problem {
        Problem::lasting(match &self.login {
            Login::Anonymous => "HTTP 401: it wants to know who asks, and there are no credentials for it".to_owned(),
            Login::Basic { username, .. } => format!("HTTP 401: the credentials of {:?} are refused", shown(username)),
        })
    }

    /// A stranger's words, as far as they are fit to be told: whoever we talk to may say back what it was told.
    fn words(&self, text: &str) -> String {
        let words = match &self.login {
            Login::Basic { username, password } if !password.is_empty() => {
                let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
                shown(&text.replace(password.as_str(), "***").replace(&encoded, "***"))
            }
            _ => shown(text),
        };
        if words.trim().is_empty() { "it does not say why".into() } else { words }
    }
}

pub(super) fn late(within: Duration) -> Problem {
    Problem::passing(format!("no whole answer within {}", humantime::format_duration(within)))
}

/// Where a registry says that it is asked too much, and may say when to ask again.
pub(super) fn limiting_url(error: &OciDistributionError) -> Option<&str> {
    match error {
        OciDistributionError::ServerError { url, code: 429 | 503, .. } => Some(url),
        OciDistributionError::RegistryError { url, envelope } => is_limiting(envelope).then_some(url),
        _ => None,
    }
}

fn is_limiting(envelope: &OciEnvelope) -> bool {
    envelope.errors.iter().any(|error| matches!(error.code, OciErrorCode::Toomanyrequests))
}

/// An error's code, as the registry has written it.
fn code(code: &OciErrorCode) -> String {
    serde_json::to_value(code)
        .ok()
        .and_then(|code| Some(code.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("{code:?}"))
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
