//! What a rule asks of one attribute of the evaluation context.

use semver::{Version, VersionReq};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

/// Tests of one attribute, all of which must hold. An attribute that is missing, or of another type than a test is about,
/// fails the test; [`not`](Self::not) then holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Condition {
    /// The same JSON value; `1` and `1.0` are the same.
    equals: Option<Value>,
    /// One of these values.
    #[serde(rename = "in")]
    one_of: Option<Vec<Value>>,
    /// A text that begins so.
    starts_with: Option<String>,
    /// A text that ends so.
    ends_with: Option<String>,
    /// A text that holds this one, or a list that holds this text.
    contains: Option<String>,
    /// A number less than this.
    lt: Option<f64>,
    /// A number of at most this.
    lte: Option<f64>,
    /// A number greater than this.
    gt: Option<f64>,
    /// A number of at least this.
    gte: Option<f64>,
    /// A version in this range, in Cargo's notation: `>=1.2, <3`.
    #[serde(deserialize_with = "range")]
    semver: Option<VersionReq>,
    /// Whether the attribute is there, and not null.
    exists: Option<bool>,
    /// Holds if the tests in it do not all hold.
    not: Option<Box<Condition>>,
}

fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<VersionReq>, D::Error> {
    let text = String::deserialize(deserializer)?;
    VersionReq::parse(&text)
        .map(Some)
        .map_err(|error| D::Error::custom(format_args!("{text:?} is no range of versions: {error}")))
}

impl Condition {
    /// Is nothing tested? Such a condition would hold for everyone, which nobody means who writes one.
    pub fn is_empty(&self) -> bool {
        let Self { equals, one_of, starts_with, ends_with, contains, lt, lte, gt, gte, semver, exists, not } = self;
        equals.is_none()
            && one_of.is_none()
            && [starts_with, ends_with, contains].iter().all(|text| text.is_none())
            && [lt, lte, gt, gte].iter().all(|number| number.is_none())
            && semver.is_none()
            && exists.is_none()
            && not.as_ref().is_none_or(|not| not.is_empty())
    }

    /// Do all tests hold for this value of the attribute, `None` if the context does not have it?
    pub fn holds(&self, value: Option<&Value>) -> bool {
        let value = value.filter(|value| !value.is_null());
        let text = value.and_then(Value::as_str);
        let number = value.and_then(Value::as_f64);
        let with_text = |test: &Option<String>, holds: fn(&str, &str) -> bool| {
            test.as_deref().is_none_or(|test| text.is_some_and(|text| holds(text, test)))
        };
        let with_number = |test: Option<f64>, holds: fn(&f64, &f64) -> bool| {
            test.is_none_or(|test| number.is_some_and(|number| holds(&number, &test)))
        };

        self.equals.as_ref().is_none_or(|other| value.is_some_and(|value| same(value, other)))
            && self
                .one_of
                .as_ref()
                .is_none_or(|others| value.is_some_and(|value| others.iter().any(|other| same(value, other))))
            && with_text(&self.starts_with, |text, start| text.starts_with(start))
            && with_text(&self.ends_with, |text, end| text.ends_with(end))
            && self.contains.as_deref().is_none_or(|part| value.is_some_and(|value| holds_part(value, part)))
            && with_number(self.lt, f64::lt)
            && with_number(self.lte, f64::le)
            && with_number(self.gt, f64::gt)
            && with_number(self.gte, f64::ge)
            && self
                .semver
                .as_ref()
                .is_none_or(|range| text.and_then(version).is_some_and(|version| range.matches(&version)))
            && self.exists.is_none_or(|exists| exists == value.is_some())
            && self.not.as_ref().is_none_or(|not| !not.holds(value))
    }
}

fn same(one: &Value, other: &Value) -> bool {
    one == other || matches!((one.as_f64(), other.as_f64()), (Some(one), Some(other)) if one == other)
}

fn holds_part(value: &Value, part: &str) -> bool {
    match value {
        Value::String(text) => text.contains(part),
        Value::Array(elements) => elements.iter().any(|element| element.as_str() == Some(part)),
        _ => false,
    }
}

/// A version as people write it: `v2`, `2.1`, `2.1.0-beta.1`.
fn version(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches('v');
    let numbers = text.split(['-', '+']).next()?.split('.').count();
    match numbers {
        1 | 2 if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            Version::parse(&format!("{text}{}", ".0".repeat(3 - numbers))).ok()
        }
        _ => Version::parse(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_operator_holds_for_what_it_says_and_nothing_else() {
        let table = [
            (json!({"equals": "gold"}), json!("gold"), json!("silver")),
            (json!({"equals": 1}), json!(1.0), json!("1")),
            (json!({"equals": false}), json!(false), json!(null)),
            (json!({"in": ["AT", "DE"]}), json!("DE"), json!("FR")),
            (json!({"starts_with": "/api"}), json!("/api/v1"), json!("/v1/api")),
            (json!({"ends_with": "@example.com"}), json!("a@example.com"), json!(["a@example.com"])),
            (json!({"contains": "beta"}), json!("a beta tester"), json!("alpha")),
            (json!({"contains": "beta"}), json!(["alpha", "beta"]), json!(["betamax"])),
            (json!({"lt": 18}), json!(17.9), json!(18)),
            (json!({"lte": 18}), json!(18), json!(18.1)),
            (json!({"gt": 18}), json!(19), json!(18)),
            (json!({"gte": 18, "lt": 65}), json!(18), json!(65)),
            (json!({"gte": 0}), json!(0), json!("0")),
            (json!({"semver": ">=2.1, <3"}), json!("2.10.0"), json!("2.0.9")),
            (json!({"semver": ">=2.1"}), json!("v2.1"), json!("latest")),
            (json!({"exists": true}), json!(""), json!(null)),
            (json!({"exists": false}), json!(null), json!(0)),
            (json!({"not": {"in": ["AT", "DE"]}}), json!("FR"), json!("AT")),
        ];
        for (condition, yes, no) in table {
            let read = Condition::deserialize(&condition).unwrap();
            assert!(!read.is_empty());
            assert!(read.holds(Some(&yes)), "{condition} should hold for {yes}");
            assert!(!read.holds(Some(&no)), "{condition} should not hold for {no}");
        }
    }

    #[test]
    fn a_missing_attribute_fails_every_test_but_its_absence() {
        for fails in [json!({"equals": "a"}), json!({"in": ["a"]}), json!({"lt": 1}), json!({"exists": true})] {
            assert!(!Condition::deserialize(fails).unwrap().holds(None));
        }
        for holds in [json!({"exists": false}), json!({"not": {"equals": "a"}})] {
            assert!(Condition::deserialize(holds).unwrap().holds(None));
        }
    }

    #[test]
    fn a_condition_that_tests_nothing_is_empty() {
        for empty in [json!({}), json!({"not": {}}), json!({"equals": null})] {
            assert!(Condition::deserialize(&empty).unwrap().is_empty(), "{empty}");
        }
    }

    #[test]
    fn unknown_operators_and_bad_ranges_are_errors() {
        let error = Condition::deserialize(json!({"like": "a%"})).unwrap_err().to_string();
        assert!(error.contains("`like`") && error.contains("`starts_with`"), "{error}");
        let error = Condition::deserialize(json!({"semver": "new"})).unwrap_err().to_string();
        assert!(error.contains("\"new\" is no range of versions"), "{error}");
    }
}
