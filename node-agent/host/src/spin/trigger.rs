//! An HTTP trigger of a locked application.
//!
//! The shape: `crates/http/src/config.rs` and `crates/routes/src/lib.rs` of spinframework/spin. As there, a field that is not
//! known is refused, and a route must be said.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    locked::{AppError, Handler, Route, StaticResponse},
    message, shown,
};

/// Headers that the host sets: they are about the connection or the body's length.
const FRAMING: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

#[derive(Deserialize)]
pub(super) struct LockedTrigger {
    #[serde(default)]
    id: String,
    trigger_type: String,
    trigger_config: Value,
    #[serde(default)]
    trigger_dependencies: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTrigger {
    component: Option<String>,
    static_response: Option<LockedResponse>,
    route: Value,
    executor: Option<Executor>,
}

#[derive(Deserialize)]
struct Executor {
    r#type: String,
}

#[derive(Deserialize)]
struct LockedResponse {
    status_code: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
}

impl LockedTrigger {
    /// The route, if it can be served.
    pub(super) fn checked(self) -> Result<Route, AppError> {
        let id = shown(&self.id);
        let wrong = |why: String| AppError::Trigger { trigger: id.clone(), why };
        if self.trigger_type != "http" {
            return Err(AppError::TriggerType { trigger: id, kind: shown(&self.trigger_type) });
        }
        if let Some(name) = self.trigger_dependencies.keys().next() {
            return Err(wrong(format!("depends on {:?}: middleware is not served", shown(name))));
        }
        let config: HttpTrigger = serde_json::from_value(self.trigger_config)
            .map_err(|error| wrong(format!("is wrong: {}", message(&error))))?;
        if let Some(Executor { r#type }) = config.executor
            && !matches!(r#type.as_str(), "http" | "spin")
        {
            return Err(wrong(format!("has the executor {:?}: allowed are \"http\" and \"spin\"", shown(&r#type))));
        }
        let pattern = match config.route {
            Value::String(text) => {
                Some(text.try_into().map_err(|source| AppError::Pattern { trigger: id.clone(), source })?)
            }
            Value::Object(object) if object.len() == 1 && object.get("private") == Some(&Value::Bool(true)) => None,
            other => {
                let other = shown(&other.to_string());
                return Err(wrong(format!("has the route {other}: allowed are a text and {{\"private\": true}}")));
            }
        };
        let handler = match (config.component, config.static_response) {
            (Some(component), None) => Handler::Component(component),
            (None, Some(response)) => Handler::Static(response.checked().map_err(wrong)?),
            (None, None) => return Err(wrong("has neither component nor static_response: one is needed".into())),
            (Some(_), Some(_)) => return Err(wrong("has both component and static_response: one is allowed".into())),
        };
        Ok(Route { pattern, handler })
    }
}

impl LockedResponse {
    fn checked(self) -> Result<StaticResponse, String> {
        let status = self.status_code.unwrap_or(200);
        if !(200..=599).contains(&status) {
            return Err(format!("has a static_response of status {status}: allowed are 200 to 599"));
        }
        for (name, value) in &self.headers {
            let named = HeaderName::from_bytes(name.as_bytes());
            if named.is_err() || HeaderValue::from_str(value).is_err() {
                return Err(format!("has a static_response whose header {:?} is no valid header", shown(name)));
            }
            if named.is_ok_and(|name| FRAMING.contains(&name.as_str())) {
                return Err(format!("has a static_response with the header {name:?}: the host sets it"));
            }
        }
        Ok(StaticResponse { status, headers: self.headers.into_iter().collect(), body: self.body })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::lock_file::tests::{changed, refused},
        *,
    };

    #[test]
    fn a_static_response_has_spins_defaults() {
        let app = changed(&[("/triggers/4/trigger_config/static_response", json!({}))]).unwrap();
        let expected = StaticResponse { status: 200, headers: vec![], body: None };
        assert_eq!(app.routes[4].handler, Handler::Static(expected));
    }

    #[test]
    fn the_older_name_of_the_executor_is_known() {
        changed(&[("/triggers/0/trigger_config/executor", json!({"type": "spin"}))]).unwrap();
    }

    #[test]
    fn a_trigger_that_cannot_be_served_is_refused_by_name() {
        let response = |of: Value| json!({"route": "/a", "static_response": of});
        refused(&[
            (
                "/triggers/0/trigger_type",
                json!("redis"),
                "trigger \"trigger-toys-0\" is of type \"redis\": only http triggers",
            ),
            (
                "/triggers/0/trigger_dependencies",
                json!({"middleware": []}),
                "depends on \"middleware\": middleware is not served",
            ),
            ("/triggers/0/trigger_config", json!(7), "trigger \"trigger-toys-0\" is wrong: invalid type: integer `7`"),
            (
                "/triggers/0/trigger_config/base",
                json!("/v1"),
                "unknown field `base`, expected one of `component`, `static_response`, `route`, `executor`",
            ),
            ("/triggers/0/trigger_config", json!({"component": "toys"}), "missing field `route`"),
            ("/triggers/0/trigger_config", json!({"route": "/a"}), "has neither component nor static_response"),
            ("/triggers/4/trigger_config/component", json!("toys"), "has both component and static_response"),
            (
                "/triggers/0/trigger_config/executor",
                json!({"type": "wagi", "argv": ""}),
                "has the executor \"wagi\": allowed are",
            ),
            (
                "/triggers/0/trigger_config/route",
                json!({"private": false}),
                "has the route {\"private\":false}: allowed are",
            ),
            ("/triggers/0/trigger_config/route", json!(false), "has the route false: allowed are"),
            ("/triggers/0/trigger_config/route", json!("/:"), "trigger \"trigger-toys-0\": \"/:\" is no route"),
            (
                "/triggers/0/trigger_config",
                response(json!({"status_code": 101})),
                "of status 101: allowed are 200 to 599",
            ),
            (
                "/triggers/0/trigger_config",
                response(json!({"headers": {"a b": ""}})),
                "header \"a b\" is no valid header",
            ),
            (
                "/triggers/0/trigger_config",
                response(json!({"headers": {"a": "\n"}})),
                "header \"a\" is no valid header",
            ),
            (
                "/triggers/0/trigger_config",
                response(json!({"headers": {"Content-Length": "9"}})),
                "header \"Content-Length\": the host",
            ),
        ]);
    }
}
