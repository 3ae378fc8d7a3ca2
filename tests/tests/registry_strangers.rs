//! A registry is a stranger: whom it has us ask, who is told a login because of it, and what of its words people are shown.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use pillion_tests::{
    place,
    program::{Ended, pillion_with},
    registry::{Artifact, Fault, FaultProxy, Registry, Seen, docker_config},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const USER: &str = "ann";
const PASSWORD: &str = "hunter2";
/// What a server that nobody meant to ask would say.
const SECRET: &str = "the-secret-of-another-server";

/// A registry with `hello:1` that answers for a front, and somebody else that the front may name.
struct Setup {
    front: FaultProxy,
    other: FaultProxy,
    folder: TempDir,
    _registry: Registry,
}

impl Setup {
    async fn new() -> Result<Self> {
        let registry = Registry::start().await?;
        Artifact::wasm(fs::read(place::guest("hello-wasip2")?)?).push(&registry, "hello:1").await?;
        let (front, other) = (FaultProxy::start(&registry)?, FaultProxy::start(&registry)?);
        Ok(Self { front, other, folder: tempfile::tempdir()?, _registry: registry })
    }

    /// The front wants a token of the other one, which answers with a status and [`SECRET`].
    fn names_the_other(&self, code: u16) {
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", self.other.numeric_host());
        let headers = vec![("www-authenticate".to_owned(), challenge)];
        self.front.fault(|seen| seen.path == "/v2/", Fault::Status { code: 401, headers, body: Bytes::new() });
        let body = Bytes::from_static(SECRET.as_bytes());
        self.other.fault(|_| true, Fault::Status { code, headers: Vec::new(), body });
    }

    /// Pulls with these settings of the front and of others, as [`USER`] if `knows`.
    async fn pull(&self, own: Value, others: Value, knows: bool) -> Result<Ended> {
        let config = if knows { docker_config(&self.front.host(), USER, PASSWORD) } else { json!({}) };
        let mut registries = json!({self.front.host(): own});
        if let (Value::Object(all), Value::Object(others)) = (&mut registries, others) {
            all.extend(others);
        }
        pull(&self.folder, &format!("{}/hello:1", self.front.host()), &config, &registries, &[]).await
    }
}

async fn pull(
    folder: &TempDir,
    reference: &str,
    config: &Value,
    registries: &Value,
    variables: &[(&str, &str)],
) -> Result<Ended> {
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    fs::write(file("config.json"), config.to_string())?;
    let settings = json!({"dockerConfig": "config.json", "timeout": "2s", "registries": registries});
    fs::write(file("registries.yaml"), settings.to_string())?;
    let store = tempfile::tempdir()?;
    let (store, registries) = (store.path().display().to_string(), file("registries.yaml").display().to_string());
    pillion_with(&["pull", reference, "--store", &store, "--registries", &registries], variables).await
}

fn is_refused(ended: &Ended, expected: &str) -> Result<()> {
    ensure!(ended.code == Some(1) && ended.stderr.contains(expected), "{expected}: {ended:?}");
    ensure!(!ended.stderr.contains(SECRET) && !ended.stderr.contains(PASSWORD), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_next_to_us_is_not_asked_because_a_registry_says_so() -> Result<()> {
    let setup = Setup::new().await?;
    setup.names_the_other(403);
    is_refused(&setup.pull(json!({"plainHttp": true}), json!({}), false).await?, "is next to this machine")?;
    setup.front.clear();
    let elsewhere = Fault::Redirect { base: format!("http://{}", setup.other.numeric_host()) };
    setup.front.fault(Seen::gets_blob, elsewhere.clone());
    is_refused(&setup.pull(json!({"plainHttp": true}), json!({}), false).await?, "is next to this machine")?;
    ensure!(setup.other.seen().is_empty(), "{:?}", setup.other.seen());
    // Who names it means it.
    setup.other.clear();
    let named = setup.pull(json!({"plainHttp": true}), json!({setup.other.numeric_host(): {}}), false).await?;
    ensure!(named.code == Some(0) && !setup.other.seen().is_empty(), "{named:?}");
    Ok(())
}

#[tokio::test]
async fn a_login_is_told_to_nobody_but_the_registrys_owner_or_whom_the_settings_name() -> Result<()> {
    let setup = Setup::new().await?;
    setup.names_the_other(403);
    let other = setup.other.numeric_host();
    let ended = setup.pull(json!({"plainHttp": true}), json!({other.as_str(): {"plainHttp": true}}), true).await?;
    is_refused(&ended, "is of another domain, and is told no login")?;
    ensure!(ended.stderr.contains(&format!("tokenServers: [\"{other}\"]")), "{ended:?}");
    ensure!(setup.other.seen().is_empty(), "{:?}", setup.other.seen());
    // Whom the settings name is told, and not quoted.
    let ended = setup.pull(json!({"plainHttp": true, "tokenServers": [other]}), json!({}), true).await?;
    is_refused(&ended, "its token server gives no token: HTTP 403")?;
    ensure!(setup.other.seen().iter().all(Seen::authorized), "{:?}", setup.other.seen());
    ensure!(setup.other.seen().len() == 1, "a refusal is not asked again: {:?}", setup.other.seen());
    Ok(())
}

#[tokio::test]
async fn an_answer_is_told_by_its_status_and_the_protocols_codes() -> Result<()> {
    let setup = Setup::new().await?;
    let errors = json!({"errors": [{"code": "DENIED", "message": SECRET}, {"code": SECRET}]}).to_string();
    for (body, expected) in [(SECRET.to_owned(), "HTTP 403"), (errors, "HTTP 403: DENIED")] {
        let body = Bytes::from(body);
        setup.front.clear();
        setup
            .front
            .fault(|seen| seen.path.contains("/manifests/"), Fault::Status { code: 403, headers: Vec::new(), body });
        is_refused(&setup.pull(json!({"plainHttp": true}), json!({}), false).await?, expected)?;
    }
    Ok(())
}

/// As `az acr login` leaves it, in the file and by a helper.
#[tokio::test]
async fn an_identity_token_is_exchanged_for_one_that_is_good_for_the_repository() -> Result<()> {
    let registry = Registry::with_token_server(USER, PASSWORD).await?;
    Artifact::wasm(fs::read(place::guest("hello-wasip2")?)?).push(&registry, "hello:1").await?;
    let (host, tokens) = (registry.host(), registry.token_server()?);
    let before = tokens.requests().len();
    let registries =
        json!({host.as_str(): {"plainHttp": true, "tokenServers": [format!("127.0.0.1:{}", tokens.port())]}});
    let folder = tempfile::tempdir()?;
    let reference = format!("{host}/hello:1");
    let config = |token: &str| json!({"auths": {host.as_str(): {"auth": "MDAwMDAwMDA6", "identitytoken": token}}});
    let pulled = pull(&folder, &reference, &config(&tokens.identity()), &registries, &[]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    let asked = tokens.requests().get(before).cloned().context("it was not asked")?;
    ensure!(!asked.authorized && asked.scopes == ["repository:hello:pull"], "{asked:?}");
    let refused = pull(&folder, &reference, &config(PASSWORD), &registries, &[]).await?;
    is_refused(&refused, "its token server gives no token: HTTP 401")?;
    let helper = folder.path().join("docker-credential-acr");
    let given = json!({"ServerURL": host, "Username": "<token>", "Secret": tokens.identity()});
    fs::write(&helper, format!("#!/bin/sh\ncat >/dev/null; echo '{given}'\n"))?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let config = json!({"credHelpers": {host.as_str(): "acr"}});
    let pulled = pull(&folder, &reference, &config, &registries, &[("PATH", &path)]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    let missing = pull(&folder, &reference, &config, &registries, &[]).await?;
    is_refused(&missing, "\"docker-credential-acr\" cannot be run")
}

#[tokio::test]
async fn a_registry_is_asked_by_the_proxy_of_the_environment_and_what_is_here_without() -> Result<()> {
    let setup = Setup::new().await?;
    let folder = tempfile::tempdir()?;
    let far = json!({"registry.pillion.test": {"plainHttp": true}});
    let proxy = format!("http://{}", setup.other.numeric_host());
    let pulled = pull(&folder, "registry.pillion.test/hello:1", &json!({}), &far, &[("HTTP_PROXY", &proxy)]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    let seen = setup.other.seen().len();
    ensure!(seen > 0, "the proxy was not asked");
    let none = [("HTTP_PROXY", proxy.as_str()), ("NO_PROXY", "pillion.test")];
    let ended = pull(&folder, "registry.pillion.test/hello:1", &json!({}), &far, &none).await?;
    ensure!(ended.code == Some(1) && setup.other.seen().len() == seen, "{ended:?}");
    // No proxy for what is on this machine.
    let here = json!({setup.front.host(): {"plainHttp": true}});
    let reference = format!("{}/hello:1", setup.front.host());
    let pulled = pull(&folder, &reference, &json!({}), &here, &[("http_proxy", &proxy)]).await?;
    ensure!(pulled.code == Some(0) && setup.other.seen().len() == seen, "{pulled:?}");
    // With TLS: by CONNECT.
    let (port, asked) = connects()?;
    let proxy = format!("http://127.0.0.1:{port}");
    let ended =
        pull(&folder, "registry.pillion.test/hello:1", &json!({}), &json!({}), &[("HTTPS_PROXY", &proxy)]).await?;
    let line = asked.join().map_err(|_| anyhow::anyhow!("the proxy has failed"))??;
    ensure!(ended.code == Some(1) && line.starts_with("CONNECT registry.pillion.test:443"), "{line:?} {ended:?}");
    Ok(())
}

/// A proxy that lets nobody through: its port, and the first line that it was told.
fn connects() -> Result<(u16, thread::JoinHandle<std::io::Result<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let hear = move || {
        let (mut stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")?;
        Ok(line)
    };
    Ok((port, thread::spawn(hear)))
}
