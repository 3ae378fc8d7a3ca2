//! The grammar of `FLAGS`: a JSON object from flag keys to flags. README.md describes it for people.
//!
//! Everything is checked before anything is evaluated: a misspelt rule must show on the first request, not on the first
//! user whom it would have matched.

use std::{collections::BTreeMap, mem::discriminant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::condition::Condition;

/// Every flag, by its key.
pub type Flags = BTreeMap<String, Flag>;

/// One flag.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flag {
    /// Whether the rules apply.
    #[serde(default)]
    pub state: State,
    /// The values it may take, all of one JSON type, by name.
    pub variants: BTreeMap<String, Value>,
    /// The variant where no rule matches.
    pub default_variant: String,
    /// The first whose conditions hold decides.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Handed on to whoever asks for the flag.
    #[serde(default)]
    pub metadata: BTreeMap<String, Metadatum>,
}

/// Whether a flag's rules apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// They do.
    #[default]
    Enabled,
    /// They do not: the default variant, for everyone.
    Disabled,
}

/// Whom a rule is for and what they get: `variant` or `split`, one of both.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Conditions by attribute, all of which must hold; none is for everyone.
    #[serde(rename = "if", default)]
    pub conditions: BTreeMap<String, Condition>,
    /// One variant for all whom the rule is for.
    pub variant: Option<String>,
    /// Variants by share. Who is in no share gets the default variant.
    pub split: Option<Vec<Share>>,
}

/// A part of those whom a rule is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// What they get.
    pub variant: String,
    /// How many they are.
    pub percent: Percent,
}

/// 0–100, counted in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Percent {
    /// Ten thousandths of the whole.
    pub ten_thousandths: u64,
}

impl TryFrom<f64> for Percent {
    type Error = String;

    fn try_from(percent: f64) -> Result<Self, String> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("{percent} is no percentage: allowed is 0 to 100"));
        }
        // In range by the check above.
        Ok(Self { ten_thousandths: (percent * 100.0).round() as u64 })
    }
}

/// What OFREP allows in a flag's metadata.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "metadata holds texts, numbers, true and false only")]
pub enum Metadatum {
    /// `true` or `false`
    Bool(bool),
    /// Any number.
    Number(serde_json::Number),
    /// Any text.
    Text(String),
}

/// What is wrong with `FLAGS`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// It is not set, or empty.
    #[error("FLAGS is not set: it holds the flags as a JSON object, see the README")]
    Missing,
    /// It is no JSON object.
    #[error("FLAGS is no JSON object from keys to flags: {0}")]
    Syntax(String),
    /// One of its flags is wrong.
    #[error("FLAGS: flag {key:?}: {problem}")]
    Flag {
        /// The flag's key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads and checks `FLAGS`.
pub fn read(text: Option<&str>) -> Result<Flags, DefinitionError> {
    let text = text.filter(|text| !text.trim().is_empty()).ok_or(DefinitionError::Missing)?;
    let flags: BTreeMap<String, Value> =
        serde_json::from_str(text).map_err(|error| DefinitionError::Syntax(error.to_string()))?;
    flags
        .into_iter()
        .map(|(key, value)| {
            match serde_json::from_value(value).map_err(|error| error.to_string()).and_then(Flag::checked) {
                Ok(flag) => Ok((key, flag)),
                Err(problem) => Err(DefinitionError::Flag { key, problem }),
            }
        })
        .collect()
}

impl Flag {
    fn checked(self) -> Result<Self, String> {
        self.named(&self.default_variant).map_err(|problem| format!("defaultVariant: {problem}"))?;
        if self.variants.values().any(Value::is_null) {
            return Err("variants: null is no value".to_owned());
        }
        if !self
            .variants
            .values()
            .zip(self.variants.values().skip(1))
            .all(|(one, next)| discriminant(one) == discriminant(next))
        {
            return Err("variants: all values of a flag are of one type".to_owned());
        }
        for (index, rule) in self.rules.iter().enumerate() {
            self.check(rule).map_err(|problem| format!("rule {}: {problem}", index + 1))?;
        }
        Ok(self)
    }

    fn check(&self, rule: &Rule) -> Result<(), String> {
        if let Some((attribute, _)) = rule.conditions.iter().find(|(_, condition)| condition.is_empty()) {
            return Err(format!("if: nothing is asked of {attribute:?}"));
        }
        match (&rule.variant, &rule.split) {
            (Some(variant), None) => self.named(variant),
            (None, Some(shares)) => {
                shares.iter().try_for_each(|share| self.named(&share.variant))?;
                let sum: u64 = shares.iter().map(|share| share.percent.ten_thousandths).sum();
                if sum > 10_000 {
                    return Err(format!("split: the shares are {}.{:02} percent together", sum / 100, sum % 100));
                }
                Ok(())
            }
            _ => Err("expected either variant or split".to_owned()),
        }
    }

    fn named(&self, variant: &str) -> Result<(), String> {
        if self.variants.contains_key(variant) {
            return Ok(());
        }
        let known: Vec<&str> = self.variants.keys().map(String::as_str).collect();
        Err(format!("no variant {variant:?}; there are: {}", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(flag: Value) -> String {
        read(Some(&json!({"f": flag}).to_string())).unwrap_err().to_string()
    }

    fn with_rule(rule: Value) -> Value {
        json!({"variants": {"on": true, "off": false}, "defaultVariant": "off", "rules": [rule]})
    }

    #[test]
    fn the_example_is_read() {
        let component: Value = serde_saphyr::from_str(include_str!("../component.yaml")).unwrap();
        let flags = read(component["spec"]["env"][0]["value"].as_str()).unwrap();
        assert_eq!(flags.keys().collect::<Vec<_>>(), ["new-checkout", "old-search", "page-size", "welcome-banner"]);
        assert_eq!(flags["old-search"].state, State::Disabled);
    }

    #[test]
    fn the_flag_of_the_readme_is_read() {
        let readme = include_str!("../README.md");
        let block = readme.split("```").find(|block| block.contains("\"variants\"")).unwrap();
        assert_eq!(read(block.strip_prefix("json")).unwrap()["new-checkout"].rules.len(), 2);
    }

    #[test]
    fn an_empty_set_of_flags_is_one() {
        assert!(read(Some("{}")).unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_variable_and_what_is_wrong() {
        assert_eq!(read(None).unwrap_err(), DefinitionError::Missing);
        assert_eq!(read(Some(" ")).unwrap_err(), DefinitionError::Missing);
        for text in ["{", "[]", "nope"] {
            assert!(read(Some(text)).unwrap_err().to_string().starts_with("FLAGS is no JSON object"), "{text}");
        }
    }

    #[test]
    fn errors_name_the_flag_and_the_rule() {
        let table = [
            (
                json!({"variants": {"on": true}, "defaultVariant": "off"}),
                "defaultVariant: no variant \"off\"; there are: on",
            ),
            (json!({"variants": {"on": true}}), "missing field `defaultVariant`"),
            (json!({"variants": {"on": true}, "defaultVariant": "on", "state": "ON"}), "unknown variant `ON`"),
            (json!({"variants": {"on": true}, "defaultVariant": "on", "rule": []}), "unknown field `rule`"),
            (
                json!({"variants": {"on": true, "off": 0}, "defaultVariant": "on"}),
                "all values of a flag are of one type",
            ),
            (json!({"variants": {"on": null}, "defaultVariant": "on"}), "null is no value"),
            (json!({"variants": {"on": 1}, "defaultVariant": "on", "metadata": {"a": []}}), "metadata holds texts"),
            (with_rule(json!({"if": {"plan": {"is": "gold"}}, "variant": "on"})), "unknown field `is`"),
            (with_rule(json!({"if": {"plan": {}}, "variant": "on"})), "rule 1: if: nothing is asked of \"plan\""),
            (with_rule(json!({"variant": "maybe"})), "rule 1: no variant \"maybe\"; there are: off, on"),
            (with_rule(json!({"if": {}})), "rule 1: expected either variant or split"),
            (with_rule(json!({"variant": "on", "split": []})), "rule 1: expected either variant or split"),
            (with_rule(json!({"split": [{"variant": "on", "percent": 101}]})), "101 is no percentage"),
            (
                with_rule(json!({"split": [{"variant": "on", "percent": 60}, {"variant": "off", "percent": 40.05}]})),
                "rule 1: split: the shares are 100.05 percent together",
            ),
        ];
        for (flag, expected) in table {
            let problem = problem(flag);
            assert!(problem.starts_with("FLAGS: flag \"f\": ") && problem.contains(expected), "{problem}");
        }
    }
}
