//! A Spin application behind an endpoint: which of its components answers a request, and what the host answers by itself.

use std::{collections::BTreeSet, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use pillion_protocol::{component::ComponentSpec, hosts::AllowedHost};

use super::served::Part;
use crate::{
    outbound::within,
    spin::{self, Found, Handler, Route, Router, Seen, Settings, VariableError},
};

/// The most bytes of all settings of an application together, and of all its fixed answers: an artifact says how many there are.
const BYTES: usize = 1 << 20;

/// The most hosts, and bytes of them, that people are shown of one component: a report has to hold those of a node.
const HOSTS_SHOWN: usize = 32;
const HOSTS_SHOWN_BYTES: usize = 2 << 10;

/// An application, ready to be asked.
#[derive(Debug)]
pub struct App {
    /// Where its components may call out to, for people.
    outbound: Vec<String>,
    app: spin::App,
    router: Router,
    /// For each route, who answers.
    handlers: Vec<Answering>,
}

/// Who answers a route.
#[derive(Debug)]
enum Answering {
    Part(usize),
    /// Always the same; its bytes are shared.
    Fixed(StatusCode, HeaderMap, Bytes),
}

/// A component's own name and settings within its application.
#[derive(Debug)]
pub struct Own {
    /// Its id in the application.
    pub id: Box<str>,
    /// Its settings.
    pub settings: Settings,
}

/// Settings of an application that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Unset {
    /// Those of one component.
    #[error("component {component:?}: {error}")]
    Variable {
        /// The component.
        component: String,
        /// What is wrong with them.
        error: VariableError,
    },
    /// All together.
    #[error(
        "the settings of its components, with the hosts that spec.allowedOutboundHosts lets them call, have more than {BYTES} bytes together, which are allowed"
    )]
    TooMuch,
}

/// Who answers a request.
pub enum Answers {
    /// This part; the request's headers say what Spin's guests want to know.
    Part(usize),
    /// The host.
    Host(Response<Full<Bytes>>),
}

impl App {
    /// An application whose components, in the order of their ids, are `parts`. What `spec.config` says of a variable counts more than
    /// the variable's default; what `spec.env` says, more than the component's own. Of the hosts that a component asks for, those count
    /// that `spec` allows.
    ///
    /// # Errors
    ///
    /// A variable without a value; a host that guests cannot call here; more settings than one application may have.
    pub fn new(app: spin::App, parts: Vec<Part>, spec: &ComponentSpec) -> Result<(Self, Vec<Part>), Unset> {
        let given: Vec<_> = spec.config.iter().map(|v| (v.name.clone(), v.value.clone())).collect();
        let (mut own, mut left, mut shown) = (Vec::with_capacity(parts.len()), BYTES, BTreeSet::new());
        for ((id, component), part) in app.components.iter().zip(parts) {
            let unset = |error| Unset::Variable { component: id.clone(), error };
            let mut settings = app.settings_of(component, &given).map_err(unset)?;
            left = left.checked_sub(size(&settings)).ok_or(Unset::TooMuch)?;
            let asked = std::mem::take(&mut settings.allowed_outbound_hosts);
            let mut outbound = Within::default();
            for (asked, text) in asked.iter().zip(&component.allowed_outbound_hosts) {
                outbound.add(asked, text, spec);
                left.checked_sub(outbound.hosts.len() * size_of::<AllowedHost>()).ok_or(Unset::TooMuch)?;
            }
            left = left.saturating_sub(outbound.hosts.len() * size_of::<AllowedHost>());
            outbound.warn(id);
            shown.extend(outbound.shown);
            settings.allowed_outbound_hosts = outbound.hosts;
            let own_settings = Own { id: id.as_str().into(), settings: with_spec(settings, spec) };
            own.push(Part { own: Some(Box::new(own_settings)), ..part });
        }
        let ids: Vec<_> = app.components.keys().collect();
        let handler = |route: &Route| match &route.handler {
            Handler::Component(id) => Answering::Part(ids.iter().position(|known| *known == id).unwrap_or(usize::MAX)),
            Handler::Static(fixed) => {
                let status = StatusCode::from_u16(fixed.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Answering::Fixed(status, headers(&fixed.headers), fixed.body.clone().unwrap_or_default().into())
            }
        };
        let handlers = app.routes.iter().map(handler).collect();
        Ok((Self { outbound: fit_to_be_shown(shown), router: Router::new(&app.routes), handlers, app }, own))
    }

    /// Where its components may call out to, in words, as far as people are shown it.
    pub(super) fn outbound(&self) -> &[String] {
        &self.outbound
    }

    /// Decides who answers, and tells the guest what Spin tells it.
    pub fn route<B>(&self, request: &mut Request<B>, client: SocketAddr) -> Answers {
        let path = request.uri().path();
        if let Some(known) = spin::well_known(path, &self.app) {
            return Answers::Host(answer(known.status, known.content_type, known.body));
        }
        let Some(found) = self.router.find(path) else {
            return Answers::Host(answer(StatusCode::NOT_FOUND.as_u16(), None, String::new()));
        };
        match self.handlers.get(found.route) {
            Some(Answering::Part(part)) => {
                let told = told(&found, request, client);
                let headers = request.headers_mut();
                spin::strip(headers);
                told.into_iter().for_each(|(name, value)| _ = headers.append(name, value));
                Answers::Part(*part)
            }
            Some(Answering::Fixed(status, headers, body)) => {
                let mut response = Response::new(Full::from(body.clone()));
                *response.status_mut() = *status;
                *response.headers_mut() = headers.clone();
                Answers::Host(response)
            }
            None => Answers::Host(answer(StatusCode::NOT_FOUND.as_u16(), None, String::new())),
        }
    }
}

/// What a component may call of what it asks for.
#[derive(Default)]
struct Within {
    hosts: Vec<AllowedHost>,
    /// The same for people, without variables' values: one may be a secret.
    shown: BTreeSet<String>,
    /// What it asks for in vain, for people.
    closed: BTreeSet<String>,
}

impl Within {
    /// It asks for a host, which `text` says in its application.
    fn add(&mut self, asked: &AllowedHost, text: &str, spec: &ComponentSpec) {
        let hosts = within(asked, &spec.allowed_outbound_hosts);
        let is_template = text.contains("{{");
        if hosts.is_empty() {
            self.closed.insert(if is_template { text.to_owned() } else { asked.to_string() });
        } else if is_template {
            self.shown.insert(text.to_owned());
        } else {
            self.shown.extend(hosts.iter().map(ToString::to_string));
        }
        self.hosts.extend(hosts);
    }

    fn warn(&self, id: &str) {
        if !self.closed.is_empty() {
            let hosts = fit_to_be_shown(self.closed.iter().cloned()).join(", ");
            tracing::warn!(
                component = id,
                %hosts,
                "a Spin application asks for hosts that spec.allowedOutboundHosts does not allow: calls there are denied; \
                 name them there, or write artifact for all but those next to the host"
            );
        }
    }
}

/// The first of these, and how many more there are.
pub(super) fn fit_to_be_shown(hosts: impl IntoIterator<Item = String>) -> Vec<String> {
    let (mut shown, mut bytes, mut more) = (Vec::new(), 0, 0_usize);
    for host in hosts {
        bytes += host.len();
        if more == 0 && shown.len() < HOSTS_SHOWN && bytes <= HOSTS_SHOWN_BYTES {
            shown.push(host);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown
}

/// What the component's own settings come to, with what the resource says.
fn with_spec(mut settings: Settings, spec: &ComponentSpec) -> Settings {
    settings.env.retain(|(name, _)| spec.env.iter().all(|given| given.name != *name));
    settings.env.extend(spec.env.iter().map(|v| (v.name.clone(), v.value.clone())));
    settings
}

fn size(settings: &Settings) -> usize {
    let pairs = settings.env.iter().chain(&settings.config).map(|(name, value)| name.len() + value.len());
    pairs.sum::<usize>() + settings.allowed_outbound_hosts.len() * size_of::<AllowedHost>()
}

fn told<B>(found: &Found<'_>, request: &Request<B>, client: SocketAddr) -> Vec<(HeaderName, HeaderValue)> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let path_and_query = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = host.or(authority).unwrap_or("localhost");
    spin::spin_headers(found, &Seen { scheme: "http", authority, path_and_query, client })
}

fn answer(status: u16, content_type: Option<&'static str>, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}

fn headers(pairs: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let lock = serde_json::json!({
            "spin_lock_version": 0,
            "metadata": {"name": "shop"},
            "triggers": [
                {"id": "1", "trigger_type": "http", "trigger_config": {"component": "front", "route": "/..."}},
                {"id": "2", "trigger_type": "http", "trigger_config": {"route": "/old", "static_response": {
                    "status_code": 302, "headers": {"location": "/new"}
                }}},
            ],
            "components": [{"id": "front", "source": {"content_type": "application/wasm", "digest": digest}}],
        });
        let app = spin::App::read(&serde_json::to_vec(&lock).unwrap()).unwrap();
        // What is asked here needs no code.
        let spec = ComponentSpec::new("./x.wasm".to_owned().try_into().unwrap());
        App::new(app, Vec::new(), &spec).unwrap().0
    }

    fn asked(path: &str) -> (Answers, HeaderMap) {
        let mut request = Request::builder().uri(path).header("host", "a.example").header("spin-path-info", "forged");
        request = request.header("spin-client-addr", "forged");
        let mut request = request.body(()).unwrap();
        let answers = app().route(&mut request, ([10, 0, 0, 7], 4321).into());
        (answers, request.headers().clone())
    }

    #[test]
    fn a_component_is_told_what_spin_tells_it_and_nothing_that_a_caller_made_up() {
        let (answers, headers) = asked("/a/b?c=d");
        assert!(matches!(answers, Answers::Part(0)));
        let values = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(values("spin-path-info"), ["/a/b"]);
        assert_eq!(values("spin-full-url"), ["http://a.example/a/b?c=d"]);
        assert_eq!(values("spin-client-addr"), ["10.0.0.7:4321"]);
    }

    #[test]
    fn what_is_shown_of_hosts_has_no_variables_value_and_an_end() {
        let mut spec = ComponentSpec::new("./x.wasm".to_owned().try_into().unwrap());
        let allowed = ["https://*.example:*", "http://localhost:3000"];
        spec.allowed_outbound_hosts = allowed.map(|host| host.to_owned().try_into().unwrap()).to_vec();
        let mut within = Within::default();
        for (asked, text) in [
            ("https://hunter2.example", "https://{{ host }}.example"),
            ("https://a.example", "https://a.example/"),
            ("https://a.test", "https://a.test"),
            ("http://169.254.169.254", "http://169.254.169.254"),
            ("https://hunter2.test", "https://{{ host }}.test"),
            ("http://*:*", "http://*:*"),
        ] {
            within.add(&asked.parse().unwrap(), text, &spec);
        }
        assert_eq!(
            within.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["https://hunter2.example:443", "https://a.example:443", "http://localhost:3000"]
        );
        let shown = ["http://localhost:3000", "https://a.example:443", "https://{{ host }}.example"];
        assert!(within.shown.iter().eq(&shown), "{:?}", within.shown);
        let closed = ["http://169.254.169.254:80", "https://a.test:443", "https://{{ host }}.test"];
        assert!(within.closed.iter().eq(&closed), "{:?}", within.closed);
        let many = fit_to_be_shown((0..100).map(|i| i.to_string()));
        assert_eq!((many.len(), many.last().unwrap().as_str()), (33, "and 68 more"));
        assert_eq!(fit_to_be_shown(["a".repeat(3_000)]), ["and 1 more"]);
    }

    #[test]
    fn some_answers_need_no_component() {
        let host = |path: &str| match asked(path).0 {
            Answers::Host(response) => response,
            Answers::Part(_) => panic!("{path} went to a component"),
        };
        assert_eq!(host("/.well-known/spin/health").status(), 200);
        assert_eq!(host("/.well-known/spin/other").status(), 404);
        let fixed = host("/old");
        assert_eq!(
            (fixed.status(), &fixed.headers()["location"]),
            (StatusCode::FOUND, &HeaderValue::from_static("/new"))
        );
    }
}
