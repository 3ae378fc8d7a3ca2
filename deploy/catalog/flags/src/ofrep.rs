//! The OpenFeature Remote Evaluation Protocol: `POST /ofrep/v1/evaluate/flags[/KEY]`.
//!
//! Source: `service/openapi.yaml` of open-feature/protocol. A flag that cannot be evaluated fails alone: in a bulk answer its
//! entry holds the error, and the others their values.

use std::io::Read;

use exchange::{Head, Response};
use serde_json::{Value, json};

use crate::{
    definition::{self, DefinitionError, Flags},
    evaluation::{Context, TargetingKeyMissing, evaluate},
    hash::hash,
};

const FLAGS_PATH: &str = "/ofrep/v1/evaluate/flags";

/// Why a request has no answer. The text is OFREP's `errorDetails`.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there is no flag with this key")]
    FlagNotFound,
    #[error("the body is no JSON: {0}")]
    Parse(String),
    #[error("{0}")]
    InvalidContext(&'static str),
    #[error(transparent)]
    TargetingKeyMissing(#[from] TargetingKeyMissing),
    #[error(transparent)]
    General(#[from] DefinitionError),
}

impl Failure {
    fn status(&self) -> u16 {
        match self {
            Self::FlagNotFound => 404,
            Self::Parse(_) | Self::InvalidContext(_) | Self::TargetingKeyMissing(_) => 400,
            Self::General(_) => 500,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::FlagNotFound => "FLAG_NOT_FOUND",
            Self::Parse(_) => "PARSE_ERROR",
            Self::InvalidContext(_) => "INVALID_CONTEXT",
            Self::TargetingKeyMissing(_) => "TARGETING_KEY_MISSING",
            Self::General(_) => "GENERAL",
        }
    }

    /// `evaluationFailure` with a key, `bulkEvaluationFailure` without.
    fn body(&self, key: Option<&str>) -> Value {
        let mut body = json!({"errorCode": self.code(), "errorDetails": self.to_string()});
        if let (Some(key), Some(body)) = (key, body.as_object_mut()) {
            body.insert("key".to_owned(), key.into());
        }
        body
    }
}

/// Answers any request.
pub fn answer(head: &Head, body: &mut dyn Read, env: &dyn Fn(&str) -> Option<String>) -> Response {
    let key = match head.path().strip_prefix(FLAGS_PATH) {
        Some("") => None,
        Some(rest) if rest.starts_with('/') => Some(percent_decoded(rest.trim_start_matches('/'))),
        _ => return Response::json(404, &json!({"errorDetails": format!("flags are evaluated at {FLAGS_PATH} only")})),
    };
    if head.method != "POST" {
        let body = json!({"errorDetails": "flags are evaluated with POST only"});
        return Response::json(405, &body).with("allow", "POST");
    }
    let answered = match &key {
        Some(key) => single(key, body, env),
        None => bulk(head, body, env),
    };
    answered.unwrap_or_else(|failure| Response::json(failure.status(), &failure.body(key.as_deref())))
}

fn single(key: &str, body: &mut dyn Read, env: &dyn Fn(&str) -> Option<String>) -> Result<Response, Failure> {
    let flags = read_flags(env)?;
    let context = read_context(body)?;
    let flag = flags.get(key).ok_or(Failure::FlagNotFound)?;
    Ok(Response::json(200, &json!(evaluate(key, flag, &context)?)))
}

fn bulk(head: &Head, body: &mut dyn Read, env: &dyn Fn(&str) -> Option<String>) -> Result<Response, Failure> {
    let flags = read_flags(env)?;
    let context = read_context(body)?;
    let entries: Vec<Value> = flags
        .iter()
        .map(|(key, flag)| match evaluate(key, flag, &context) {
            Ok(evaluation) => json!(evaluation),
            Err(missing) => Failure::from(missing).body(Some(key)),
        })
        .collect();
    let response = Response::json(200, &json!({"flags": entries}));
    // Of the answer, not of the flags alone: another context has another answer.
    let tag = format!("\"{:016x}\"", hash(response.body.bytes()));
    let known = head.elements("if-none-match").any(|known| known == "*" || known.trim_start_matches("W/") == tag);
    Ok(if known { Response::empty(304) } else { response }.with("etag", tag))
}

fn read_flags(env: &dyn Fn(&str) -> Option<String>) -> Result<Flags, Failure> {
    Ok(definition::read(env("FLAGS").as_deref())?)
}

/// The body's `context`; a body without one, or no body at all, is an empty context.
fn read_context(body: &mut dyn Read) -> Result<Context, Failure> {
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).map_err(|error| Failure::Parse(error.to_string()))?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Context::default());
    }
    let body: Value = serde_json::from_slice(&bytes).map_err(|error| Failure::Parse(error.to_string()))?;
    let Value::Object(mut body) = body else {
        return Err(Failure::InvalidContext("the body is no JSON object"));
    };
    let attributes = match body.remove("context") {
        None | Some(Value::Null) => return Ok(Context::default()),
        Some(Value::Object(attributes)) => attributes,
        Some(_) => return Err(Failure::InvalidContext("context is no JSON object")),
    };
    match attributes.get("targetingKey") {
        None | Some(Value::Null | Value::String(_)) => Ok(Context(attributes)),
        Some(_) => Err(Failure::InvalidContext("context.targetingKey is no text")),
    }
}

/// RFC 3986 §2.1. A `%` without two hexadecimal digits stands for itself: the key then is one that no flag has.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => (*high as char).to_digit(16).zip((*low as char).to_digit(16)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
