//! A request as text for people or as JSON for programs.
//!
//! Two things stay hidden: variables that `SHOW_ENV` does not name, and the values of headers that carry credentials, since
//! an echo of those gives a page's scripts what the browser keeps from them.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, Read},
};

use exchange::{Head, Response};
use serde_json::json;

const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// What is shown of a request.
struct View<'a> {
    head: &'a Head,
    headers: Vec<(&'a str, String)>,
    body_bytes: u64,
    /// `None`: asked for, but not set.
    environment: BTreeMap<String, Option<String>>,
}

/// Answers any request with what it looks like from here: JSON if `Accept` names `application/json`, else plain text.
pub fn answer(head: &Head, body: &mut dyn Read, env: &dyn Fn(&str) -> Option<String>) -> Response {
    let body_bytes = match io::copy(body, &mut io::sink()) {
        Ok(bytes) => bytes,
        Err(error) => return Response::text(400, format!("the body broke off: {error}\n")),
    };
    let shown = env("SHOW_ENV").unwrap_or_default();
    let view = View {
        head,
        headers: head.headers.iter().map(|(name, value)| (name.as_str(), visible(name, value))).collect(),
        body_bytes,
        environment: shown
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| (name.to_owned(), env(name)))
            .collect(),
    };
    let wants_json = head.elements("accept").any(|range| {
        let media_type = range.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case("application/json")
    });
    if wants_json { view.json() } else { view.text() }.with("vary", "accept").with("cache-control", "no-store")
}

fn visible(name: &str, value: &[u8]) -> String {
    if CREDENTIALS.iter().any(|hidden| name.eq_ignore_ascii_case(hidden)) {
        return format!("({} bytes, hidden)", value.len());
    }
    str::from_utf8(value).map_or_else(|_| value.escape_ascii().to_string(), str::to_owned)
}

impl View<'_> {
    fn text(&self) -> Response {
        let Head { method, scheme, authority, target, .. } = self.head;
        let origin = if authority.is_empty() { String::new() } else { format!("{scheme}://{authority}") };
        let mut text = format!("{method} {origin}{target}\n\n");
        for (name, value) in &self.headers {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name}: {value}");
        }
        let _ = writeln!(text, "\nbody: {} bytes", self.body_bytes);
        if !self.environment.is_empty() {
            text.push('\n');
        }
        for (name, value) in &self.environment {
            let _ = match value {
                Some(value) => writeln!(text, "{name}={value}"),
                None => writeln!(text, "{name} is not set"),
            };
        }
        Response::text(200, text)
    }

    fn json(&self) -> Response {
        let Head { method, scheme, authority, target, .. } = self.head;
        let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in &self.headers {
            headers.entry(name).or_default().push(value);
        }
        Response::json(
            200,
            &json!({
                "method": method,
                "scheme": scheme,
                "authority": authority,
                "target": target,
                "headers": headers,
                "bodyBytes": self.body_bytes,
                "environment": self.environment,
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn head(headers: &[(&str, &[u8])]) -> Head {
        Head {
            method: "PUT".into(),
            scheme: "http".into(),
            authority: "localhost:8081".into(),
            target: "/hello?name=you".into(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
        }
    }

    fn environment(name: &str) -> Option<String> {
        match name {
            "SHOW_ENV" => Some("STAGE, GREETING,,MISSING".into()),
            "GREETING" => Some("hello".into()),
            "STAGE" => Some("demo".into()),
            "SECRET" => Some("hunter2".into()),
            _ => None,
        }
    }

    #[test]
    fn people_get_the_request_as_text() {
        let response = answer(&head(&[("accept", b"*/*")]), &mut &b"12345"[..], &environment);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(
            response.body,
            "PUT http://localhost:8081/hello?name=you\n\naccept: */*\n\nbody: 5 bytes\n\n\
             GREETING=hello\nMISSING is not set\nSTAGE=demo\n"
        );
    }

    #[test]
    fn programs_get_json() {
        let head = head(&[("accept", b"text/html, Application/JSON;q=0.9"), ("x", b"1"), ("x", b"2")]);
        let response = answer(&head, &mut io::empty(), &environment);
        assert_eq!(response.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(body["method"], "PUT");
        assert_eq!(body["target"], "/hello?name=you");
        assert_eq!(body["headers"]["x"], json!(["1", "2"]));
        assert_eq!(body["bodyBytes"], 0);
        assert_eq!(body["environment"], json!({"GREETING": "hello", "STAGE": "demo", "MISSING": null}));
    }

    #[test]
    fn only_named_variables_are_shown() {
        let response = answer(&head(&[]), &mut io::empty(), &environment);
        assert!(!response.body.contains("hunter2"));
        let bare = answer(&head(&[]), &mut io::empty(), &|_| None);
        assert!(bare.body.ends_with("body: 0 bytes\n"), "{}", bare.body);
    }

    #[test]
    fn credentials_are_counted_and_not_shown() {
        let response =
            answer(&head(&[("Authorization", b"Bearer abc"), ("cookie", b"a=b")]), &mut io::empty(), &|_| None);
        assert!(
            response.body.contains("Authorization: (10 bytes, hidden)\ncookie: (3 bytes, hidden)\n"),
            "{}",
            response.body
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        let response = answer(&head(&[("x", b"\xffa")]), &mut io::empty(), &|_| None);
        assert!(response.body.contains("x: \\xffa\n"), "{}", response.body);
    }

    #[test]
    fn a_body_that_breaks_off_is_said() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("reset"))
            }
        }
        assert_eq!(answer(&head(&[]), &mut Broken, &|_| None).status, 400);
    }

    #[test]
    fn the_example_shows_its_greeting() {
        let component: Value = serde_saphyr::from_str(include_str!("../component.yaml")).unwrap();
        let env = |name: &str| {
            let variables = component["spec"]["env"].as_array().unwrap();
            variables.iter().find(|variable| variable["name"] == name)?["value"].as_str().map(str::to_owned)
        };
        let response = answer(&head(&[]), &mut io::empty(), &env);
        assert!(response.body.contains("GREETING=hello from Pillion"), "{}", response.body);
    }
}
