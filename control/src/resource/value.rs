//! Values that are elsewhere: what a component's references refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{KeyRef, Reason, Rejection, Spec, Variable, pull_secret, spec::ValueFrom};

/// The most bytes that all values of a component have together. One of a ConfigMap may be referred to often.
const MOST: usize = 1 << 20;

/// What a component may refer to, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// What may have values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Everybody's to read.
    ConfigMap,
    /// Of which nothing is ever shown.
    Secret,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a component may refer to, as far as it is known.
#[derive(Clone, Default)]
pub struct Values {
    namespace: Option<String>,
    maps: BTreeMap<Source, Map>,
}

/// What is known of a ConfigMap or a Secret: its texts, that it is not there, or why it cannot be read.
pub type Map = Result<Option<BTreeMap<String, String>>, Unread>;

/// Why something cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Control may not.
    Forbidden {
        /// The namespace that control is in.
        control: String,
        /// In the API server's words.
        error: String,
    },
    /// It is a Secret of control's own namespace: what is there is never anybody else's.
    Own,
    /// This time.
    Failed(String),
}

impl Values {
    /// Nothing may be referred to.
    pub fn none() -> Self {
        Self::default()
    }

    /// The ConfigMaps and Secrets of a namespace.
    pub fn of_namespace(namespace: &str, maps: BTreeMap<Source, Map>) -> Self {
        Self { namespace: Some(namespace.to_owned()), maps }
    }

    /// One of them; `None` if it is not there.
    fn map(&self, source: &Source) -> Result<Option<&BTreeMap<String, String>>, Rejection> {
        let Source { kind, name } = source;
        let Some(namespace) = &self.namespace else {
            return Err(Rejection::invalid(format!(
                "the {kind} {name:?} is of no namespace: only a Component may refer to one, a ClusterComponent has values"
            )));
        };
        match self.maps.get(source) {
            Some(Ok(map)) => Ok(map.as_ref()),
            Some(Err(Unread::Forbidden { control, .. })) if *kind == Kind::Secret => {
                Err(Rejection::secret_forbidden(name, namespace, control))
            }
            Some(Err(Unread::Own)) => Err(Rejection::own_secret(name, namespace)),
            Some(Err(Unread::Forbidden { error, .. } | Unread::Failed(error))) => Err(Rejection::invalid(format!(
                "the {kind} {name:?} of the namespace {namespace:?} cannot be read: {error}"
            ))),
            None => Ok(None),
        }
    }

    /// A text of one of them; `None` if it is not there and need not be.
    fn get(&self, source: &Source, key: &str, optional: bool) -> Result<Option<&str>, Rejection> {
        let map = self.map(source)?;
        match map.and_then(|map| map.get(key)) {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(self.lacks(source, key, map)),
        }
    }

    fn lacks(&self, Source { kind, name }: &Source, key: &str, map: Option<&BTreeMap<String, String>>) -> Rejection {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        Rejection::invalid(match map {
            None => format!("there is no {kind} {name:?} in the namespace {namespace:?}"),
            // Of a Secret not even the keys are shown.
            Some(_) if *kind == Kind::Secret => {
                format!("the {kind} {name:?} of the namespace {namespace:?} has no text {key:?}")
            }
            Some(map) => format!("the {kind} {name:?} of the namespace {namespace:?} has no text {key:?}{}", has(map)),
        })
    }

    /// What a pull secret says of registries.
    pub(super) fn docker_config(&self, name: &str) -> Result<&str, Rejection> {
        let source = Source { kind: Kind::Secret, name: name.to_owned() };
        self.get(&source, pull_secret::KEY, false).map(Option::unwrap_or_default)
    }
}

fn has(map: &BTreeMap<String, String>) -> String {
    let keys: Vec<_> = map.keys().take(10).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { ": it has none".to_owned() } else { format!(": it has {}", keys.join(", ")) }
}

impl ValueFrom {
    fn source(&self) -> Option<(Source, &KeyRef)> {
        let source = |kind, reference: &KeyRef| Source { kind, name: reference.name.clone() };
        match (&self.config_map_key_ref, &self.secret_key_ref) {
            (Some(reference), None) => Some((source(Kind::ConfigMap, reference), reference)),
            (None, Some(reference)) => Some((source(Kind::Secret, reference), reference)),
            _ => None,
        }
    }
}

impl Spec {
    /// What it refers to.
    pub fn sources(&self) -> BTreeSet<Source> {
        let variables = self.env.iter().chain(&self.config);
        let values = variables.filter_map(|variable| Some(variable.value_from.as_ref()?.source()?.0));
        let pull = self.image_pull_secrets.iter();
        let pull = pull.map(|secret| Source { kind: Kind::Secret, name: secret.name.clone() });
        values.chain(pull).collect()
    }

    /// The same with the values in place of the references.
    pub(super) fn with_values(&self, values: &Values) -> Result<Self, Rejection> {
        let found = |variables: &[Variable]| {
            variables.iter().filter_map(|variable| found(variable, values).transpose()).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { env: found(&self.env)?, config: found(&self.config)?, ..self.clone() })
    }

    /// Whether all values together are few enough bytes. No value is copied for that: there may be a thousand of a megabyte each.
    pub(super) fn check_size_of_values(&self, values: &Values) -> Result<(), Rejection> {
        let mut bytes = 0_usize;
        for variable in self.env.iter().chain(&self.config) {
            bytes = bytes.saturating_add(value(variable, values)?.map_or(0, str::len));
        }
        if bytes > MOST {
            let message = format!("its values are {bytes} bytes together: at most {MOST} are allowed");
            return Err(Rejection::new(Reason::TooLarge, &message));
        }
        Ok(())
    }
}

/// A variable with its value; `None` if it may be absent, and is.
fn found(variable: &Variable, values: &Values) -> Result<Option<Variable>, Rejection> {
    let with = |value: &str| Variable { name: variable.name.clone(), value: Some(value.to_owned()), value_from: None };
    Ok(value(variable, values)?.map(with))
}

/// A variable's value; `None` if it may be absent, and is.
fn value<'a>(variable: &'a Variable, values: &'a Values) -> Result<Option<&'a str>, Rejection> {
    let of_variable = |rejection: Rejection| rejection.of(format!("the variable {:?}", variable.name));
    let expected = || Rejection::invalid("expected either value or valueFrom, and of a valueFrom one reference".into());
    match (&variable.value, &variable.value_from) {
        (Some(value), None) => Ok(Some(value.as_str())),
        (None, Some(from)) => {
            let (source, KeyRef { key, optional, .. }) = from.source().ok_or_else(|| of_variable(expected()))?;
            values.get(&source, key, *optional).map_err(of_variable)
        }
        _ => Err(of_variable(expected())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(env: serde_json::Value) -> Spec {
        serde_json::from_value(json!({"image": "r.example/a:1", "env": env})).unwrap()
    }

    fn values() -> Values {
        let map = BTreeMap::from([("theme".to_owned(), "dark".to_owned()), ("long".to_owned(), "x".repeat(MOST / 2))]);
        let forbidden = || Err(Unread::Forbidden { control: "pillion-system".into(), error: "no".into() });
        let maps = [
            (Kind::ConfigMap, "settings", Ok(Some(map.clone()))),
            (Kind::ConfigMap, "closed", Err(Unread::Failed("no answer".to_owned()))),
            (Kind::ConfigMap, "gone", Ok(None)),
            (Kind::Secret, "settings", Ok(Some([("theme".to_owned(), "secret".to_owned())].into()))),
            (Kind::Secret, "closed", forbidden()),
        ];
        let maps = maps.map(|(kind, name, map)| (Source { kind, name: name.to_owned() }, map));
        Values::of_namespace("shop", maps.into())
    }

    fn from(kind: &str, name: &str, key: &str, optional: bool) -> serde_json::Value {
        json!({"name": "V", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}})
    }

    const MAP: &str = "configMapKeyRef";
    const SECRET: &str = "secretKeyRef";

    #[test]
    fn a_reference_becomes_the_value_that_it_refers_to() {
        let table = [
            (json!([from(MAP, "settings", "theme", false)]), vec!["dark"], false),
            (json!([from(SECRET, "settings", "theme", false)]), vec!["secret"], true),
            (json!([from(MAP, "gone", "theme", true), {"name": "W", "value": "w"}]), vec!["w"], false),
            (json!([from(SECRET, "none", "theme", true)]), vec![], true),
        ];
        for (env, expected, confidential) in table {
            let wanted = spec(env).accepted(&values()).unwrap();
            let env: Vec<_> = wanted.spec.env.iter().map(|variable| variable.value.as_str()).collect();
            assert_eq!((env, wanted.confidential), (expected, confidential));
        }
    }

    #[test]
    fn a_reference_to_nothing_is_named() {
        let table = [
            (json!([from(MAP, "settings", "shade", false)]), r#"has no text "shade": it has "long", "theme""#),
            (
                json!([from(MAP, "gone", "theme", false)]),
                r#"the variable "V": there is no ConfigMap "gone" in the namespace "shop""#,
            ),
            (
                json!([from(MAP, "closed", "theme", true)]),
                r#"the ConfigMap "closed" of the namespace "shop" cannot be read: no answer"#,
            ),
            (json!([from(SECRET, "none", "theme", false)]), r#"there is no Secret "none" in the namespace "shop""#),
            (json!([{"name": "V"}]), "expected either value or valueFrom"),
            (json!([{"name": "V", "valueFrom": {}}]), "expected either value or valueFrom"),
        ];
        for (env, expected) in table {
            let error = spec(env).accepted(&values()).unwrap_err();
            assert!(error.message.contains(expected) && error.reason == Reason::Invalid, "{error:?}");
        }
        let error = spec(json!([from(MAP, "settings", "theme", false)])).accepted(&Values::none()).unwrap_err();
        assert!(error.message.contains("only a Component may refer to one"), "{error:?}");
    }

    #[test]
    fn values_are_bounded_as_they_are_and_as_they_are_told() {
        let long = || from(MAP, "settings", "long", false);
        let config = |c: char, length: usize| {
            let text: String = std::iter::repeat_n(c, length).collect();
            json!([{"name": "V", "value": text}])
        };
        let table = [
            (
                json!([long(), long(), from(MAP, "settings", "theme", false)]),
                "are 1048580 bytes together: at most 1048576 are",
            ),
            (config('\u{1}', 900_000), "bytes as JSON, where a control character has six: at most 3145728 are allowed"),
        ];
        for (env, expected) in table {
            let error = spec(env).accepted(&values()).unwrap_err();
            assert!(error.message.contains(expected) && error.reason == Reason::TooLarge, "{error:?}");
        }
        for env in [json!([long(), long()]), config('\u{1}', 500_000), config('\'', 1 << 20)] {
            assert!(spec(env).accepted(&values()).is_ok());
        }
    }

    #[test]
    fn a_secret_that_control_may_not_read_is_said_with_what_to_do() {
        let error = spec(json!([from(SECRET, "closed", "theme", true)])).accepted(&values()).unwrap_err();
        assert_eq!(error.reason, Reason::SecretForbidden);
        for text in [r#"the Secret "closed""#, "create rolebinding", "-n shop", "pillion-system:pillion-control"] {
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
