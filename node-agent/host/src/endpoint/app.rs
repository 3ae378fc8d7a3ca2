//! A Spin application behind an endpoint: which of its components answers a request, and what the host answers by itself.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use pillion_protocol::component::{ComponentSpec, Variable};

use super::served::Part;
use crate::spin::{self, Found, Handler, Router, Seen, Settings, VariableError};

/// An application, ready to be asked.
#[derive(Debug)]
pub struct App {
    app: spin::App,
    router: Router,
    /// For each route, which part answers; `None` where the answer is fixed.
    parts: Vec<Option<usize>>,
}

/// A component's own name and settings within its application.
#[derive(Debug)]
pub struct Own {
    /// Its id in the application.
    pub id: Box<str>,
    /// Its settings.
    pub settings: Settings,
}

/// A component of an application whose settings cannot be found out.
#[derive(Debug, thiserror::Error)]
#[error("component {component:?}: {error}")]
pub struct Unset {
    component: String,
    error: VariableError,
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
    /// the variable's default; what `spec.env` says, more than the component's own.
    ///
    /// # Errors
    ///
    /// A variable without a value; a host that guests cannot call here.
    pub fn new(app: spin::App, parts: Vec<Part>, spec: &ComponentSpec) -> Result<(Self, Vec<Part>), Unset> {
        let pairs =
            |variables: &[Variable]| variables.iter().map(|v| (v.name.clone(), v.value.clone())).collect::<Vec<_>>();
        let given = pairs(&spec.config);
        let mut own = Vec::with_capacity(parts.len());
        for ((id, component), part) in app.components.iter().zip(parts) {
            let unset = |error| Unset { component: id.clone(), error };
            let mut settings = app.settings_of(component, &given).map_err(unset)?;
            settings.env.retain(|(name, _)| spec.env.iter().all(|given| given.name != *name));
            settings.env.extend(pairs(&spec.env));
            settings.allowed_outbound_hosts.extend(spec.allowed_outbound_hosts.iter().cloned());
            own.push(Part { own: Some(Box::new(Own { id: id.as_str().into(), settings })), ..part });
        }
        let index = |handler: &Handler| match handler {
            Handler::Component(id) => app.components.keys().position(|known| known == id),
            Handler::Static(_) => None,
        };
        let parts = app.routes.iter().map(|route| index(&route.handler)).collect();
        Ok((Self { router: Router::new(&app.routes), parts, app }, own))
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
        if let Some(Some(part)) = self.parts.get(found.route) {
            let told = told(&found, request, client);
            let headers = request.headers_mut();
            spin::strip(headers);
            told.into_iter().for_each(|(name, value)| _ = headers.append(name, value));
            return Answers::Part(*part);
        }
        Answers::Host(match self.app.routes.get(found.route).map(|route| &route.handler) {
            Some(Handler::Static(fixed)) => {
                let mut response = answer(fixed.status, None, fixed.body.clone().unwrap_or_default());
                add(response.headers_mut(), &fixed.headers);
                response
            }
            _ => answer(StatusCode::NOT_FOUND.as_u16(), None, String::new()),
        })
    }
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

fn add(headers: &mut HeaderMap, more: &[(String, String)]) {
    for (name, value) in more {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
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
