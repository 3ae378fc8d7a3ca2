//! Who we are at a registry: what it asks for is answered with a password, or with the token of the server that it names.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, header};
use pillion_protocol::{login::Login, reference::Reference};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::{
    client::{Operation, Remote},
    problem::Problem,
};

/// The most of a token server's answer, in bytes.
const ANSWER: u64 = 1 << 20;

/// What a registry wants to be shown.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Nothing,
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// What an answer asks for: a token where it takes one.
    fn of(answer: &Response) -> Self {
        let values = answer.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let mut challenge = Self::Nothing;
        for said in values
            .filter_map(|value| value.to_str().ok())
            .filter_map(|value| http_auth::parse_challenges(value).ok())
            .flatten()
        {
            let parameter = |name: &str| {
                let (_, value) = said.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            if said.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                return Self::Bearer { realm, service: parameter("service") };
            }
            if said.scheme.eq_ignore_ascii_case("basic") {
                challenge = Self::Basic;
            }
        }
        challenge
    }
}

/// What a token server gives.
#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

impl Remote {
    /// What the registry is shown from now on, if it asks for anything.
    ///
    /// # Errors
    ///
    /// Nobody there; a token server that may not be asked, or gives nothing.
    pub(super) async fn authorization(
        &self,
        reference: &Reference,
        operation: Operation,
    ) -> Result<Option<HeaderValue>, Problem> {
        let answer = self.http.get(self.url("")?).send().await.map_err(|error| self.fault(error))?;
        let value = match (Challenge::of(&answer), &self.source.login) {
            (Challenge::Nothing, _) | (Challenge::Basic, Login::Anonymous) => return Ok(None),
            (Challenge::Basic, Login::Basic { username, password }) => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
            }
            (Challenge::Basic, Login::Identity { .. }) => {
                let text = "it takes a name and a password only, and the login for it is an identity token";
                return Err(Problem::lasting(text));
            }
            (Challenge::Bearer { realm, service }, _) => {
                let url = self.source.judge_realm(&realm, &self.reach).map_err(Problem::lasting)?;
                format!("Bearer {}", self.token(url, service, reference, operation).await?)
            }
        };
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| Problem::lasting("its token server gives no token: what it gives is none"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn token(
        &self,
        mut url: Url,
        service: Option<String>,
        reference: &Reference,
        operation: Operation,
    ) -> Result<String, Problem> {
        let actions = match operation {
            Operation::Pull => "pull",
            Operation::Push => "pull,push",
        };
        let scope = format!("repository:{}:{actions}", self.repository(reference));
        let mut query = vec![("scope", scope.as_str())];
        query.extend(service.as_deref().map(|service| ("service", service)));
        let request = match &self.source.login {
            // distribution's docs/spec/auth/oauth.md. A redirect would take the token elsewhere.
            Login::Identity { token } => {
                query.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "pillion")]);
                let form = form(&query);
                let http = self.connect(false)?;
                http.post(url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            login => {
                url.query_pairs_mut().extend_pairs(&query);
                match login {
                    Login::Basic { username, password } => self.http.get(url).basic_auth(username, Some(password)),
                    _ => self.http.get(url),
                }
            }
        };
        let none = |problem: Problem| Problem {
            text: format!("its token server gives no token: {}", problem.text),
            ..problem
        };
        let answer = request.send().await.map_err(|error| none(self.fault(error)))?;
        if !answer.status().is_success() {
            return Err(none(Problem::of_answer(answer).await));
        }
        let bytes = self.body(answer, ANSWER).await.map_err(none)?;
        let given: Option<Given> = serde_json::from_slice(&bytes).ok();
        let token = given.and_then(|given| given.token.filter(|token| !token.is_empty()).or(given.access_token));
        token.ok_or_else(|| none(Problem::lasting("there is none in its answer")))
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    // Of any address: a query is written as a form is.
    let Ok(mut url) = Url::parse("http://x/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Challenge {
        let mut answer = http::Response::builder().status(401);
        for value in values {
            answer = answer.header("www-authenticate", *value);
        }
        Challenge::of(&answer.body("").unwrap().into())
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer =
            |service: Option<&str>| Challenge::Bearer { realm: "https://a/t".into(), service: service.map(Into::into) };
        assert_eq!(challenge(&[]), Challenge::Nothing);
        assert_eq!(challenge(&["Negotiate"]), Challenge::Nothing);
        assert_eq!(challenge(&["Basic realm=\"x\""]), Challenge::Basic);
        assert_eq!(challenge(&["Bearer realm=\"https://a/t\",service=\"s\""]), bearer(Some("s")));
        assert_eq!(challenge(&["Basic realm=\"x\"", "bearer Realm=\"https://a/t\""]), bearer(None));
        assert_eq!(challenge(&["Bearer service=\"s\""]), Challenge::Nothing);
    }

    #[test]
    fn a_form_is_written_as_browsers_do() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull"), ("t", "a+b c&d")]),
            "scope=repository%3Aa%2Fb%3Apull&t=a%2Bb+c%26d"
        );
    }
}
