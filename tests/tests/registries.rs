//! Components from registries: a real one, with passwords, tokens and an authority of its own.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, Host, Protocol, get, place,
    program::{Ended, pillion, pillion_with},
    registry::{Artifact, Fault, FaultProxy, Platform, Registry, Seen, docker_config},
    wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const USER: &str = "ann";
const PASSWORD: &str = "hunter2-is-no-password";

/// Settings for registries, and a store.
struct Laptop {
    folder: TempDir,
}

impl Laptop {
    fn new(registries: &Value, login: Option<&Registry>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut settings = json!({"timeout": "5s", "registries": registries});
        let config = login.map_or_else(|| json!({}), |registry| docker_config(&registry.host(), USER, PASSWORD));
        fs::write(folder.path().join("config.json"), config.to_string())?;
        settings["dockerConfig"] = json!("config.json");
        fs::write(folder.path().join("registries.yaml"), settings.to_string())?;
        Ok(Self { folder })
    }

    /// For a registry that speaks plain HTTP and asks nobody who they are.
    fn plain(hosts: &[String]) -> Result<Self> {
        let plain: serde_json::Map<_, _> =
            hosts.iter().map(|host| (host.clone(), json!({"plainHttp": true}))).collect();
        Self::new(&Value::Object(plain), None)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.file("store")
    }

    fn registries(&self) -> String {
        self.file("registries.yaml").display().to_string()
    }

    async fn run(&self, command: &str, args: &[&str]) -> Result<Ended> {
        let (store, registries) = (self.store().display().to_string(), self.registries());
        let mut line = [&[command], args, &["--registries", &registries]].concat();
        if command != "push" {
            line.extend(["--store", &store]);
        }
        pillion(&line).await
    }

    async fn serve(&self, components: impl IntoIterator<Item = Component>, args: &[&str]) -> Result<Host> {
        let registries = self.registries();
        let args = [args, &["--registries", &registries]].concat();
        Host::of(components).args(args).store(&self.store()).start().await
    }
}

fn hello() -> Result<String> {
    Ok(place::guest("hello-wasip2")?.display().to_string())
}

fn numbered(number: u32) -> Result<Vec<u8>> {
    place::numbered("hello-wasip2", number)
}

async fn answers(host: &Host, component: &str) -> Result<()> {
    let answer = get(Protocol::H1, host.port(component)?, "/").await?;
    ensure!(answer.text() == "hello\n", "{component}: {}", answer.text());
    Ok(())
}

/// Pushes, pulls, looks at and serves a component.
async fn round_trip(laptop: &Laptop, registry: &Registry) -> Result<()> {
    let (reference, file) = (format!("{}/acme/hello:1.0", registry.host()), hello()?);
    let pushed = laptop.run("push", &[&file, &reference, "-o", "json"]).await?;
    ensure!(pushed.code == Some(0), "{pushed:?}");
    let digest = serde_json::from_str::<Value>(&pushed.stdout)?["digest"].clone();
    let pulled = laptop.run("pull", &[&reference, "-o", "json"]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    let line: Value = serde_json::from_str(&pulled.stdout)?;
    ensure!(line["digest"] == digest && line["bytes"].as_u64() > Some(20_000), "{line}");
    let again = laptop.run("pull", &[&reference]).await?;
    ensure!(again.stdout.contains("was in the store"), "{again:?}");
    let inspected = laptop.run("inspect", &[&reference]).await?;
    ensure!(
        inspected.stdout.contains("wasi:http/incoming-handler") && inspected.stdout.contains("served   yes"),
        "{inspected:?}"
    );
    let host = laptop.serve([Component::image("hello", &reference)], &[]).await?;
    answers(&host, "hello").await?;
    let ready = host.event("ready").context("no event `ready`")?;
    ensure!(ready["digest"] == digest, "{ready}");
    let said = [pushed, pulled, again, inspected].map(|ended| ended.stdout + &ended.stderr).join("\n")
        + &host.log().join("\n");
    ensure!(!said.contains(PASSWORD), "a password is told: {said}");
    Ok(())
}

#[tokio::test]
async fn a_component_goes_through_a_registry_that_asks_for_nothing() -> Result<()> {
    let registry = Registry::start().await?;
    round_trip(&Laptop::plain(&[registry.host()])?, &registry).await
}

#[tokio::test]
async fn a_component_goes_through_a_registry_that_asks_for_a_password() -> Result<()> {
    let registry = Registry::with_htpasswd(USER, PASSWORD).await?;
    round_trip(&Laptop::new(&json!({registry.host(): {"plainHttp": true}}), Some(&registry))?, &registry).await
}

#[tokio::test]
async fn a_component_goes_through_a_registry_that_asks_for_a_token() -> Result<()> {
    let registry = Registry::with_token_server(USER, PASSWORD).await?;
    let settings = json!({registry.host(): {"plainHttp": true, "tokenServers": [token_server(&registry)?]}});
    round_trip(&Laptop::new(&settings, Some(&registry))?, &registry).await?;
    let asked = registry.token_server()?.requests();
    let scopes: BTreeSet<_> = asked.iter().flat_map(|request| request.scopes.clone()).collect();
    let expected = ["repository:acme/hello:pull", "repository:acme/hello:pull,push"];
    ensure!(scopes.iter().map(String::as_str).eq(expected), "no more than is needed: {scopes:?}");
    Ok(())
}

#[tokio::test]
async fn a_component_goes_through_a_registry_with_an_authority_of_its_own() -> Result<()> {
    let registry = Registry::with_tls_and_htpasswd(USER, PASSWORD).await?;
    let ca = registry.ca()?.display().to_string();
    round_trip(&Laptop::new(&json!({registry.host(): {"ca": ca}}), Some(&registry))?, &registry).await
}

#[tokio::test]
async fn who_is_not_known_is_told_so() -> Result<()> {
    let registry = Registry::with_htpasswd(USER, PASSWORD).await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let reference = format!("{}/hello:1", registry.host());
    let plain = json!({registry.host(): {"plainHttp": true}});
    let nobody = Laptop::new(&plain, None)?.run("pull", &[&reference]).await?;
    ensure!(nobody.code == Some(1) && nobody.stderr.contains("there are no credentials for it"), "{nobody:?}");
    let wrong = Laptop::new(&plain, None)?;
    fs::write(wrong.file("config.json"), docker_config(&registry.host(), "eve", "not-the-word").to_string())?;
    let wrong = wrong.run("pull", &[&reference]).await?;
    ensure!(wrong.code == Some(1) && wrong.stderr.contains("the credentials of \"eve\" are refused"), "{wrong:?}");
    ensure!(!wrong.stderr.contains("not-the-word"), "{wrong:?}");
    let wasm = place::guest("hello-wasip2")?.display().to_string();
    let push = Laptop::new(&plain, None)?.run("push", &[&wasm, &reference]).await?;
    ensure!(push.code == Some(1) && push.stderr.contains("there are no credentials for it"), "{push:?}");
    ensure!(!push.stderr.contains("asked"), "who is refused does not ask again: {push:?}");

    let tokens = Registry::with_token_server(USER, PASSWORD).await?;
    Artifact::wasm(numbered(1)?).push(&tokens, "hello:1").await?;
    let settings = json!({tokens.host(): {"plainHttp": true, "tokenServers": [token_server(&tokens)?]}});
    let laptop = Laptop::new(&settings, None)?;
    fs::write(laptop.file("config.json"), docker_config(&tokens.host(), "eve", "not-the-word").to_string())?;
    let refused = laptop.run("pull", &[&format!("{}/hello:1", tokens.host())]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("log in") && refused.stderr.contains("no token"),
        "{refused:?}"
    );
    Ok(())
}

/// The host of the token server that a registry names.
fn token_server(registry: &Registry) -> Result<String> {
    Ok(format!("127.0.0.1:{}", registry.token_server()?.port()))
}

fn program(path: &Path, script: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[tokio::test]
async fn credentials_come_from_the_kubelets_providers_and_from_helpers() -> Result<()> {
    let registry = Registry::with_htpasswd(USER, PASSWORD).await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let (host, reference) = (registry.host(), format!("{}/hello:1", registry.host()));
    let laptop = Laptop::new(&json!({host.as_str(): {"plainHttp": true}}), None)?;
    let given = json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry",
        "auth": {host.as_str(): {"username": USER, "password": PASSWORD}},
    });
    program(&laptop.file("acme-provider"), &format!("cat >/dev/null; echo '{given}'"))?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [{
            "name": "acme-provider", "matchImages": [host], "defaultCacheDuration": "1h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        }],
    });
    fs::write(laptop.file("providers.yaml"), config.to_string())?;
    let settings = json!({
        "dockerConfig": "config.json", "credentialProviders": {"config": "providers.yaml", "binDir": "."},
        "registries": {host.as_str(): {"plainHttp": true}},
    });
    fs::write(laptop.file("registries.yaml"), settings.to_string())?;
    // By the host: its supervisor is confined, and starts the provider all the same.
    let served = laptop.serve([Component::image("hello", &reference)], &[]).await?;
    answers(&served, "hello").await?;
    drop(served);

    let laptop = Laptop::new(&json!({host.as_str(): {"plainHttp": true}}), None)?;
    let given = json!({"ServerURL": host, "Username": USER, "Secret": PASSWORD});
    program(&laptop.file("docker-credential-acme"), &format!("cat >/dev/null; echo '{given}'"))?;
    fs::write(laptop.file("config.json"), json!({"credHelpers": {host.as_str(): "acme"}}).to_string())?;
    let path = format!("{}:{}", laptop.folder.path().display(), std::env::var("PATH")?);
    let args =
        ["pull", &reference, "--store", &laptop.store().display().to_string(), "--registries", &laptop.registries()];
    let pulled = pillion_with(&args, &[("PATH", &path)]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    Ok(())
}

#[tokio::test]
async fn the_short_form_serves_an_artifact() -> Result<()> {
    let registry = Registry::start().await?;
    let (file, reference, port) = (hello()?, format!("{}/hello:1", registry.host()), place::free_port()?);
    let pushed = pillion(&["push", &file, &reference, "--plain-http", &registry.host()]).await?;
    ensure!(pushed.code == Some(0), "{pushed:?}");
    let store = tempfile::tempdir()?;
    let args = ["--image".to_owned(), format!("{reference}={port}"), "--plain-http".into(), registry.host()];
    let host = Host::of([]).args(args).store(store.path()).start().await?;
    ensure!(get(Protocol::H1, port, "/").await?.text() == "hello\n");
    ensure!(host.event("ready").is_some_and(|ready| ready["component"] == "hello"), "it is named like its repository");
    // Plain HTTP is never tried where it was not asked for.
    let refused = pillion(&["pull", &reference, "--store", &store.path().join("other").display().to_string()]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("it does not speak TLS"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_tag_that_moves_is_noticed_and_nobody_fails() -> Result<()> {
    let registry = Registry::start().await?;
    let first = Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let component = Component::image("hello", &format!("{}/hello:1", registry.host()));
    let host = laptop.serve([component], &["--watch", "--tag-refresh", "1s"]).await?;
    ensure!(host.event("ready").is_some_and(|ready| ready["digest"] == first));
    let second = Artifact::wasm(numbered(2)?).push(&registry, "hello:1").await?;
    let end = Instant::now() + Duration::from_secs(20);
    let is_second = |event: &Value| event["event"] == "ready" && event["digest"] == second;
    while !host.events().iter().any(is_second) {
        ensure!(Instant::now() < end, "the tag's move was not noticed: {:?}", host.events());
        answers(&host, "hello").await?;
    }
    answers(&host, "hello").await?;
    // A tag that is gone, or leads to what cannot be served, changes nothing.
    Artifact::wasm(fs::read(place::guest("not-http")?)?).push(&registry, "hello:1").await?;
    host.wait_for("a failure", Duration::from_secs(20), |event| event["event"] == "failed").await?;
    answers(&host, "hello").await
}

#[tokio::test]
async fn a_restart_without_the_registry_serves_what_was_bound() -> Result<()> {
    let mut registry = Registry::start().await?;
    let digest = Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let tag = format!("{}/hello:1", registry.host());
    let components =
        || [Component::image("tag", &tag), Component::image("digest", &format!("{}/hello@{digest}", registry.host()))];
    drop(laptop.serve(components(), &[]).await?);
    let components = components();
    registry.stop();
    let began = Instant::now();
    let host = laptop.serve(components, &[]).await?;
    answers(&host, "tag").await?;
    answers(&host, "digest").await?;
    ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    ensure!(host.events_of("failed").is_empty() && host.events_of("compiling").is_empty(), "{:?}", host.events());
    let pulled = host.event("pulled").context("the registry was not asked where the tag leads")?;
    ensure!(pulled["stale"] == true && pulled["digest"] == digest, "{pulled}");
    let warned = host.log().iter().any(|line| line.contains("what the tag led to before is served"));
    ensure!(warned, "{:?}", host.log());
    Ok(())
}

/// Who we are cannot be found out, or where the registry is: what was bound is served nevertheless.
#[tokio::test]
async fn a_restart_with_broken_settings_serves_what_was_bound() -> Result<()> {
    let registry = Registry::start().await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let component = || Component::image("hello", &format!("{}/hello:1", registry.host()));
    drop(laptop.serve([component()], &[]).await?);
    fs::write(laptop.file("config.json"), "no JSON")?;
    let host = laptop.serve([component()], &[]).await?;
    answers(&host, "hello").await?;
    ensure!(host.log().iter().any(|line| line.contains("it is no docker config JSON")), "{:?}", host.log());
    Ok(())
}

/// A tag that leads to what cannot be had is told once, and what is served goes on, also in the next host.
#[tokio::test]
async fn a_tag_that_is_broken_is_told_and_changes_nothing() -> Result<()> {
    let registry = Registry::start().await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let component = || Component::image("hello", &format!("{}/hello:1", registry.host()));
    let host = laptop.serve([component()], &["--watch", "--tag-refresh", "1s"]).await?;
    Artifact::wasm(numbered(1)?).layer("application/wasm", "another").push(&registry, "hello:1").await?;
    let told = host.wait_for("a failure", Duration::from_secs(20), |event| event["event"] == "failed").await?;
    ensure!(told["message"].as_str().is_some_and(|message| message.contains("it has 2 layers")), "{told}");
    let asked = || host.events_of("pulling").len();
    let before = asked();
    wait_until("two more looks", Duration::from_secs(20), || (asked() > before + 2).then_some(())).await?;
    ensure!(host.events_of("failed").len() == 1, "it is told once: {:?}", host.events_of("failed"));
    answers(&host, "hello").await?;
    drop(host);
    let host = laptop.serve([component()], &[]).await?;
    answers(&host, "hello").await
}

/// What a tag leads to may turn out to be no component only when it is compiled: the next host, too, serves what was served before.
#[tokio::test]
async fn a_tag_that_leads_to_no_component_leaves_what_it_led_to_before() -> Result<()> {
    let mut registry = Registry::start().await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let reference = format!("{}/hello:1", registry.host());
    let component = Component::image("hello", &reference);
    drop(laptop.serve([component.clone()], &[]).await?);
    Artifact::wasm(&b"this is no component"[..]).push(&registry, "hello:1").await?;
    laptop.run("pull", &[&reference]).await?;
    for _ in 0..2 {
        let host = laptop.serve([component.clone()], &[]).await?;
        answers(&host, "hello").await?;
        let warned = host.log().iter().any(|line| line.contains("what the tag led to before is served"));
        ensure!(warned, "{:?}", host.log());
        registry.stop();
    }
    Ok(())
}

#[tokio::test]
async fn an_index_is_followed_where_it_leads_to_one_component() -> Result<()> {
    let registry = Registry::start().await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let (one, other) = (Artifact::wasm(numbered(1)?), Artifact::wasm(numbered(2)?));
    let digest = one.push(&registry, "hello:wasm").await?;
    let [wasi, linux] = [Platform::new("wasip2", "wasm"), Platform::new("linux", "amd64")];
    Artifact::index(vec![(one.clone(), wasi.clone()), (other.clone(), linux)]).push(&registry, "hello:1").await?;
    let served = laptop.serve([Component::image("hello", &format!("{}/hello:1", registry.host()))], &[]).await?;
    answers(&served, "hello").await?;
    Artifact::index(vec![(one, wasi.clone()), (other, wasi)]).push(&registry, "hello:2").await?;
    let refused = laptop.run("pull", &[&format!("{}/hello:2", registry.host())]).await?;
    ensure!(
        refused.code == Some(1)
            && refused.stderr.contains("an index of 2 manifests")
            && refused.stderr.contains(&digest),
        "{refused:?}"
    );
    let pulled = laptop.run("pull", &[&format!("{}/hello@{digest}", registry.host())]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    Ok(())
}

#[tokio::test]
async fn what_oras_and_wasm_to_oci_push_is_served() -> Result<()> {
    let registry = Registry::start().await?;
    let table = [
        ("oras", "application/vnd.oci.empty.v1+json", "application/wasm"),
        ("oras-of-old", "application/vnd.unknown.config.v1+json", "application/wasm"),
        ("w2o", "application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm"),
        ("w2o-of-old", "application/vnd.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm"),
    ];
    let mut components = Vec::new();
    for (name, config, layer) in table {
        Artifact::new(config, "{}").layer(layer, numbered(1)?).push(&registry, &format!("{name}:1")).await?;
        components.push(Component::image(name, &format!("{}/{name}:1", registry.host())));
    }
    let laptop = Laptop::plain(&[registry.host()])?;
    let served = laptop.serve(components, &[]).await?;
    for (name, ..) in table {
        answers(&served, name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn mirrors_are_asked_first() -> Result<()> {
    let registry = Registry::start().await?;
    Artifact::wasm(numbered(1)?).push(&registry, "hello:1").await?;
    let (mirror, own) = (FaultProxy::start(&registry)?, FaultProxy::start(&registry)?);
    let settings = json!({
        own.host(): {"plainHttp": true, "mirrors": [mirror.host()]}, mirror.host(): {"plainHttp": true},
    });
    let reference = format!("{}/hello:1", own.host());
    let pulled = Laptop::new(&settings, None)?.run("pull", &[&reference]).await?;
    ensure!(pulled.code == Some(0) && own.seen().is_empty() && !mirror.seen().is_empty(), "{pulled:?}");
    mirror.fault(Seen::gets_blob, Fault::Corrupt);
    let pulled = Laptop::new(&settings, None)?.run("pull", &[&reference]).await?;
    ensure!(pulled.code == Some(0) && pulled.stderr.contains(&mirror.host()), "the mirror's fault is told: {pulled:?}");
    ensure!(own.seen().iter().any(Seen::gets_blob), "then the registry itself");
    Ok(())
}

/// 1,000 bindings of 50 artifacts, all at once.
#[tokio::test]
async fn an_artifact_is_pulled_and_compiled_once_however_many_want_it() -> Result<()> {
    const ARTIFACTS: u32 = 50;
    const EACH: u32 = 20;
    let registry = Registry::start().await?;
    let mut layers = BTreeSet::new();
    for number in 0..ARTIFACTS {
        let artifact = Artifact::wasm(numbered(number)?);
        artifact.push(&registry, &format!("hello:{number}")).await?;
        layers.insert(artifact.layer_digest(0)?);
    }
    let laptop = Laptop::plain(&[registry.host()])?;
    let resources = (0..ARTIFACTS * EACH).map(|index| {
        let (number, each) = (index % ARTIFACTS, index / ARTIFACTS);
        Component::image(&format!("c-{number}-{each}"), &format!("{}/hello:{number}", registry.host())).yaml()
    });
    let file = laptop.file("components.yaml");
    fs::write(&file, resources.collect::<Vec<_>>().join("---\n"))?;
    let host = laptop.serve([], &["-f", &file.display().to_string()]).await?;
    let serving = host.event("serving").context("no event `serving`")?;
    ensure!(serving["ready"] == ARTIFACTS * EACH, "{serving}");
    let many = usize::try_from(ARTIFACTS)?;
    ensure!(host.events_of("pulling").len() == many, "{} pulls", host.events_of("pulling").len());
    ensure!(host.events_of("compiling").len() == many, "{} compilations", host.events_of("compiling").len());
    let requests = registry.requests().await;
    let blobs = requests.blobs();
    ensure!(blobs.values().all(|&times| times == 1), "a blob was pulled twice: {blobs:?}");
    ensure!(
        layers.iter().all(|layer| blobs.keys().any(|path| path.ends_with(layer.as_str()))),
        "a layer was not pulled"
    );
    for ready in host.events_of("ready").iter().step_by(100) {
        let port = u16::try_from(ready["port"].as_u64().context("no port")?)?;
        ensure!(get(Protocol::H1, port, "/").await?.text() == "hello\n", "{ready}");
    }
    Ok(())
}

#[tokio::test]
async fn pulls_are_bounded_in_number() -> Result<()> {
    let registry = Registry::start().await?;
    for number in 0..12 {
        Artifact::wasm(numbered(number)?).push(&registry, &format!("hello:{number}")).await?;
    }
    let proxy = FaultProxy::start(&registry)?;
    proxy.fault(|_| true, Fault::Delay(Duration::from_millis(100)));
    let laptop = Laptop::plain(&[proxy.host()])?;
    let components = (0..12).map(|n| Component::image(&format!("c-{n}"), &format!("{}/hello:{n}", proxy.host())));
    let host = laptop.serve(components, &[]).await?;
    ensure!(host.events_of("ready").len() == 12);
    ensure!(proxy.requests_in_flight_max() <= 4, "{} at once", proxy.requests_in_flight_max());
    Ok(())
}

#[tokio::test]
async fn what_nobody_uses_leaves_when_the_store_is_full_and_what_is_bound_stays() -> Result<()> {
    let registry = Registry::start().await?;
    let bound = Artifact::wasm(fs::read(place::guest("hello-js")?)?);
    bound.push(&registry, "js:1").await?;
    let free = Artifact::wasm(numbered(1)?);
    free.push(&registry, "free:1").await?;
    let laptop = Laptop::plain(&[registry.host()])?;
    let reference = |name: &str| format!("{}/{name}:1", registry.host());
    ensure!(laptop.run("pull", &[&reference("free")]).await?.code == Some(0));
    let stored = |artifact: &Artifact| {
        Ok::<_, anyhow::Error>(
            laptop.store().join("artifacts").join(artifact.layer_digest(0)?.trim_start_matches("sha256:")),
        )
    };
    let (bound, free) = (stored(&bound)?, stored(&free)?);
    ensure!(free.exists());
    // Less than what is bound.
    let components = [Component::image("js", &reference("js")), Component::image("late", &reference("late"))];
    let host = laptop.serve(components, &["--watch", "--tag-refresh", "1s", "--store-quota", "1Mi"]).await?;
    let within = Duration::from_secs(30);
    wait_until("the unused artifact leaves", within, || (!free.exists()).then_some(())).await?;
    let is_full = || host.log().iter().any(|line| line.contains("all of it is in use")).then_some(());
    wait_until("the log says that all is in use", within, is_full).await?;
    ensure!(bound.exists() && get(Protocol::H1, host.port("js")?, "/").await?.status == 200);
    // What is new has no room, and that is said.
    Artifact::wasm(numbered(2)?).push(&registry, "late:1").await?;
    host.wait_for("a refusal for want of room", Duration::from_secs(30), |event| {
        event["event"] == "failed" && event["message"].as_str().is_some_and(|message| message.contains("--store-quota"))
    })
    .await?;
    ensure!(get(Protocol::H1, host.port("js")?, "/").await?.status == 200);
    Ok(())
}
