//! A server of tokens, as docker-registry's `auth: token` wants them.
//! /usr/share/doc/docker-registry/spec/auth/token.md.gz and jwt.md.gz.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use super::remote::Access;
use crate::{
    client::{Body, full},
    jwt::{self, Signer},
    locked,
    server::Server,
};

/// Who issues, `iss`.
const ISSUER: &str = "pillion-tests-tokens";
/// For whom, `aud`.
const SERVICE: &str = "pillion-tests-registry";
/// How long a token is good unless said otherwise. The registry takes one for a minute longer.
const LIFETIME: Duration = Duration::from_secs(300);

/// What somebody asked the token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Whether there was an `Authorization` header, right or wrong.
    pub authorized: bool,
    /// The service named.
    pub service: Option<String>,
    /// The scopes asked for, such as `repository:NAME:pull`.
    pub scopes: Vec<String>,
    /// What was answered.
    pub status: u16,
}

/// A server of tokens on 127.0.0.1, on a thread of its own. It ends when this is dropped.
pub struct TokenServer {
    state: Arc<State>,
    server: Server,
}

/// Signs tokens.
pub(super) struct Issuer {
    signer: Signer,
    certificate: String,
    lifetime: AtomicU64,
    issued: AtomicU64,
}

struct State {
    issuer: Arc<Issuer>,
    authorization: String,
    public: AtomicBool,
    fault: Mutex<Option<StatusCode>>,
    requests: Mutex<Vec<TokenRequest>>,
}

impl TokenServer {
    /// Starts one for one user; the certificate that the registry is to trust goes to a file.
    pub(super) fn start(user: &str, password: &str, bundle: &Path) -> Result<Self> {
        let issuer = Arc::new(Issuer::found(bundle)?);
        let Access::Basic(authorization) = Access::basic(user, password) else { return Err(anyhow!("no header")) };
        let state = Arc::new(State {
            issuer,
            authorization,
            public: AtomicBool::new(false),
            fault: Mutex::default(),
            requests: Mutex::default(),
        });
        let answering = Arc::clone(&state);
        let server = Server::start(move |_, request: Request<Incoming>| {
            let answering = Arc::clone(&answering);
            async move {
                let (head, body) = request.into_parts();
                let form = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                Ok(answering.answer(&head, &String::from_utf8_lossy(&form)))
            }
        })?;
        Ok(Self { state, server })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// An identity token of its user, which it exchanges for others.
    pub fn identity(&self) -> String {
        format!("identity of {}", self.state.authorization)
    }

    /// Its address, as the registry tells callers.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port())
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<TokenRequest> {
        locked(&self.state.requests).clone()
    }

    /// From now on, tokens are announced to be good for so long. The registry takes them for a minute longer.
    pub fn lifetime(&self, lifetime: Duration) {
        self.state.issuer.lifetime.store(lifetime.as_secs(), Relaxed);
    }

    /// From now on, or no longer, whoever has no password may pull, as public registries let them.
    pub fn public(&self, public: bool) {
        self.state.public.store(public, Relaxed);
    }

    /// From now on, answers everyone with this status and no token; with `None` it issues tokens again.
    pub fn fail_with(&self, status: Option<StatusCode>) {
        *locked(&self.state.fault) = status;
    }

    pub(super) fn issuer(&self) -> &Arc<Issuer> {
        &self.state.issuer
    }

    /// The registry's configuration, `auth.token`.
    pub(super) fn config(&self, bundle: &Path) -> Value {
        json!({"realm": self.realm(), "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle})
    }
}

impl Issuer {
    fn found(bundle: &Path) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, ISSUER);
        let certificate = params.self_signed(&key)?;
        fs::write(bundle, certificate.pem())?;
        Ok(Self {
            signer: Signer::new(&key)?,
            certificate: BASE64_STANDARD.encode(certificate.der()),
            lifetime: AtomicU64::new(LIFETIME.as_secs()),
            issued: AtomicU64::new(0),
        })
    }

    /// A token that grants these scopes, each `TYPE:NAME:ACTION,ACTION`; what is no scope is not granted.
    pub(super) fn issue(&self, subject: &str, scopes: &[String]) -> Result<String> {
        let access: Vec<Value> = scopes.iter().filter_map(|scope| entry(scope)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        // The certificate itself: the registry trusts it by `rootcertbundle`.
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": SERVICE, "access": access, "jti": self.issued.fetch_add(1, Relaxed).to_string(),
            "iat": now, "nbf": now, "exp": now + self.lifetime.load(Relaxed),
        });
        self.signer.sign(&jwt::encoded(&header), &claims)
    }
}

/// Names hold colons where they begin with a host.
fn entry(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}

impl State {
    fn answer(&self, request: &Parts, form: &str) -> Response<Body> {
        // /usr/share/doc/docker-registry/spec/auth/oauth.md.gz
        let is_exchange = request.method == "POST";
        let query = if is_exchange { form } else { request.uri.query().unwrap_or_default() };
        let values = |name: &str| -> Vec<String> {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).collect()
        };
        // Several scopes come as several parameters, or as one with blanks between them.
        let scopes: Vec<String> =
            values("scope").iter().flat_map(|scopes| scopes.split(' ')).map(str::to_owned).collect();
        let authorization = request.headers.get(AUTHORIZATION);
        let fault = *locked(&self.fault);
        let is_told = |name: &str, expected: &str| values(name).pop().is_some_and(|value| value == expected);
        let known = match is_exchange {
            true => {
                is_told("grant_type", "refresh_token")
                    && is_told("refresh_token", &format!("identity of {}", self.authorization))
            }
            false => authorization.is_some_and(|value| value.as_bytes() == self.authorization.as_bytes()),
        };
        let anonymous = !is_exchange && authorization.is_none() && self.public.load(Relaxed);
        let granted: Vec<String> = scopes.iter().filter(|scope| known || scope.ends_with(":pull")).cloned().collect();
        let (status, content) = match fault {
            Some(status) => (status, json!({"details": "a fault"})),
            None if !is_exchange && request.method != "GET" => {
                (StatusCode::METHOD_NOT_ALLOWED, json!({"details": "only GET and POST"}))
            }
            None if !known && !anonymous => {
                (StatusCode::UNAUTHORIZED, json!({"details": "incorrect username or password"}))
            }
            None => match self.issuer.issue(if known { "user" } else { "" }, &granted) {
                Ok(token) => (StatusCode::OK, self.content(&token)),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, json!({"details": error.to_string()})),
            },
        };
        locked(&self.requests).push(TokenRequest {
            authorized: authorization.is_some(),
            service: values("service").pop(),
            scopes,
            status: status.as_u16(),
        });
        let mut response = Response::new(full(content.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, http::HeaderValue::from_static("Basic realm=\"pillion-tests\""));
        }
        response
    }

    fn content(&self, token: &str) -> Value {
        json!({"token": token, "access_token": token, "expires_in": self.issuer.lifetime.load(Relaxed)})
    }
}

/// A value of a query, without its percent encoding.
fn decoded(value: &str) -> String {
    let mut bytes = value.bytes();
    let mut plain = Vec::with_capacity(value.len());
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).unwrap_or_default();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit(bytes.next()) * 16 + digit(bytes.next())).unwrap_or_default(),
            byte => byte,
        });
    }
    String::from_utf8_lossy(&plain).into_owned()
}
