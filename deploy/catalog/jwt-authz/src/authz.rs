//! From a request to an answer: 200 lets it through, 401 does not, 500 is ours.
//!
//! Envoy appends the original path to a prefix and keeps the method, so neither says anything here: every path and method
//! is answered alike, by the header `authorization` alone.

use exchange::{Head, Response};

use crate::{
    config::Config,
    identity,
    token::{self, Refusal},
};

/// What the request brought.
enum Credentials<'a> {
    /// No bearer token.
    None,
    /// One.
    Token(&'a str),
    /// Several, or bytes that no token has: nobody can say which one the application would look at.
    Unclear,
}

/// Answers any request.
pub fn answer(head: &Head, env: &dyn Fn(&str) -> Option<String>) -> Response {
    let config = match Config::read(env) {
        Ok(config) => config,
        Err(error) => return Response::text(500, format!("jwt-authz is not configured: {error}\n")),
    };
    let checked = match credentials(head) {
        // RFC 6750 §3.1: no error code for a request that does not try.
        Credentials::None => return challenge("realm=\"jwt-authz\"", "a bearer token is required"),
        Credentials::Token(token) => token::check(token, &config),
        Credentials::Unclear => Err(Refusal::Malformed),
    };
    match checked {
        Ok(claims) => identity::headers(&claims, &config.forwarded)
            .into_iter()
            .fold(Response::empty(200), |response, (name, value)| response.with(name, value)),
        Err(refusal) => {
            let description = refusal.to_string();
            challenge(&format!("error=\"invalid_token\", error_description=\"{description}\""), &description)
        }
    }
}

fn credentials(head: &Head) -> Credentials<'_> {
    let mut values = head.values("authorization");
    let Some(value) = values.next() else { return Credentials::None };
    if values.next().is_some() {
        return Credentials::Unclear;
    }
    let Ok(value) = str::from_utf8(value) else { return Credentials::Unclear };
    // RFC 9110 §11.1: the scheme's case does not matter.
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Credentials::Token(token.trim_start()),
        _ => Credentials::None,
    }
}

fn challenge(parameters: &str, text: &str) -> Response {
    Response::text(401, format!("{text}\n")).with("www-authenticate", format!("Bearer {parameters}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{bearer, environment, example, example_token, mint, valid_claims};

    #[test]
    fn the_token_of_the_readme_passes_the_example() {
        let response = answer(&bearer(&example_token()), &example);
        assert_eq!((response.status, response.body.as_str()), (200, ""));
        assert_eq!(response.header("x-auth-subject"), Some("alice"));
        assert_eq!(response.header("x-auth-claims-email"), Some("alice@example.com"));
        assert_eq!(response.header("x-auth-claims-roles"), Some("admin,dev"));
    }

    #[test]
    fn every_path_and_method_is_answered() {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND"] {
            for target in ["/", "/auth/api/v1?x=1", "*"] {
                let head = Head { method: method.into(), target: target.into(), ..bearer(&example_token()) };
                assert_eq!(answer(&head, &example).status, 200);
                assert_eq!(answer(&Head { headers: vec![], ..head }, &example).status, 401);
            }
        }
    }

    #[test]
    fn a_request_without_a_token_is_asked_for_one_without_an_error() {
        let basic = Head { headers: vec![("authorization".into(), b"Basic YTpi".to_vec())], ..Head::default() };
        let bare = Head { headers: vec![("authorization".into(), b"Bearer".to_vec())], ..Head::default() };
        for head in [Head::default(), basic, bare] {
            let response = answer(&head, &environment(&[]));
            assert_eq!(response.status, 401);
            assert_eq!(response.header("www-authenticate"), Some("Bearer realm=\"jwt-authz\""));
        }
    }

    #[test]
    fn a_bad_token_is_refused_with_a_reason() {
        let mut claims = valid_claims();
        claims["exp"] = 1.into();
        let response = answer(&bearer(&mint(&claims)), &environment(&[]));
        assert_eq!(response.status, 401);
        assert_eq!(
            response.header("www-authenticate"),
            Some("Bearer error=\"invalid_token\", error_description=\"the token has expired\"")
        );
        assert_eq!(response.header("x-auth-subject"), None);
    }

    #[test]
    fn the_case_of_the_scheme_does_not_matter() {
        let value = format!("bEARER  {}", mint(&valid_claims()));
        let head = Head { headers: vec![("Authorization".into(), value.into_bytes())], ..Head::default() };
        assert_eq!(answer(&head, &environment(&[])).status, 200);
    }

    #[test]
    fn two_tokens_are_none() {
        let mut head = bearer(&mint(&valid_claims()));
        head.headers.extend(head.headers.clone());
        assert_eq!(answer(&head, &environment(&[])).status, 401);
    }

    #[test]
    fn a_bad_configuration_never_lets_anyone_through() {
        let head = bearer(&mint(&valid_claims()));
        assert_eq!(answer(&head, &environment(&[])).status, 200);
        for variable in ["JWKS", "ISSUER", "AUDIENCE", "LEEWAY_SECONDS", "FORWARD_CLAIMS"] {
            let response = answer(&head, &environment(&[(variable, ", ,*, ?")]));
            assert_eq!(response.status, 500, "{variable}");
            assert!(response.body.contains(variable), "{}", response.body);
        }
        assert_eq!(answer(&Head::default(), &|_| None).status, 500);
    }
}
