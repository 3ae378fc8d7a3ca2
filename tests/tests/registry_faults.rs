//! What a registry, or whoever is between it and us, may do: each fault is one clear error with reference, registry and step, and
//! nothing partial stays on disk.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use pillion_tests::{
    Component, Host, Protocol, get, place,
    program::{Ended, pillion},
    registry::{Artifact, Fault, FaultProxy, Registry, Seen, digest, spin_lock},
};
use serde_json::json;
use tempfile::TempDir;

/// The registry's time in these tests.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A registry with an artifact, `hello:1`, a proxy that makes faults before it, and a store.
struct Setup {
    registry: Registry,
    proxy: FaultProxy,
    folder: TempDir,
}

impl Setup {
    async fn new() -> Result<Self> {
        let registry = Registry::start().await?;
        hello()?.push(&registry, "hello:1").await?;
        let proxy = FaultProxy::start(&registry)?;
        let folder = tempfile::tempdir()?;
        let settings = json!({"timeout": "2s", "registries": {proxy.host(): {"plainHttp": true}}});
        fs::write(folder.path().join("registries.yaml"), settings.to_string())?;
        Ok(Self { registry, proxy, folder })
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.proxy.host())
    }

    fn registries(&self) -> String {
        self.folder.path().join("registries.yaml").display().to_string()
    }

    fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    async fn pull(&self, name: &str) -> Result<Ended> {
        let (store, registries) = (self.store().display().to_string(), self.registries());
        pillion(&["pull", &self.reference(name), "--store", &store, "--registries", &registries]).await
    }

    /// A pull comes to nothing, with one line that says all of `expected`, and leaves nothing.
    async fn refused(&self, name: &str, expected: &[&str]) -> Result<()> {
        let ended = self.pull(name).await?;
        let said = &ended.stderr;
        ensure!(ended.code == Some(1) && ended.stdout.is_empty(), "{name}: {ended:?}");
        ensure!(said.trim_end().lines().count() == 1 && said.len() < 1_500, "{name}: one line is enough: {said}");
        for expected in expected.iter().copied().chain([self.reference(name).as_str(), &self.proxy.host()]) {
            ensure!(said.contains(expected), "{name}: expected {expected:?}: {said}");
        }
        for room in ["tmp", "artifacts", "images", "tags"] {
            ensure!(is_empty(&self.store().join(room))?, "{name}: something stays in {room}");
        }
        self.proxy.clear();
        Ok(())
    }

    /// A pull succeeds.
    async fn pulled(&self, name: &str) -> Result<()> {
        let ended = self.pull(name).await?;
        ensure!(ended.code == Some(0), "{name}: {ended:?}");
        ensure!(is_empty(&self.store().join("tmp"))?, "{name}: something stays in tmp");
        Ok(())
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

fn component() -> Result<Bytes> {
    Ok(fs::read(place::guest("hello-wasip2")?)?.into())
}

fn hello() -> Result<Artifact> {
    Ok(Artifact::wasm(component()?))
}

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";

/// An answer that is no error of the protocol's.
fn plain(code: u16, body: &'static str) -> Fault {
    Fault::Status { code, headers: Vec::new(), body: Bytes::from_static(body.as_bytes()) }
}

#[tokio::test]
async fn what_a_registry_answers_is_said_with_its_step() -> Result<()> {
    let setup = Setup::new().await?;
    let anything = |_: &Seen| true;
    let table: [(Fault, &[&str]); 6] = [
        (Fault::status(401), &["log in", "HTTP 401", "there are no credentials"]),
        (plain(403, "go away"), &["resolve the tag", "HTTP 403"]),
        (Fault::status(404), &["resolve the tag"]),
        (Fault::retry_after(429, 3_600), &["resolve the tag"]),
        (Fault::Refuse, &["(asked 5 times)"]),
        (Fault::Hang, &["no whole answer within 2s"]),
    ];
    for (fault, expected) in table {
        let began = Instant::now();
        // Where logging in is not refused by itself, the next step is.
        setup.proxy.fault(anything, fault);
        let expected: Vec<_> = expected.iter().filter(|expected| **expected != "log in").copied().collect();
        setup.refused("hello:1", &expected).await?;
        ensure!(began.elapsed() < Duration::from_secs(30), "{expected:?} took {:?}", began.elapsed());
    }
    setup.proxy.fault(Seen::gets_blob, Fault::status(500));
    setup.refused("hello:1", &["HTTP 500", "(asked 5 times)", "read the configuration"]).await?;
    setup.refused("other:1", &["resolve the tag", "MANIFEST_UNKNOWN"]).await?;
    let mut setup = setup;
    setup.registry.stop();
    setup.refused("hello:1", &["(asked 5 times)"]).await
}

#[tokio::test]
async fn what_passes_is_waited_for() -> Result<()> {
    let setup = Setup::new().await?;
    setup.proxy.fault_times(2, Seen::gets_blob, Fault::status(500));
    setup.pulled("hello:1").await?;
    fs::remove_dir_all(setup.store())?;
    // A limit by time: for each refusal the registry says how long, and is asked no sooner.
    setup.proxy.clear();
    let before = setup.proxy.seen().len();
    // HEAD, GET where that says nothing, and HEAD for how long to wait.
    setup.proxy.fault_times(3, |seen| seen.path.contains("/manifests/"), Fault::retry_after(429, 2));
    setup.pulled("hello:1").await?;
    let seen = setup.proxy.seen();
    let asked: Vec<_> = seen.iter().skip(before).filter(|seen| seen.path.contains("/manifests/")).collect();
    let gaps = asked.windows(2).filter_map(|pair| match pair {
        [first, second] => Some(second.at.duration_since(first.at)),
        _ => None,
    });
    let longest = gaps.max().unwrap_or_default();
    ensure!(longest >= Duration::from_secs(2), "it was asked again after {longest:?}: {asked:?}");
    Ok(())
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_manifest_says_is_refused() -> Result<()> {
    let setup = Setup::new().await?;
    let layer = digest(&component()?);
    let step = format!("pull the layer {layer}");
    let is_layer = move |seen: &Seen| seen.path.ends_with(&layer);
    let table = [
        (Fault::Corrupt, "its content has the digest sha256:"),
        (Fault::Longer { extra: 7 }, "it is larger than the"),
        (Fault::Truncate { after_bytes: 0 }, "it broke off"),
        (Fault::Trickle { bytes_per_second: 1 }, "it is too slow"),
        (Fault::Hang, "no whole answer within 2s"),
    ];
    for (fault, expected) in table {
        setup.proxy.fault(is_layer.clone(), fault);
        setup.refused("hello:1", &[&step, expected]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_broke_off_goes_on_where_it_was() -> Result<()> {
    let setup = Setup::new().await?;
    let bytes: Bytes = fs::read(place::guest("hello-js")?)?.into();
    let artifact = Artifact::wasm(bytes.clone());
    artifact.push(&setup.registry, "js:1").await?;
    let half = bytes.len() as u64 / 2;
    let layer = artifact.layer_digest(0)?;
    let is_layer = move |seen: &Seen| seen.gets_blob() && seen.path.ends_with(&layer);
    setup.proxy.fault_times(1, is_layer.clone(), Fault::Truncate { after_bytes: half });
    setup.pulled("js:1").await?;
    let ranges: Vec<_> =
        setup.proxy.seen().iter().filter(|seen| is_layer(seen)).map(|seen| seen.range().map(str::to_owned)).collect();
    let second = ranges.get(1).cloned().flatten().context("it was asked once")?;
    let from: u64 = second.trim_start_matches("bytes=").trim_end_matches('-').parse()?;
    ensure!(ranges.len() == 2 && from > half / 2 && from <= half, "{ranges:?}");
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_cannot_be_served_is_refused_before_anything_is_pulled() -> Result<()> {
    let setup = Setup::new().await?;
    let wasm = component()?;
    let config = || Artifact::new(CONFIG, "{}");
    let one = || config().layer(LAYER, wasm.clone());
    let lock = spin_lock("bomb", &[("a", &digest(&wasm), &[], &[])], &[("/...", "a")]);
    let mut bombed = lock.clone();
    if let Some(component) = bombed.pointer_mut("/components/0") {
        component["files"] = json!([{"path": "/", "content": {"digest": digest(b"bomb")}}]);
    }
    let bundle = "application/vnd.wasm.content.bundle.v1.tar+gzip";
    let table: [(&str, Artifact, &str); 8] = [
        ("two:1", one().repeat_layers(2), "it has 2 layers"),
        ("many:1", one().repeat_layers(10_000), "it has 10000 layers: at most 500"),
        ("type:1", config().layer("application/zip", wasm.clone()), "its layer is \"application/zip\""),
        (
            "image:1",
            Artifact::new("application/vnd.oci.image.config.v1+json", "{}").layer("a/tar", wasm.clone()),
            "neither a Wasm artifact",
        ),
        ("empty:1", config().layer(LAYER, Bytes::new()), "is empty"),
        ("large:1", one().claim_size(0, 1 << 40), "at most 104857600 are allowed"),
        ("text:1", Artifact::new(CONFIG, "no JSON").layer(LAYER, wasm.clone()), "read the configuration"),
        (
            "bomb:1",
            Artifact::spin(&bombed, vec![(Artifact::SPIN_WASM, wasm.clone()), (bundle, Bytes::from_static(b"bomb"))]),
            "files",
        ),
    ];
    for (name, artifact, expected) in table {
        artifact.push(&setup.registry, name).await?;
        let before = setup.proxy.seen().len();
        setup.refused(name, &[expected]).await?;
        let layer = digest(&wasm);
        let pulled = setup.proxy.seen().iter().skip(before).any(|seen| seen.gets_blob() && seen.path.ends_with(&layer));
        ensure!(!pulled, "{name}: the layer was pulled");
    }
    one().claim_size(0, 100).push(&setup.registry, "small:1").await?;
    setup.refused("small:1", &["it is larger than the 100 bytes that the manifest says"]).await
}

#[tokio::test]
async fn a_manifest_that_no_registry_would_store_is_refused_too() -> Result<()> {
    let setup = Setup::new().await?;
    let manifest = |layer: &str| {
        let blob = |kind: &str, digest: &str| json!({"mediaType": kind, "digest": digest, "size": 10});
        let config = format!("sha256:{}", "0".repeat(64));
        json!({"schemaVersion": 2, "config": blob(CONFIG, &config), "layers": [blob(LAYER, layer)]}).to_string()
    };
    let table = [
        (manifest("sha256:../../x"), "\"sha256:../../x\" is no digest"),
        (manifest("sha256:/etc/passwd"), "is no digest"),
        (manifest("sha512:00"), "is no digest"),
        ("<html>go away</html>".into(), "it is no manifest"),
        (json!({"schemaVersion": 1}).to_string(), "its schemaVersion is 1"),
    ];
    for (manifest, expected) in table {
        let answer = |body: String| Fault::Status {
            code: 200,
            headers: vec![
                ("content-type".into(), "application/vnd.oci.image.manifest.v1+json".into()),
                ("docker-content-digest".into(), digest(manifest.as_bytes())),
            ],
            body: body.into(),
        };
        setup.proxy.fault(|seen| seen.method == "HEAD" && seen.path.contains("/manifests/"), answer(String::new()));
        setup.proxy.fault(|seen| seen.path.contains("/manifests/"), answer(manifest.clone()));
        setup.refused("hello:1", &["read the manifest", expected]).await?;
    }
    // Other bytes than the digest's; and bytes without end.
    setup.proxy.fault(Seen::gets_manifest, Fault::Corrupt);
    setup.refused("hello:1", &["read the manifest"]).await?;
    setup.proxy.fault(Seen::gets_manifest, Fault::Endless { total_bytes: 100 << 20 });
    setup.refused("hello:1", &["read the manifest", "its answer is too large: at most 4194304 bytes"]).await?;
    setup.proxy.fault(
        |seen| seen.method == "HEAD",
        Fault::Header { name: "docker-content-digest", value: Some("sha256:../../x".into()) },
    );
    setup.refused("hello:1", &["resolve the tag", "\"sha256:../../x\" is no digest"]).await
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() -> Result<()> {
    let registry = Registry::with_htpasswd("ann", "hunter2").await?;
    hello()?.push(&registry, "hello:1").await?;
    let (front, elsewhere) = (FaultProxy::start(&registry)?, FaultProxy::start(&registry)?);
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.json");
    fs::write(&config, pillion_tests::registry::docker_config(&front.host(), "ann", "hunter2").to_string())?;
    let settings = json!({"dockerConfig": config, "timeout": "2s", "registries": {
        front.host(): {"plainHttp": true}, elsewhere.numeric_host(): {},
    }});
    let registries = folder.path().join("registries.yaml");
    fs::write(&registries, settings.to_string())?;
    front.fault(Seen::gets_blob, Fault::Redirect { base: format!("http://{}", elsewhere.numeric_host()) });
    let store = folder.path().join("store").display().to_string();
    let args = [
        "pull",
        &format!("{}/hello:1", front.host()),
        "--store",
        &store,
        "--registries",
        &registries.display().to_string(),
    ];
    let ended = pillion(&args).await?;
    // The registry behind wants to know who asks, and is not told.
    ensure!(ended.code == Some(1) && ended.stderr.contains("HTTP 401"), "{ended:?}");
    ensure!(!ended.stderr.contains("hunter2"), "{ended:?}");
    let seen = elsewhere.seen();
    ensure!(!seen.is_empty() && seen.iter().all(|seen| !seen.authorized()), "{seen:?}");
    ensure!(front.seen().iter().any(Seen::authorized), "the registry itself was told");
    Ok(())
}

#[tokio::test]
async fn an_unknown_authority_is_named_with_what_to_do() -> Result<()> {
    let registry = Registry::with_tls().await?;
    hello()?.push(&registry, "hello:1").await?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().display().to_string();
    let ended = pillion(&["pull", &format!("{}/hello:1", registry.host()), "--store", &store]).await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(ended.stderr.contains("UnknownIssuer") && ended.stderr.contains("ca in the registries file"), "{ended:?}");
    Ok(())
}

/// A bad artifact costs itself only.
#[tokio::test]
async fn a_component_beside_it_is_served_all_the_same() -> Result<()> {
    let setup = Setup::new().await?;
    let good = Component::guest("good", "hello-wasip2")?;
    setup.proxy.fault(Seen::gets_blob, Fault::Corrupt);
    let began = Instant::now();
    let bad = Component::image("bad", &setup.reference("hello:1"));
    let host = Host::of([good, bad]).args(["--registries", &setup.registries()]).store(&setup.store()).start().await?;
    ensure!(began.elapsed() < TIMEOUT * 10);
    ensure!(get(Protocol::H1, host.port("good")?, "/").await?.text() == "hello\n");
    let answer = get(Protocol::H1, host.port("bad")?, "/").await?;
    ensure!(
        answer.header("pillion-error") == "unavailable" && answer.text().contains("its content has the digest"),
        "{}",
        answer.text()
    );
    let failed = host.event("failed").context("no event `failed`")?;
    ensure!(
        failed["reason"] == "image"
            && failed["message"].as_str().is_some_and(|m| m.contains(&setup.reference("hello:1"))),
        "{failed}"
    );
    Ok(())
}
