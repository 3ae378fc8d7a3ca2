//! The protocol against the flags of component.yaml.

use super::*;

fn example(name: &str) -> Option<String> {
    let component: Value = serde_saphyr::from_str(include_str!("../../component.yaml")).unwrap();
    assert_eq!(name, "FLAGS");
    component["spec"]["env"][0]["value"].as_str().map(str::to_owned)
}

fn head(method: &str, target: &str) -> Head {
    Head { method: method.into(), target: target.into(), ..Head::default() }
}

fn post(target: &str, body: &str) -> (u16, Value) {
    let response = answer(&head("POST", target), &mut body.as_bytes(), &example);
    (response.status, serde_json::from_str(&response.body).unwrap())
}

#[test]
fn one_flag_is_evaluated_by_its_key() {
    let (status, body) =
        post("/ofrep/v1/evaluate/flags/page-size", r#"{"context": {"targetingKey": "alice", "plan": "gold"}}"#);
    assert_eq!(status, 200);
    assert_eq!(body, json!({"key": "page-size", "value": 100, "variant": "large", "reason": "TARGETING_MATCH"}));
}

#[test]
fn a_flag_without_rules_needs_no_context() {
    for body in ["", "{}", r#"{"context": null}"#, r#"{"context": {}}"#] {
        let (status, body) = post("/ofrep/v1/evaluate/flags/welcome-banner", body);
        assert_eq!((status, &body["value"], &body["reason"]), (200, &json!(true), &json!("STATIC")));
    }
}

#[test]
fn a_split_needs_a_targeting_key() {
    let context = r#"{"context": {"country": "AT", "appVersion": "2.3.0"}}"#;
    let (status, body) = post("/ofrep/v1/evaluate/flags/new-checkout", context);
    assert_eq!(status, 400);
    assert_eq!((&body["key"], &body["errorCode"]), (&json!("new-checkout"), &json!("TARGETING_KEY_MISSING")));

    let context = r#"{"context": {"targetingKey": "alice", "country": "AT", "appVersion": "2.3.0"}}"#;
    let (status, body) = post("/ofrep/v1/evaluate/flags/new-checkout", context);
    assert_eq!((status, &body["reason"]), (200, &json!("SPLIT")));
}

#[test]
fn an_unknown_flag_is_not_found() {
    let (status, body) = post("/ofrep/v1/evaluate/flags/no%20such%2Fflag", "{}");
    assert_eq!(status, 404);
    assert_eq!((&body["key"], &body["errorCode"]), (&json!("no such/flag"), &json!("FLAG_NOT_FOUND")));
}

#[test]
fn bad_bodies_are_told_apart() {
    let table = [
        ("{", "PARSE_ERROR"),
        ("[]", "INVALID_CONTEXT"),
        (r#"{"context": []}"#, "INVALID_CONTEXT"),
        (r#"{"context": {"targetingKey": 7}}"#, "INVALID_CONTEXT"),
    ];
    for (body, code) in table {
        for target in ["/ofrep/v1/evaluate/flags/page-size", "/ofrep/v1/evaluate/flags"] {
            let (status, answer) = post(target, body);
            assert_eq!((status, answer["errorCode"].as_str()), (400, Some(code)), "{target} {body}");
        }
    }
}

#[test]
fn all_flags_come_at_once_and_fail_alone() {
    let context = r#"{"context": {"country": "DE", "appVersion": "2.1.0"}}"#;
    let (status, body) = post("/ofrep/v1/evaluate/flags", context);
    assert_eq!(status, 200);
    let flags = body["flags"].as_array().unwrap();
    let summary: Vec<_> = flags
        .iter()
        .map(|flag| (flag["key"].as_str().unwrap(), flag["reason"].as_str().or(flag["errorCode"].as_str())))
        .collect();
    assert_eq!(
        summary,
        [
            ("new-checkout", Some("TARGETING_KEY_MISSING")),
            ("old-search", Some("DISABLED")),
            ("page-size", Some("DEFAULT")),
            ("welcome-banner", Some("STATIC")),
        ]
    );
}

#[test]
fn an_answer_that_the_caller_has_is_not_sent_again() {
    let body = r#"{"context": {"targetingKey": "alice"}}"#;
    let mut asked = head("POST", "/ofrep/v1/evaluate/flags");
    let first = answer(&asked, &mut body.as_bytes(), &example);
    let tag = first.header("etag").unwrap().to_owned();

    for known in [tag.clone(), format!("\"old\", W/{tag}"), "*".into()] {
        asked.headers = vec![("if-none-match".into(), known.into_bytes())];
        let again = answer(&asked, &mut body.as_bytes(), &example);
        assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", Some(tag.as_str())));
    }

    let other = r#"{"context": {"targetingKey": "alice", "plan": "gold"}}"#;
    asked.headers = vec![("if-none-match".into(), tag.into_bytes())];
    assert_eq!(answer(&asked, &mut other.as_bytes(), &example).status, 200);
}

#[test]
fn bad_flags_are_a_general_error_that_names_the_variable() {
    for (target, key) in [("/ofrep/v1/evaluate/flags/a", json!("a")), ("/ofrep/v1/evaluate/flags", Value::Null)] {
        for flags in [None, Some("nope".to_owned()), Some(r#"{"a": {}}"#.to_owned())] {
            let response = answer(&head("POST", target), &mut &b"{}"[..], &|_| flags.clone());
            let body: Value = serde_json::from_str(&response.body).unwrap();
            assert_eq!((response.status, &body["errorCode"], &body["key"]), (500, &json!("GENERAL"), &key));
            assert!(body["errorDetails"].as_str().unwrap().starts_with("FLAGS"), "{body}");
        }
    }
}

#[test]
fn other_methods_and_paths_are_refused() {
    let response = answer(&head("GET", "/ofrep/v1/evaluate/flags"), &mut &b""[..], &example);
    assert_eq!((response.status, response.header("allow")), (405, Some("POST")));
    for target in ["/", "/ofrep/v1/evaluate/flagsy", "/ofrep/v2/evaluate/flags"] {
        let response = answer(&head("POST", target), &mut &b"{}"[..], &example);
        assert_eq!((response.status, response.body.contains("FLAG_NOT_FOUND")), (404, false), "{target}");
    }
}

#[test]
fn keys_are_percent_decoded() {
    let table = [("a%20b", "a b"), ("a%2fb", "a/b"), ("%C3%A9", "é"), ("100%", "100%"), ("%zz", "%zz"), ("%2", "%2")];
    for (text, expected) in table {
        assert_eq!(percent_decoded(text), expected);
    }
}
