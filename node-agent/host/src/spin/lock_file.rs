//! Reads Spin's locked application.
//!
//! The shape: `crates/locked-app/src/locked.rs` of spinframework/spin. As there, fields that are not known are let through.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    component::LockedComponent,
    locked::{App, AppError, Component, Handler, Route, Variable},
    message, shown,
    trigger::LockedTrigger,
};

/// The most bytes of a locked application.
const BYTES: usize = 1024 * 1024;
/// The most components; Spin's artifact has at most 500 layers.
const COMPONENTS: usize = 500;
/// The most triggers.
const ROUTES: usize = 1_000;

#[derive(Deserialize)]
struct Version {
    spin_lock_version: Value,
}

#[derive(Deserialize)]
struct LockFile {
    #[serde(default)]
    must_understand: Vec<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default)]
    host_requirements: Map<String, Value>,
    #[serde(default)]
    variables: BTreeMap<String, LockedVariable>,
    triggers: Vec<LockedTrigger>,
    components: Vec<LockedComponent>,
}

#[derive(Deserialize)]
struct LockedVariable {
    /// Not a `String`: an error of serde would repeat a wrong value, which may be a secret.
    #[serde(default)]
    default: Value,
    #[serde(default)]
    secret: bool,
}

pub(super) fn read(json: &[u8]) -> Result<App, AppError> {
    within("bytes", json.len(), BYTES)?;
    let wrong = |error: serde_json::Error| AppError::Json(message(&error));
    // First, since another version may have another shape.
    let version = serde_json::from_slice::<Version>(json).map_err(wrong)?.spin_lock_version;
    if !matches!(version.as_u64(), Some(0 | 1)) {
        return Err(AppError::Version(shown(&version.to_string())));
    }
    let lock: LockFile = serde_json::from_slice(json).map_err(wrong)?;
    within("components", lock.components.len(), COMPONENTS)?;
    within("triggers", lock.triggers.len(), ROUTES)?;
    let known = ["host_requirements", "component_host_requirements"];
    if let Some(unknown) = lock.must_understand.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(AppError::MustUnderstand(shown(unknown)));
    }
    optional("the application", &lock.host_requirements)?;
    if lock.triggers.is_empty() {
        return Err(AppError::NoTrigger);
    }
    let routes = lock.triggers.into_iter().map(LockedTrigger::checked).collect::<Result<Vec<_>, _>>()?;
    let components = components(lock.components, &routes)?;
    let text = |key| {
        let text = lock.metadata.get(key).and_then(Value::as_str);
        text.map(|text| plain(text).map(ToOwned::to_owned).ok_or_else(|| AppError::Name { key, text: shown(text) }))
            .transpose()
    };
    Ok(App {
        name: text("name")?.unwrap_or_default(),
        version: text("version")?,
        variables: lock.variables.into_iter().map(variable).collect::<Result<_, _>>()?,
        routes,
        components,
    })
}

/// A text that is fit for logs and terminals.
fn plain(text: &str) -> Option<&str> {
    const MOST: usize = 256;
    (text.len() <= MOST && !text.chars().any(char::is_control)).then_some(text)
}

/// Whether a text can be a component's id; it stands in each of its log lines.
fn is_id(text: &str) -> bool {
    const MOST: usize = 64;
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=MOST).contains(&text.len()) && text.bytes().all(word)
}

fn within(what: &'static str, count: usize, most: usize) -> Result<(), AppError> {
    if count > most { Err(AppError::TooMany { what, count, most }) } else { Ok(()) }
}

/// Refuses what an application, or a component, cannot do without; nothing of it is known here.
pub(super) fn optional(place: &str, requirements: &Map<String, Value>) -> Result<(), AppError> {
    match requirements.iter().find(|(_, value)| value.as_str() != Some("optional")) {
        Some((feature, _)) => Err(AppError::Requirement { place: place.to_owned(), feature: shown(feature) }),
        None => Ok(()),
    }
}

fn variable((name, variable): (String, LockedVariable)) -> Result<(String, Variable), AppError> {
    let default = match variable.default {
        Value::Null => None,
        Value::String(text) => Some(text),
        _ => return Err(AppError::Json(format!("the default of variable {:?} is no text", shown(&name)))),
    };
    Ok((name, Variable { default, secret: variable.secret }))
}

/// The components that `routes` name; what is wrong with others does not matter.
fn components(locked: Vec<LockedComponent>, routes: &[Route]) -> Result<BTreeMap<String, Component>, AppError> {
    let named: BTreeSet<&str> = routes
        .iter()
        .filter_map(|route| match &route.handler {
            Handler::Component(id) => Some(id.as_str()),
            Handler::Static(_) => None,
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut components = BTreeMap::new();
    for component in locked {
        if !seen.insert(component.id.clone()) {
            return Err(AppError::Twice(shown(&component.id)));
        }
        if named.contains(component.id.as_str()) {
            if !is_id(&component.id) {
                return Err(AppError::Id(shown(&component.id)));
            }
            let id = component.id.clone();
            components.insert(id, component.checked()?);
        }
    }
    match named.into_iter().find(|id| !components.contains_key(*id)) {
        Some(id) => {
            Err(AppError::Component { component: shown(id), why: "is named by a trigger but is not there".into() })
        }
        None => Ok(components),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// The layer of the one component of [`pushed`] that is in a layer.
    pub(in super::super) const TOYS: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

    /// As `spin registry push` writes it.
    pub(in super::super) fn pushed() -> Value {
        json!({
            "spin_lock_version": 1,
            "must_understand": ["host_requirements"],
            "metadata": {
                "authors": ["A. Author <a@example.com>"], "description": "", "name": "toys", "origin": "vnd.fermyon.origin-oci",
                "triggers": {"http": {}}, "version": "1.2.0"
            },
            "host_requirements": {"local_service_chaining": "optional"},
            "variables": {
                "api_host": {"default": "api.example.com"},
                "password": {"description": "of the API", "default": "hunter2", "secret": true},
                "token": {"secret": true}
            },
            "triggers": [
                {"id": "trigger-toys-0", "trigger_type": "http", "trigger_config": {"component": "toys", "executor": null, "route": "/..."}},
                {"id": "trigger-toys-1", "trigger_type": "http",
                 "trigger_config": {"component": "toys", "executor": {"type": "http"}, "route": "/hello/:name"}},
                {"id": "trigger-tiny", "trigger_type": "http", "trigger_config": {"component": "tiny", "route": "/exact"}},
                {"id": "trigger-inner", "trigger_type": "http", "trigger_config": {"component": "tiny", "route": {"private": true}}},
                {"id": "trigger-robots", "trigger_type": "http", "trigger_config": {
                    "route": "/robots.txt",
                    "static_response": {"headers": {"content-type": "text/plain"}, "body": "User-agent: *\nDisallow:\n"}
                }}
            ],
            "components": [
                {
                    "id": "toys",
                    "metadata": {
                        "allowed_outbound_hosts": ["https://{{ api_host }}", "http://cache.example:8080/"],
                        "build": {"command": "cargo build --target wasm32-wasip2 --release"}, "key_value_stores": []
                    },
                    "source": {"content_type": "application/wasm", "digest": TOYS},
                    "env": {"LOG": "info", "COLOR": "{{ not a template }}"},
                    "config": {"auth": "Basic {{ password }}", "greeting": "hello"}
                },
                {"id": "tiny", "source": {"content_type": "application/wasm", "digest": TOYS}},
                {"id": "unused", "source": {"content_type": "application/wasm", "digest": "sha256:0"}, "files": [{"path": "/"}]}
            ]
        })
    }

    /// Reads [`pushed`] with other values at some JSON pointers.
    pub(in super::super) fn changed(changes: &[(&str, Value)]) -> Result<App, AppError> {
        let mut lock = pushed();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match lock.pointer_mut(parent).unwrap() {
                Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
                object => object[key] = value.clone(),
            }
        }
        App::read(lock.to_string().as_bytes())
    }

    /// Asserts that each change is refused by an error that has the text in it.
    pub(in super::super) fn refused(table: &[(&str, Value, &str)]) {
        for (pointer, value, expected) in table {
            let error = changed(&[(pointer, value.clone())]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.len() < 500, "{pointer} {value}: {error}");
        }
    }

    #[test]
    fn an_application_as_spin_pushes_it_is_read() {
        let app = changed(&[]).unwrap();
        assert_eq!((app.name.as_str(), app.version.as_deref()), ("toys", Some("1.2.0")));
        let patterns: Vec<_> = app.routes.iter().map(|route| route.pattern.as_ref().map(|p| p.as_str())).collect();
        assert_eq!(patterns, [Some("/..."), Some("/hello/:name"), Some("/exact"), None, Some("/robots.txt")]);
        assert_eq!(app.components.keys().collect::<Vec<_>>(), ["tiny", "toys"]);
        assert_eq!(app.variables["token"], Variable { default: None, secret: true });
    }

    #[test]
    fn little_is_needed() {
        let lock = json!({
            "spin_lock_version": 0,
            "triggers": [{"trigger_type": "http", "trigger_config": {"route": "", "static_response": {}}}],
            "components": []
        });
        let app = App::read(lock.to_string().as_bytes()).unwrap();
        assert_eq!((app.name.as_str(), app.version, app.routes.len()), ("", None, 1));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let required = json!({"local_service_chaining": "required"});
        refused(&[
            ("/spin_lock_version", json!(2), "spin_lock_version 2 is not known: allowed are 0 and 1"),
            ("/spin_lock_version", json!("1"), "spin_lock_version \"1\" is not known"),
            ("/must_understand", json!(["middleware_of_tomorrow"]), "must_understand names \"middleware_of_tomorrow\""),
            (
                "/host_requirements",
                required,
                "requires \"local_service_chaining\" of its host (calls to COMPONENT.spin.internal)",
            ),
            (
                "/host_requirements",
                json!({"x": true}),
                "the application requires \"x\" of its host, which is not known",
            ),
            ("/variables/password/default", json!(7_653), "the default of variable \"password\" is no text"),
            ("/triggers", json!([]), "at least one http trigger is needed"),
            ("/triggers", json!(7), "invalid type: integer `7`"),
            ("/metadata/name", json!("\u{1b}[2J"), "is not fit for logs"),
            ("/metadata/version", json!("1".repeat(257)), "is not fit for logs"),
            ("/components/1/id", json!("toys"), "component \"toys\" is there twice"),
            (
                "/components/1/source",
                json!({"inline": "AGFzbQ0AAQ"}),
                "component \"tiny\" is in the application itself",
            ),
            ("/components/1/id", json!("other"), "component \"tiny\" is named by a trigger but is not there"),
            ("/components", json!(vec![json!({"id": "a", "source": {}}); 501]), "501 components: allowed are 500"),
        ]);
        let error = changed(&[("/variables/password/default", json!(7_653))]).unwrap_err().to_string();
        assert!(!error.contains("7653"), "{error}");
    }

    #[test]
    fn too_much_is_refused_by_its_number() {
        let trigger = json!({"trigger_type": "http", "trigger_config": {"route": "/a", "static_response": {}}});
        refused(&[("/triggers", json!(vec![trigger; 1_001]), "1001 triggers: allowed are 1000")]);
        let error = App::read(&vec![b' '; BYTES + 1]).unwrap_err().to_string();
        assert!(error.contains("1048577 bytes: allowed are 1048576"), "{error}");
    }

    #[test]
    fn what_is_no_application_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "null", "[]", "{}", "{\"spin_lock_version\": 0}", "{\"spin_lock_version\"", "\u{0}", &deep] {
            let error = App::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("this is no locked Spin application: "), "{text:?}: {error}");
        }
    }
}
