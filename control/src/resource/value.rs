//! Values that are elsewhere: what a component's references refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::{KeyRef, Spec, Variable};

/// The most bytes that all values of a component have together. One of a ConfigMap may be referred to often.
const MOST: usize = 1 << 20;

/// The ConfigMaps that a component may refer to, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Values {
    namespace: Option<String>,
    maps: BTreeMap<String, Map>,
}

/// What is known of a ConfigMap: its texts, that it is not there, or why it cannot be read.
pub type Map = Result<Option<BTreeMap<String, String>>, String>;

impl Values {
    /// Nothing may be referred to.
    pub fn none() -> Self {
        Self::default()
    }

    /// The ConfigMaps of a namespace, by their names.
    pub fn of_namespace(namespace: &str, maps: BTreeMap<String, Map>) -> Self {
        Self { namespace: Some(namespace.to_owned()), maps }
    }

    fn get(&self, reference: &KeyRef) -> Result<Option<&str>, String> {
        let KeyRef { name, key, optional } = reference;
        let Some(namespace) = &self.namespace else {
            return Err(format!(
                "the ConfigMap {name:?} is of no namespace: only a Component may refer to one, a ClusterComponent has values"
            ));
        };
        let map = match self.maps.get(name) {
            Some(Ok(map)) => map.as_ref(),
            Some(Err(error)) => {
                return Err(format!("the ConfigMap {name:?} of the namespace {namespace:?} cannot be read: {error}"));
            }
            None => None,
        };
        match map.and_then(|map| map.get(key)) {
            Some(value) => Ok(Some(value)),
            None if *optional => Ok(None),
            None => Err(match map {
                None => format!("there is no ConfigMap {name:?} in the namespace {namespace:?}"),
                Some(map) => {
                    format!("the ConfigMap {name:?} of the namespace {namespace:?} has no text {key:?}{}", has(map))
                }
            }),
        }
    }
}

fn has(map: &BTreeMap<String, String>) -> String {
    let keys: Vec<_> = map.keys().take(10).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { ": it has none".to_owned() } else { format!(": it has {}", keys.join(", ")) }
}

impl Spec {
    /// The ConfigMaps that it refers to, by their names.
    pub fn config_maps(&self) -> BTreeSet<String> {
        let references = self.env.iter().chain(&self.config).filter_map(|variable| variable.value_from.as_ref());
        references.map(|from| from.config_map_key_ref.name.clone()).collect()
    }

    /// The same with the values in place of the references.
    pub(super) fn with_values(&self, values: &Values) -> Result<Self, String> {
        let found = |variables: &[Variable]| {
            variables.iter().filter_map(|variable| found(variable, values).transpose()).collect::<Result<Vec<_>, _>>()
        };
        let with = Self { env: found(&self.env)?, config: found(&self.config)?, ..self.clone() };
        let bytes: usize = with.env.iter().chain(&with.config).filter_map(|of| Some(of.value.as_ref()?.len())).sum();
        if bytes > MOST {
            return Err(format!("its values are {bytes} bytes: at most {MOST} are allowed"));
        }
        Ok(with)
    }
}

/// A variable with its value; `None` if it may be absent, and is.
fn found(variable: &Variable, values: &Values) -> Result<Option<Variable>, String> {
    let wrong = |error: String| format!("the variable {:?}: {error}", variable.name);
    let value = match (&variable.value, &variable.value_from) {
        (Some(value), None) => Some(value.as_str()),
        (None, Some(from)) => values.get(&from.config_map_key_ref).map_err(wrong)?,
        _ => return Err(wrong("expected either value or valueFrom".into())),
    };
    let with = |value: &str| Variable { name: variable.name.clone(), value: Some(value.to_owned()), value_from: None };
    Ok(value.map(with))
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
        let maps = [("settings", Ok(Some(map))), ("closed", Err("forbidden".to_owned())), ("gone", Ok(None))];
        Values::of_namespace("shop", maps.map(|(name, map)| (name.to_owned(), map)).into())
    }

    fn from(name: &str, key: &str, optional: bool) -> serde_json::Value {
        json!({"name": "V", "valueFrom": {"configMapKeyRef": {"name": name, "key": key, "optional": optional}}})
    }

    #[test]
    fn a_reference_becomes_the_value_that_it_refers_to() {
        let spec =
            spec(json!([from("settings", "theme", false), from("gone", "theme", true), {"name": "W", "value": "w"}]));
        assert_eq!(spec.config_maps(), ["gone", "settings"].map(str::to_owned).into());
        let env = spec.accepted(&values()).unwrap().env;
        let env: Vec<_> = env.iter().map(|variable| (variable.name.as_str(), variable.value.as_str())).collect();
        assert_eq!(env, [("V", "dark"), ("W", "w")]);
    }

    #[test]
    fn a_reference_to_nothing_is_named() {
        let long = || from("settings", "long", false);
        let table = [
            (json!([from("settings", "shade", false)]), r#"has no text "shade": it has "long", "theme""#),
            (
                json!([from("gone", "theme", false)]),
                r#"the variable "V": there is no ConfigMap "gone" in the namespace "shop""#,
            ),
            (
                json!([from("closed", "theme", true)]),
                r#"the ConfigMap "closed" of the namespace "shop" cannot be read: forbidden"#,
            ),
            (json!([{"name": "V"}]), "expected either value or valueFrom"),
            (json!([long(), long(), from("settings", "theme", false)]), "are 1048580 bytes: at most 1048576"),
        ];
        for (env, expected) in table {
            let error = spec(env).accepted(&values()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = spec(json!([from("settings", "theme", false)])).accepted(&Values::none()).unwrap_err();
        assert!(error.contains("only a Component may refer to one"), "{error}");
    }
}
