//! Spin applications, as `spin registry push` writes them: who answers which path, what a guest is told and given, and what is refused
//! by its name.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use pillion_tests::{
    Answer, Component, Connection, Host, Protocol, Raw,
    client::{empty, full, request},
    get,
    host::Builder,
    place, process,
    program::pillion,
    registry::{Artifact, Registry, SpinComponent, digest, spin_lock},
    upstream::Upstream,
    wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const UPSTREAM: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nupstream\n";

/// The type of a locked application, as a layer or as a config.
const LOCK: &str = "application/vnd.fermyon.spin.application.v1+config";

/// A registry with a test's artifacts.
struct Shelf(Registry);

impl Shelf {
    async fn new() -> Result<Self> {
        Ok(Self(Registry::start().await?))
    }

    /// Pushes an artifact under a name, and gives a component of it of the same name.
    async fn component(&self, name: &str, artifact: &Artifact) -> Result<Component> {
        artifact.push(&self.0, &format!("{name}:1")).await?;
        Ok(Component::image(name, &self.reference(name)))
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}:1", self.0.numeric_host())
    }

    fn host(&self, components: impl IntoIterator<Item = Component>) -> Builder {
        Host::of(components).args(["--plain-http", &self.0.numeric_host()])
    }
}

/// A guest's layer, and its digest.
fn layer(guest: &str) -> Result<((&'static str, Bytes), String)> {
    let bytes = Bytes::from(fs::read(place::guest(guest)?)?);
    let digest = digest(&bytes);
    Ok(((Artifact::SPIN_WASM, bytes), digest))
}

/// Sets something of a lock; `/-` at the end of the pointer appends to a list.
fn set(lock: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let (parent, key) = pointer.rsplit_once('/').context("a pointer begins with a slash")?;
    match lock.pointer_mut(parent).with_context(|| format!("there is no {parent}"))? {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => *list.get_mut(key.parse::<usize>()?).context("no such item")? = value,
        object => object[key] = value,
    }
    Ok(())
}

/// A trigger that Spin would write for this route.
fn trigger(config: Value) -> Value {
    json!({"id": format!("trigger of {}", config["route"]), "trigger_type": "http", "trigger_config": config})
}

/// An application of both generations. Components of one code tell who they are by their environment. `rest` and `calls` may call
/// the port `upstream`.
fn toys(upstream: u16) -> Result<(Value, Artifact)> {
    let ((echo, echo_digest), (hello, hello_digest)) = (layer("spin-echo")?, layer("hello-wasip2")?);
    let (faults, faults_digest) = layer("faults-p2")?;
    let upstream = [&*format!("http://127.0.0.1:{upstream}")];
    let components: [SpinComponent<'_>; 6] = [
        ("rest", &echo_digest, &[("ROLE", "rest"), ("OWN", "of rest"), ("EMPTY", "")], &upstream),
        ("named", &echo_digest, &[("ROLE", "named")], &[]),
        ("deep", &echo_digest, &[("ROLE", "deep")], &[]),
        ("hello", &hello_digest, &[], &[]),
        ("faults", &faults_digest, &[("ROLE", "faults")], &[]),
        ("calls", &faults_digest, &[("ROLE", "calls")], &upstream),
    ];
    let routes = [
        ("/...", "rest"),
        ("/hello/:user_Id/...", "deep"),
        ("/hello/:user_Id", "named"),
        ("/hello/exact", "hello"),
        ("/env", "faults"),
        ("/log", "faults"),
        ("/trap", "faults"),
        ("/out", "calls"),
    ];
    let mut lock = spin_lock("toys", &components, &routes);
    set(&mut lock, "/triggers/-", trigger(json!({"component": "hello", "route": {"private": true}})))?;
    for (route, response) in [
        ("/robots.txt", json!({"headers": {"content-type": "text/plain", "x-fixed": "yes"}, "body": "Disallow:\n"})),
        ("/old/...", json!({"status_code": 302, "headers": {"location": "/new"}})),
        ("/nothing", json!({"status_code": 204, "body": "of no use"})),
    ] {
        set(&mut lock, "/triggers/-", trigger(json!({"route": route, "static_response": response})))?;
    }
    let artifact = Artifact::spin(&lock, vec![echo, hello, faults]);
    Ok((lock, artifact))
}

/// [`toys`], served, without anybody to call.
async fn served_toys(set: impl Fn(Component) -> Component) -> Result<(Shelf, Host)> {
    let shelf = Shelf::new().await?;
    let (_, artifact) = toys(1)?;
    let component = shelf.component("toys", &artifact).await?;
    let host = shelf.host([set(component)]).start().await?;
    ensure!(host.events_of("failed").is_empty(), "{:?}", host.events());
    Ok((shelf, host))
}

/// An application of one component, `echo`, that answers every path; and its lock changed so.
fn echo(changes: &[(&str, Value)]) -> Result<Artifact> {
    let (layer, digest) = layer("spin-echo")?;
    let mut lock = spin_lock("echo", &[("echo", &digest, &[], &[])], &[("/...", "echo")]);
    changes.iter().try_for_each(|(pointer, value)| set(&mut lock, pointer, value.clone()))?;
    Ok(Artifact::spin(&lock, vec![layer]))
}

/// Who answered: a static text, or the component that `spin-echo` says it is.
fn who(answer: &Answer) -> String {
    answer.json()["env"]["ROLE"].as_str().map_or_else(|| answer.text(), str::to_owned)
}

/// The names and texts of an object.
fn texts(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|&(name, value)| (name.to_owned(), Value::from(value))).collect::<serde_json::Map<_, _>>().into()
}

#[tokio::test]
async fn a_path_leads_to_the_most_specific_route_however_the_application_is_named() -> Result<()> {
    let shelf = Shelf::new().await?;
    let (_, artifact) = toys(1)?;
    let component = shelf.component("toys", &artifact).await?.instances(100);
    let digest = artifact.push(&shelf.0, "shop/my_toys:2").await?;
    let port = place::free_port()?;
    let image = format!("{}/shop/my_toys:2={port}", shelf.0.numeric_host());
    let host = shelf.host([component]).args(["--image", &image]).start().await?;
    assert_eq!(host.event("serving").context("serving")?["ready"], 2, "{:?}", host.events());
    for ready in host.events_of("ready") {
        assert_eq!(ready["digest"], digest, "the manifest's");
    }
    assert!(host.events_of("ready").iter().any(|ready| ready["component"] == "my-toys" && ready["port"] == port));
    let table = [
        ("/", "rest"),
        ("/hello", "rest"),
        ("/hello/", "rest"),
        ("/HELLO/exact", "rest"),
        ("/env/more", "rest"),
        ("/hello/exact", "hello\n"),
        ("/hello/exact/", "hello\n"),
        ("/hello/exact?q=/hello/ann", "hello\n"),
        ("/hello/ann", "named"),
        ("/hello/ann/", "named"),
        ("/hello/ann/b/c", "deep"),
        ("/hello/exact/more", "deep"),
        ("/env?name=ROLE", "faults"),
        ("/robots.txt", "Disallow:\n"),
        ("/robots.txt/more", "rest"),
    ];
    for port in [host.port("toys")?, port] {
        for protocol in Protocol::ALL {
            let mut connection = Connection::open(protocol, port).await?;
            // The second time p3 instances are there already: each is of its own component only.
            for (path, expected) in table.iter().chain(&table) {
                let answer = connection.get(path).await?;
                assert_eq!((answer.status.as_u16(), who(&answer).as_str()), (200, *expected), "{protocol:?} {path}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_is_told_exactly_what_spin_tells_it() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    let port = host.port("toys")?;
    // What it is told beside its URL, the caller's address and the base path.
    let told = |path_info, route, prefix| {
        vec![
            ("spin-path-info", path_info),
            ("spin-matched-route", route),
            ("spin-raw-component-route", route),
            ("spin-component-route", prefix),
        ]
    };
    let with = |mut told: Vec<(&'static str, &'static str)>, user| {
        told.push(("spin-path-match-user-id", user));
        told
    };
    let (named, deep) = ("/hello/:user_Id", "/hello/:user_Id/...");
    let table = [
        ("/", told("/", "/...", "")),
        ("/a//b/?c=d&e", told("/a//b/", "/...", "")),
        ("/hello/ann", with(told("", named, named), "ann")),
        ("/hello/a%20%2fb?x", with(told("", named, named), "a%20%2fb")),
        ("/hello/ann/b%20c/d/?q=1", with(told("/b%20c/d/", deep, named), "ann")),
    ];
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, port).await?;
        let address = connection.address().to_string();
        for (path, told) in &table {
            let url = format!("http://localhost:{port}{path}");
            let always = [("spin-full-url", &*url), ("spin-client-addr", &address), ("spin-base-path", "/")];
            let expected = texts(&[told.as_slice(), &always].concat());
            let mut forging = request("GET", path, empty())?;
            for (name, _) in always.iter().chain(told).copied().chain([("spin-path-match-forged", "")]) {
                for value in ["forged", "twice"] {
                    forging.headers_mut().append(http::HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
                }
            }
            for request in [request("GET", path, empty())?, forging] {
                let answer = connection.fetch(request).await?;
                assert_eq!(answer.json()["headers"], expected, "{protocol:?} {path}");
            }
        }
    }
    // Whom a caller without a `Host` has meant, and one that sends a whole URL.
    for (head, url) in [
        ("GET /old-fashioned HTTP/1.0\r\n\r\n", format!("http://localhost:{port}/old-fashioned")),
        ("GET http://a.example/b HTTP/1.1\r\nhost: a.example\r\n\r\n", "http://a.example/b".into()),
    ] {
        let answer = Raw::ask(port, head).await?;
        let body: Value = serde_json::from_slice(&answer.body).with_context(|| format!("{answer:?}"))?;
        assert_eq!(body["headers"]["spin-full-url"], *url, "{head}");
    }
    Ok(())
}

#[tokio::test]
async fn the_host_answers_by_itself_where_spin_does() -> Result<()> {
    let shelf = Shelf::new().await?;
    let (layer, digest) = layer("spin-echo")?;
    let lock =
        spin_lock("little", &[("echo", &digest, &[], &[])], &[("/a", "echo"), ("/.well-known/spin/...", "echo")]);
    let little = shelf.component("little", &Artifact::spin(&lock, vec![layer])).await?;
    let (_, artifact) = toys(1)?;
    let host = shelf.host([little, shelf.component("toys", &artifact).await?]).start().await?;
    let info = |name: &str| format!("{{\n  \"name\": \"{name}\",\n  \"version\": \"0.1.0\"\n}}");
    for protocol in Protocol::ALL {
        for name in ["little", "toys"] {
            let mut connection = Connection::open(protocol, host.port(name)?).await?;
            let answer = connection.get("/.well-known/spin/health").await?;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "OK"));
            let answer = connection.get("/.well-known/spin/info?x").await?;
            assert_eq!((answer.header("content-type"), answer.text()), ("application/json", info(name)));
            // Whatever the application's routes are.
            for path in ["/.well-known/spin/", "/.well-known/spin/other", "/.well-known/spin/health/more"] {
                let answer = connection.get(path).await?;
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (404, ""), "{name} {path}");
            }
        }
        let mut connection = Connection::open(protocol, host.port("little")?).await?;
        for path in ["/", "/b", "/a/b", "/%61"] {
            let answer = connection.get(path).await?;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (404, ""), "{protocol:?} {path}");
            // HTTP/2 has other ways to say that this is all.
            let length = answer.header("content-length");
            assert!(length == "0" || protocol == Protocol::H2, "{protocol:?} {path}: {answer:?}");
        }
        assert_eq!(connection.get("/a").await?.status, 200, "the connection goes on");
    }
    Ok(())
}

#[tokio::test]
async fn a_static_response_needs_no_guest() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, host.port("toys")?).await?;
        let answer = connection.get("/robots.txt").await?;
        assert_eq!((answer.header("content-type"), answer.header("x-fixed")), ("text/plain", "yes"));
        assert_eq!((answer.header("content-length"), answer.text().as_str()), ("10", "Disallow:\n"));
        let answer = connection.fetch(request("POST", "/old/a/b", full("a body"))?).await?;
        assert_eq!((answer.status.as_u16(), answer.header("location"), answer.text().as_str()), (302, "/new", ""));
        assert_eq!(connection.get("/hello/exact").await?.text(), "hello\n", "the connection goes on");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_host_answers_by_itself_has_no_body_where_http_allows_none() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, host.port("toys")?).await?;
        let heads = ["/robots.txt", "/.well-known/spin/health", "/.well-known/spin/info", "/trap", "/hello/exact"];
        let asked = heads.map(|path| ("HEAD", path)).into_iter().chain([("GET", "/nothing"), ("HEAD", "/nothing")]);
        for (method, path) in asked {
            let answer = connection.fetch(request(method, path, empty())?).await;
            let answer = answer.with_context(|| format!("{protocol:?}: {method} {path}"))?;
            let expected = [("/trap", 502), ("/nothing", 204)].into_iter().find(|(of, _)| *of == path);
            assert_eq!(answer.status, expected.map_or(200, |(_, status)| status), "{protocol:?}: {method} {path}");
            assert_eq!(answer.text(), "", "{protocol:?}: {method} {path}");
        }
        assert_eq!(connection.get("/hello/exact").await?.text(), "hello\n", "the connection goes on");
    }
    Ok(())
}

#[tokio::test]
async fn an_environment_is_its_components_own_and_spec_env_lies_over_it() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    let env = async |host: &Host, path: &str| {
        anyhow::Ok(get(Protocol::H1, host.port("toys")?, path).await?.json()["env"].clone())
    };
    assert_eq!(env(&host, "/").await?, texts(&[("ROLE", "rest"), ("OWN", "of rest"), ("EMPTY", "")]));
    assert_eq!(env(&host, "/hello/ann").await?, texts(&[("ROLE", "named")]));
    drop(host);
    let (_shelf, host) = served_toys(|component| component.env("OWN", "over").env("ALL", "of all")).await?;
    assert_eq!(
        env(&host, "/").await?,
        texts(&[("ROLE", "rest"), ("OWN", "over"), ("EMPTY", ""), ("ALL", "of all")]),
        "what it says itself stays where nothing else is said"
    );
    assert_eq!(env(&host, "/hello/ann").await?, texts(&[("ROLE", "named"), ("OWN", "over"), ("ALL", "of all")]));
    assert_eq!(get(Protocol::H2, host.port("toys")?, "/env?name=OWN").await?.text(), "over", "p2 too");
    Ok(())
}

/// An application of both generations with variables, all of which have a default but `token`.
fn with_variables() -> Result<Artifact> {
    let ((echo, echo_digest), (faults, faults_digest)) = (layer("spin-echo")?, layer("faults-p2")?);
    let components: [SpinComponent<'_>; 2] = [("echo", &echo_digest, &[], &[]), ("faults", &faults_digest, &[], &[])];
    let mut lock = spin_lock("variables", &components, &[("/...", "echo"), ("/config", "faults")]);
    set(
        &mut lock,
        "/variables",
        json!({"greeting": {"default": "hello"}, "token": {"secret": true}, "unused": {"default": "x"}}),
    )?;
    set(&mut lock, "/components/0/config", json!({"greeting": "{{ greeting }}, you", "auth": "Bearer {{token}}"}))?;
    set(&mut lock, "/components/1/config", json!({"greeting": "p2: {{greeting}}"}))?;
    Ok(Artifact::spin(&lock, vec![echo, faults]))
}

#[tokio::test]
async fn a_variable_is_its_default_or_what_spec_config_says() -> Result<()> {
    let shelf = Shelf::new().await?;
    let artifact = with_variables()?;
    let [default, given] = [shelf.component("default", &artifact).await?, shelf.component("given", &artifact).await?];
    let given = given.config("token", "t").config("greeting", "moin").config("auth", "is no variable");
    let host = shelf.host([default.config("token", "s3cret"), given]).start().await?;
    let ask = async |name: &str, variable: &str| {
        let answer = get(Protocol::H1, host.port(name)?, &format!("/?variable={variable}")).await?;
        anyhow::Ok(answer.json()["variable"].clone())
    };
    assert_eq!(ask("default", "greeting").await?, json!({"value": "hello, you"}));
    assert_eq!(ask("default", "auth").await?, json!({"value": "Bearer s3cret"}));
    assert_eq!(ask("given", "greeting").await?, json!({"value": "moin, you"}));
    assert_eq!(ask("given", "auth").await?, json!({"value": "Bearer t"}));
    // What the component does not name is not its to know, be it a variable of the application.
    for name in ["token", "unused", "other", "Not-A-Name"] {
        assert!(ask("given", name).await?["error"].is_string(), "{name}");
    }
    for (name, expected) in [("default", "p2: hello"), ("given", "p2: moin")] {
        let port = host.port(name)?;
        assert_eq!(get(Protocol::H1, port, "/config?name=greeting").await?.text(), expected);
        assert_eq!(get(Protocol::H1, port, "/config?name=auth").await?.status, 404, "the other component's");
    }
    assert!(host.log().iter().all(|line| !line.contains("s3cret")), "{:?}", host.log());
    Ok(())
}

#[tokio::test]
async fn a_variable_without_a_value_is_one_error_that_names_it() -> Result<()> {
    let shelf = Shelf::new().await?;
    let artifact = with_variables()?;
    let host = shelf.host([shelf.component("bad", &artifact).await?, good()?]).start().await?;
    let failed = host.events_of("failed");
    ensure!(failed.len() == 1 && failed[0]["reason"] == "component", "{failed:?}");
    let message = failed[0]["message"].as_str().unwrap_or_default();
    for expected in ["\"token\"", "has no default", "spec.config"] {
        assert!(message.contains(expected), "{message}");
    }
    let answer = get(Protocol::H1, host.port("bad")?, "/").await?;
    assert_eq!(answer.header("pillion-error"), "unavailable");
    assert_eq!(get(Protocol::H1, host.port("good")?, "/").await?.text(), "hello\n");
    drop(host);
    let store = place::shared_store()?.display().to_string();
    let (image, registry) = (format!("{}={}", shelf.reference("bad"), place::free_port()?), shelf.0.numeric_host());
    let ended = pillion(&["run", "--image", &image, "--plain-http", &registry, "--store", &store]).await?;
    let errors: Vec<_> = ended.stderr.lines().filter(|line| line.contains("error")).collect();
    ensure!(ended.code == Some(1) && errors.len() == 1 && errors[0].contains("\"token\""), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_component_calls_where_its_application_asks_to_within_what_the_resource_allows() -> Result<()> {
    let (listed, other) = (Upstream::answering(UPSTREAM).await?, Upstream::answering(UPSTREAM).await?);
    let shelf = Shelf::new().await?;
    let (mut lock, _) = toys(listed.port())?;
    set(&mut lock, "/variables", json!({"host": {"default": "127.0.0.1"}}))?;
    let template = format!("http://{{{{ host }}}}:{}", listed.port());
    set(&mut lock, "/components/0/metadata/allowed_outbound_hosts", json!([template]))?;
    let layers = ["spin-echo", "hello-wasip2", "faults-p2"].map(|guest| layer(guest).map(|(layer, _)| layer));
    let artifact = Artifact::spin(&lock, layers.into_iter().collect::<Result<_>>()?);
    let component = shelf.component("toys", &artifact).await?;
    let url = |upstream: &Upstream| format!("http://127.0.0.1:{}/", upstream.port());
    let p3 = async |port: u16, path: &str, url: String| {
        anyhow::Ok(get(Protocol::H1, port, &format!("{path}?get={url}")).await?.json()["get"].clone())
    };
    let p2 =
        async |port: u16, url: String| anyhow::Ok(get(Protocol::H1, port, &format!("/out?url={url}")).await?.status);
    // An artifact opens nothing by itself, nor does `artifact` open what is next to the host.
    for allowed in [None, Some("artifact"), Some("http://*:*")] {
        let component = allowed.into_iter().fold(component.clone(), Component::may_call);
        let host = shelf.host([component]).start().await?;
        let denied = p3(host.port("toys")?, "/", url(&listed)).await?;
        assert!(denied["error"].to_string().contains("HttpRequestDenied"), "{allowed:?}: {denied}");
        let said = "does not allow: calls there are denied";
        let warned = host.log().iter().any(|line| line.contains(said) && line.contains("{{ host }}"));
        assert!(warned, "{allowed:?}: {:?}", host.log());
        assert!(host.events_of("ready")[0]["allowedOutboundHosts"].is_null(), "{:?}", host.events());
    }
    // What the resource allows, those components may that ask for it, and nothing else; `calls` asks for it by its address.
    let wider = format!("http://*:{}", other.port());
    let allowed = component.may_call(url(&listed).trim_end_matches('/')).may_call(wider);
    let host = shelf.host([allowed]).start().await?;
    let port = host.port("toys")?;
    assert_eq!(p3(port, "/", url(&listed)).await?, json!({"status": 200, "body": "upstream\n"}));
    assert_eq!(p2(port, url(&listed)).await?, 200);
    for path in ["/hello/ann", "/hello/ann/b"] {
        let denied = p3(port, path, url(&listed)).await?;
        assert!(denied["error"].to_string().contains("HttpRequestDenied"), "{path} has not asked for it: {denied}");
    }
    let denied = p3(port, "/", url(&other)).await?;
    assert!(denied["error"].to_string().contains("HttpRequestDenied"), "{denied}");
    assert_eq!(p2(port, url(&other)).await?, 502);
    assert_eq!((listed.calls(), other.calls()), (2, 0), "nothing more was reached");
    let shown = json!([format!("http://127.0.0.1:{}", listed.port()), template]);
    assert_eq!(host.events_of("ready")[0]["allowedOutboundHosts"], shown);
    let seen = pillion(&["inspect", &shelf.reference("toys"), "--plain-http", &shelf.0.numeric_host()]).await?;
    assert!(seen.stdout.contains("asks for \"http://{{ host }}:"), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_log_line_says_which_component_of_which_application_wrote_it() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    assert_eq!(get(Protocol::H1, host.port("toys")?, "/log?lines=2&bytes=20").await?.status, 200);
    let lines =
        wait_until("three lines", Duration::from_secs(5), || Some(host.guest_lines()).filter(|lines| lines.len() >= 3));
    for line in lines.await? {
        assert_eq!((&line["component"], &line["binding"]), (&"toys/faults".into(), &"toys".into()), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_trap_in_one_component_is_ours_to_answer_and_the_others_serve_on() -> Result<()> {
    let (_shelf, host) = served_toys(|component| component).await?;
    for protocol in Protocol::ALL {
        let mut connection = Connection::open(protocol, host.port("toys")?).await?;
        for _ in 0..3 {
            let answer = connection.get("/trap").await?;
            assert_eq!((answer.status.as_u16(), answer.header("pillion-error")), (502, "trap"), "{protocol:?}");
            let said = answer.json();
            assert_eq!((&said["component"], &said["binding"]), (&"toys".into(), &"toys".into()), "{said}");
            for (path, expected) in [("/", "rest"), ("/hello/exact", "hello\n"), ("/env?name=ROLE", "faults")] {
                assert_eq!(who(&connection.get(path).await?), expected, "{protocol:?} {path}");
            }
        }
    }
    assert_eq!(host.events_of("worker").len(), 1, "the worker lives");
    Ok(())
}

#[tokio::test]
async fn the_next_worker_serves_the_application_though_its_registry_is_gone() -> Result<()> {
    let (mut shelf, host) = served_toys(|component| component).await?;
    shelf.0.stop();
    let worker = host.worker()?;
    process::signal(worker, Signal::KILL)?;
    wait_until("the end of the worker", Duration::from_secs(1), || (!process::runs(worker)).then_some(())).await?;
    for (path, expected) in [("/", "rest"), ("/hello/exact", "hello\n"), ("/env?name=ROLE", "faults")] {
        assert_eq!(who(&get(Protocol::H1, host.port("toys")?, path).await?), expected, "{path}");
    }
    assert_eq!(host.events_of("failed"), Vec::<Value>::new());
    Ok(())
}

#[tokio::test]
async fn a_lock_in_the_config_is_read_as_older_versions_of_spin_wrote_it() -> Result<()> {
    let (shelf, store) = (Shelf::new().await?, tempfile::tempdir()?);
    let ((echo, echo_digest), (hello, hello_digest)) = (layer("spin-echo")?, layer("hello-wasip2")?);
    let data = (Artifact::SPIN_DATA, Bytes::from("a static file that nobody names"));
    let data_digest = digest(&data.1);
    let components: [SpinComponent<'_>; 3] = [
        ("echo", &echo_digest, &[("ROLE", "old")], &[]),
        ("twin", &echo_digest, &[], &[]),
        ("hello", &hello_digest, &[], &[]),
    ];
    let lock = spin_lock("old", &components, &[("/...", "echo"), ("/twin", "twin"), ("/hello", "hello")]);
    let artifact = Artifact::spin_in_config(&lock, vec![echo, data, hello]);
    let component = shelf.component("old", &artifact).await?;
    let host = shelf.host([component]).store(store.path()).start().await?;
    for protocol in Protocol::ALL {
        for (path, expected) in [("/", "old"), ("/a/b", "old"), ("/hello", "hello\n")] {
            assert_eq!(who(&get(protocol, host.port("old")?, path).await?), expected, "{protocol:?} {path}");
        }
        assert_eq!(get(protocol, host.port("old")?, "/twin").await?.json()["env"], json!({}));
    }
    let blobs = shelf.0.requests().await.blobs();
    let many = |digest: &str| blobs.get(&format!("/v2/old/blobs/{digest}")).copied().unwrap_or_default();
    assert_eq!([many(&echo_digest), many(&hello_digest), many(&data_digest)], [1, 1, 0], "what is needed, once");
    assert_eq!(host.events_of("compiling").len(), 2, "code of two components is made once");
    Ok(())
}

fn good() -> Result<Component> {
    Component::guest("good", "hello-wasip2")
}

/// A component of 90 bytes or so that imports an interface and does nothing. Its sections: a type, an instance without anything in it;
/// an import of that type; an export of what was imported under the name of an HTTP handler.
fn importing(interface: &str) -> Vec<u8> {
    let name = |name: &str| [&[0, u8::try_from(name.len()).unwrap_or_default()], name.as_bytes()].concat();
    let section = |id, content: Vec<u8>| [vec![id, u8::try_from(content.len()).unwrap_or_default()], content].concat();
    let import = [vec![1], name(interface), vec![5, 0]].concat();
    let export = [vec![1], name("wasi:http/incoming-handler@0.2.0"), vec![5, 0, 0]].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(7, vec![1, 0x42, 0]), section(10, import), section(11, export)].concat()
}

/// An application whose only component has this code.
fn of_code(code: Vec<u8>) -> Artifact {
    let lock = spin_lock("code", &[("part", &digest(&code), &[], &[])], &[("/...", "part")]);
    Artifact::spin(&lock, vec![(Artifact::SPIN_WASM, code.into())])
}

/// An application whose lock is this text.
fn of_lock(lock: &str) -> Result<Artifact> {
    let ((media_type, bytes), _) = layer("hello-wasip2")?;
    Ok(Artifact::new("application/vnd.oci.image.config.v1+json", "{}")
        .layer(media_type, bytes)
        .layer(LOCK, lock.to_owned()))
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_by_its_name_and_costs_nobody_else_anything() -> Result<()> {
    let component = |key: &str, value: Value| echo(&[(&format!("/components/0/{key}"), value)]);
    let hosts = |host: &str| component("metadata/allowed_outbound_hosts", json!([host]));
    let read = "read the Spin application";
    let nowhere = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    // Of what step, and in what words.
    let pulled = [
        (of_lock("no JSON")?, read, "this is no locked Spin application"),
        (of_lock("[]")?, read, "this is no locked Spin application"),
        (echo(&[("/spin_lock_version", json!(7))])?, read, "spin_lock_version 7 is not known: allowed are 0 and 1"),
        (echo(&[("/must_understand", json!(["warp_drive"]))])?, read, "must_understand names \"warp_drive\""),
        (
            echo(&[("/host_requirements", json!({"local_service_chaining": "required"}))])?,
            read,
            "requires \"local_service_chaining\"",
        ),
        (
            echo(&[(
                "/triggers/-",
                json!({"id": "queue", "trigger_type": "redis", "trigger_config": {"component": "echo"}}),
            )])?,
            read,
            "trigger \"queue\" is of type \"redis\": only http triggers are served",
        ),
        (component("files", json!([{"path": "/index.html", "content": "x"}]))?, read, "has the file \"/index.html\""),
        (
            component("metadata/key_value_stores", json!(["default"]))?,
            read,
            "component \"echo\" uses \"default\" of key_value_stores",
        ),
        (component("dependencies", json!({"acme:a/b": {}}))?, read, "is not composed with \"acme:a/b\""),
        (component("source/digest", json!(nowhere))?, read, nowhere),
        (component("source/digest", json!("sha256:../../x"))?, read, "\"sha256:../../x\" is no digest"),
        (echo(&[("/triggers/0/trigger_config/component", json!("ghost"))])?, read, "\"ghost\" is named by a trigger"),
        (echo(&[("/triggers/0/trigger_config/executor", json!({"type": "wagi"}))])?, read, "the executor \"wagi\""),
    ];
    // These are whole, but cannot be made to run.
    let prepared = [
        (of_code(importing("fermyon:spin/key-value@2.0.0")), "fermyon:spin/key-value@2.0.0"),
        (of_code(fs::read(place::guest("imports-unknown")?)?), "acme:missing/thing@1.2.3"),
        (of_code(fs::read(place::guest("core-module")?)?), "core WebAssembly module"),
        (hosts("redis://*:*")?, "\"redis://*:*\" of allowed_outbound_hosts"),
        (hosts("http://self")?, "calls within an application are not served"),
    ];
    let shelf = Shelf::new().await?;
    let mut components = vec![good()?];
    let mut expected = Vec::new();
    for (number, (artifact, step, words)) in pulled.iter().enumerate() {
        let name = format!("pulled-{number}");
        components.push(shelf.component(&name, artifact).await?);
        expected.push((name.clone(), "image", vec![shelf.reference(&name), (*step).to_owned(), (*words).to_owned()]));
    }
    for (number, (artifact, words)) in prepared.iter().enumerate() {
        let name = format!("prepared-{number}");
        components.push(shelf.component(&name, artifact).await?);
        expected.push((name, "component", vec![(*words).to_owned()]));
    }
    let store = tempfile::tempdir()?;
    let host = shelf.host(components).store(store.path()).start().await?;
    for (name, reason, words) in &expected {
        let failed: Vec<_> =
            host.events_of("failed").into_iter().filter(|failed| failed["component"] == **name).collect();
        ensure!(failed.len() == 1 && failed[0]["reason"] == *reason, "{name}: {words:?}: {failed:?}");
        let message = failed[0]["message"].as_str().unwrap_or_default();
        for words in words {
            assert!(message.contains(words.as_str()), "{name}: expected {words:?}: {message}");
        }
        assert!(!message.contains('\n') && message.len() < 2_000, "one line is enough: {message}");
        let answer = get(Protocol::H1, host.port(name)?, "/.well-known/spin/health").await?;
        assert_eq!((answer.status.as_u16(), answer.header("pillion-error")), (503, "unavailable"), "{name}");
        assert_eq!(answer.json()["detail"], message, "{name}");
    }
    let serving = host.event("serving").context("no event `serving`")?;
    assert_eq!((&serving["ready"], &serving["failed"]), (&1.into(), &expected.len().into()));
    assert_eq!(get(Protocol::H1, host.port("good")?, "/").await?.text(), "hello\n");
    assert_eq!(host.events_of("worker").len(), 1, "the worker lives");
    let held = |folder: &str| -> Result<BTreeSet<String>> {
        let entries = fs::read_dir(store.path().join(folder))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    assert_eq!(held("tmp")?, BTreeSet::new(), "nothing partial stays");
    assert_eq!(held("images")?.len(), prepared.len(), "no lock that was refused is kept");
    for name in held("artifacts")? {
        assert_eq!(digest(&fs::read(store.path().join("artifacts").join(&name))?), format!("sha256:{name}"));
    }
    Ok(())
}

#[tokio::test]
async fn a_component_in_the_lock_itself_takes_nobody_elses_place() -> Result<()> {
    // Spin leaves out layers of up to 128 bytes, and writes them into the lock.
    let code = importing("wasi:http/types@0.2.0");
    assert!(code.len() <= 128);
    let shelf = Shelf::new().await?;
    let (layer, digest) = layer("hello-wasip2")?;
    let mut lock = spin_lock("inline", &[("b", &digest, &[], &[])], &[("/...", "b"), ("/a", "a")]);
    let source = json!({"content_type": "application/wasm", "inline": BASE64_STANDARD_NO_PAD.encode(code)});
    set(&mut lock, "/components/-", json!({"id": "a", "source": source}))?;
    let component = shelf.component("inline", &Artifact::spin(&lock, vec![layer])).await?;
    let host = shelf.host([component, good()?]).start().await?;
    // It does nothing, so the application is refused, or it traps.
    let port = host.port("inline")?;
    let refused = !host.events_of("failed").is_empty();
    for (path, expected) in [("/a", if refused { 503 } else { 502 }), ("/", if refused { 503 } else { 200 })] {
        let answer = get(Protocol::H1, port, path).await?;
        ensure!(answer.status == expected, "{path}: expected {expected}: {} {}", answer.status, answer.text());
    }
    Ok(())
}
