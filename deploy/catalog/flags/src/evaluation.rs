//! From a flag and a context to a variant, and why it is that one.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    definition::{Flag, Metadatum, Rule, Share, State},
    hash::bucket,
};

/// Why a variant was chosen, in OpenFeature's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The flag has no rules.
    Static,
    /// A rule matched.
    TargetingMatch,
    /// A rule matched, and the targeting key decided.
    Split,
    /// No rule matched.
    Default,
    /// The flag is disabled.
    Disabled,
}

/// What a flag is for one context; serialized, OFREP's `evaluationSuccess`.
#[derive(Debug, Serialize)]
pub struct Evaluation<'a> {
    /// The flag's key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a Value,
    /// The value's name.
    pub variant: &'a str,
    /// Why it is this one.
    pub reason: Reason,
    /// What the flag's definition hands on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: &'a BTreeMap<String, Metadatum>,
}

/// The context has no targeting key, and a split needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the flag is split by targetingKey, which the context does not have")]
pub struct TargetingKeyMissing;

/// Who or what a flag is evaluated for: attributes, of which `targetingKey` names the subject.
#[derive(Debug, Default)]
pub struct Context(pub Map<String, Value>);

impl Context {
    fn targeting_key(&self) -> Result<&str, TargetingKeyMissing> {
        self.0.get("targetingKey").and_then(Value::as_str).filter(|key| !key.is_empty()).ok_or(TargetingKeyMissing)
    }
}

/// Evaluates one flag.
pub fn evaluate<'a>(key: &'a str, flag: &'a Flag, context: &Context) -> Result<Evaluation<'a>, TargetingKeyMissing> {
    let (reason, variant) = match flag.rules.iter().find(|rule| applies(rule, context)) {
        _ if flag.state == State::Disabled => (Reason::Disabled, None),
        _ if flag.rules.is_empty() => (Reason::Static, None),
        None => (Reason::Default, None),
        Some(Rule { split: Some(shares), .. }) => (Reason::Split, share(shares, bucket(key, context.targeting_key()?))),
        Some(rule) => (Reason::TargetingMatch, rule.variant.as_deref()),
    };
    let variant = variant.unwrap_or(&flag.default_variant);
    // Each name was checked when the flags were read.
    let value = flag.variants.get(variant).unwrap_or(&Value::Null);
    Ok(Evaluation { key, value, variant, reason, metadata: &flag.metadata })
}

fn applies(rule: &Rule, context: &Context) -> bool {
    rule.conditions.iter().all(|(attribute, condition)| condition.holds(context.0.get(attribute)))
}

/// The share that holds the bucket: shares lie one after another, so one that grows keeps whom it has.
fn share(shares: &[Share], bucket: u64) -> Option<&str> {
    let mut end = 0;
    shares
        .iter()
        .find(|share| {
            end += share.percent.ten_thousandths;
            bucket < end
        })
        .map(|share| share.variant.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::definition::{Flags, read};

    fn flags(flag: Value) -> Flags {
        read(Some(&json!({"f": flag}).to_string())).unwrap()
    }

    fn context(attributes: Value) -> Context {
        Context(attributes.as_object().unwrap().clone())
    }

    fn outcome(flags: &Flags, attributes: Value) -> (Reason, String) {
        let evaluation = evaluate("f", &flags["f"], &context(attributes)).unwrap();
        (evaluation.reason, evaluation.variant.to_owned())
    }

    #[test]
    fn a_flag_without_rules_is_static() {
        let flags = flags(json!({"variants": {"on": true, "off": false}, "defaultVariant": "on"}));
        assert_eq!(outcome(&flags, json!({})), (Reason::Static, "on".into()));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let flags = flags(json!({
            "variants": {"a": 1, "b": 2, "c": 3}, "defaultVariant": "c",
            "rules": [
                {"if": {"plan": {"equals": "gold"}, "age": {"gte": 18}}, "variant": "a"},
                {"if": {"plan": {"equals": "gold"}}, "variant": "b"},
            ],
        }));
        assert_eq!(outcome(&flags, json!({"plan": "gold", "age": 18})), (Reason::TargetingMatch, "a".into()));
        assert_eq!(outcome(&flags, json!({"plan": "gold", "age": 17})), (Reason::TargetingMatch, "b".into()));
        assert_eq!(outcome(&flags, json!({"age": 18})), (Reason::Default, "c".into()));
    }

    #[test]
    fn a_disabled_flag_ignores_its_rules() {
        let flags = flags(json!({
            "state": "DISABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "rules": [{"split": [{"variant": "on", "percent": 100}]}],
        }));
        assert_eq!(outcome(&flags, json!({})), (Reason::Disabled, "off".into()));
    }

    #[test]
    fn a_split_gives_each_share_its_percentage() {
        let flags = flags(json!({
            "variants": {"a": 1, "b": 2, "c": 3}, "defaultVariant": "c",
            "rules": [{"split": [{"variant": "a", "percent": 12.5}, {"variant": "b", "percent": 50}]}],
        }));
        let mut counts = BTreeMap::<String, u32>::new();
        for subject in 0..20_000 {
            let (reason, variant) = outcome(&flags, json!({"targetingKey": format!("user-{subject}")}));
            assert_eq!(reason, Reason::Split);
            *counts.entry(variant).or_default() += 1;
        }
        assert!((2_300..=2_700).contains(&counts["a"]), "{counts:?}");
        assert!((9_700..=10_300).contains(&counts["b"]), "{counts:?}");
    }

    #[test]
    fn a_rollout_that_grows_keeps_whom_it_has() {
        let at = |percent: u32| {
            flags(json!({
                "variants": {"on": true, "off": false}, "defaultVariant": "off",
                "rules": [{"split": [{"variant": "on", "percent": percent}]}],
            }))
        };
        let (few, more) = (at(10), at(20));
        for subject in 0..2_000 {
            let context = json!({"targetingKey": format!("user-{subject}")});
            if outcome(&few, context.clone()).1 == "on" {
                assert_eq!(outcome(&more, context).1, "on");
            }
        }
    }

    #[test]
    fn a_split_is_all_or_nothing_at_its_ends() {
        let at = |percent: u32| {
            flags(json!({
                "variants": {"on": true, "off": false}, "defaultVariant": "off",
                "rules": [{"split": [{"variant": "on", "percent": percent}]}],
            }))
        };
        for subject in 0..2_000 {
            let context = json!({"targetingKey": format!("user-{subject}")});
            assert_eq!(outcome(&at(0), context.clone()).1, "off");
            assert_eq!(outcome(&at(100), context).1, "on");
        }
    }

    #[test]
    fn a_split_without_targeting_key_is_an_error_only_for_those_it_is_for() {
        let flags = flags(json!({
            "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "rules": [{"if": {"beta": {"equals": true}}, "split": [{"variant": "on", "percent": 50}]}],
        }));
        for attributes in [json!({"beta": true}), json!({"beta": true, "targetingKey": ""})] {
            assert_eq!(evaluate("f", &flags["f"], &context(attributes)).unwrap_err(), TargetingKeyMissing);
        }
        assert_eq!(outcome(&flags, json!({})), (Reason::Default, "off".into()));
    }
}
