//! The fixtures against the real docker-registry.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpStream;

use super::*;
use crate::{
    client::{self, Answer, Connection, Protocol, empty},
    place,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn get(port: u16, path: &str, headers: &[(&'static str, &str)]) -> Result<Answer> {
    let mut request = client::request("GET", path, empty())?;
    request.headers_mut().insert("accept", MANIFEST.parse()?);
    for &(name, value) in headers {
        request.headers_mut().insert(name, value.parse()?);
    }
    Connection::open(Protocol::H1, port).await?.fetch_cut(request).await
}

/// A registry that holds `a/b:1`, a proxy in front of it, and the path of its layer, which is 1,000 bytes.
async fn behind_a_proxy() -> Result<(Registry, FaultProxy, String)> {
    let registry = Registry::start().await?;
    let proxy = FaultProxy::start(&registry)?;
    let artifact = Artifact::wasm(vec![b'a'; 1000]);
    artifact.push_through(&proxy, "a/b:1").await?;
    Ok((registry, proxy, format!("/v2/a/b/blobs/{}", artifact.layer_digest(0)?)))
}

#[tokio::test]
async fn a_registry_starts_within_a_second_and_comes_back_with_what_it_held() -> Result<()> {
    let begin = Instant::now();
    let mut registry = Registry::start().await?;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let digest = Artifact::wasm("hello").push(&registry, "a/b:1").await?;
    registry.stop();
    assert!(get(registry.port(), "/v2/", &[]).await.is_err());
    registry.restart().await?;
    let answer = get(registry.port(), "/v2/a/b/manifests/1", &[]).await?;
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert!(registry.log().contains("listening on 127.0.0.1"), "{}", registry.log());
    Ok(())
}

#[tokio::test]
async fn both_names_lead_to_it() -> Result<()> {
    let registry = Registry::start().await?;
    TcpStream::connect(registry.host()).await?;
    TcpStream::connect(registry.numeric_host()).await?;
    Ok(())
}

#[tokio::test]
async fn it_counts_what_was_pulled() -> Result<()> {
    let registry = Registry::start().await?;
    let artifact = Artifact::wasm("hello");
    artifact.push(&registry, "a/b:1").await?;
    let blob = format!("/v2/a/b/blobs/{}", artifact.layer_digest(0)?);
    for _ in 0..50 {
        assert_eq!(get(registry.port(), "/v2/a/b/manifests/1", &[]).await?.status, 200);
    }
    assert_eq!(get(registry.port(), &blob, &[]).await?.status, 200);
    assert_eq!(get(registry.port(), "/v2/a/b/manifests/2", &[]).await?.status, 404);
    client::fetch(Protocol::H1, registry.port(), client::request("HEAD", "/v2/a/b/manifests/1", empty())?).await?;
    let requests = registry.requests().await;
    assert_eq!(requests.manifests(), BTreeMap::from([("/v2/a/b/manifests/1".into(), 50)]));
    assert_eq!(requests.blobs(), BTreeMap::from([(blob, 1)]));
    assert_eq!(requests.with_status(404), 2, "HEAD without Accept finds no OCI manifest: {requests:?}");
    Ok(())
}

#[tokio::test]
async fn a_password_is_wanted() -> Result<()> {
    let registry = Registry::with_htpasswd("user", "secret").await?;
    Artifact::wasm("hello").push(&registry, "a/b:1").await?;
    let ask = async |password: &str| {
        let config = docker_config(&registry.host(), "user", password);
        let auth = config.pointer(&format!("/auths/{}/auth", registry.host())).and_then(Value::as_str);
        let header = format!("Basic {}", auth.context("no auth")?);
        anyhow::Ok(get(registry.port(), "/v2/a/b/manifests/1", &[("authorization", &header)]).await?.status.as_u16())
    };
    let answer = get(registry.port(), "/v2/a/b/manifests/1", &[]).await?;
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, "Basic realm=\"pillion-tests\""));
    assert_eq!((ask("wrong").await?, ask("secret").await?), (401, 200));
    Ok(())
}

#[tokio::test]
async fn a_token_is_wanted_and_issued() -> Result<()> {
    let registry = Registry::with_token_server("user", "secret").await?;
    Artifact::wasm("hello").push(&registry, "a/b:1").await?;
    let tokens = registry.token_server()?;
    let manifest = "/v2/a/b/manifests/1";
    let answer = get(registry.port(), manifest, &[]).await?;
    let challenge =
        format!("Bearer realm=\"{}\",service=\"pillion-tests-registry\",scope=\"repository:a/b:pull\"", tokens.realm());
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, challenge.as_str()));

    let port = tokens.port();
    let query = "/token?service=pillion-tests-registry&scope=repository%3Aa%2Fb%3Apull";
    let basic = |password| format!("Basic {}", BASE64_STANDARD.encode(format!("user:{password}")));
    assert_eq!(get(port, query, &[("authorization", &basic("wrong"))]).await?.status, 401);
    assert_eq!(get(port, query, &[]).await?.status, 401);
    let pull = async |answer: Answer| -> Result<u16> {
        let bearer = format!("Bearer {}", answer.json()["token"].as_str().context("no token")?);
        Ok(get(registry.port(), manifest, &[("authorization", &bearer)]).await?.status.as_u16())
    };
    assert_eq!(pull(get(port, query, &[("authorization", &basic("secret"))]).await?).await?, 200);
    tokens.public(true);
    assert_eq!(pull(get(port, query, &[]).await?).await?, 200);
    let elsewhere = query.replace("a%2Fb", "c");
    assert_eq!(pull(get(port, &elsewhere, &[]).await?).await?, 401);
    tokens.fail_with(Some(http::StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(get(port, query, &[]).await?.status, 503);

    let asked: Vec<_> = tokens.requests().into_iter().map(|asked| (asked.authorized, asked.status)).collect();
    assert_eq!(asked, [(true, 401), (false, 401), (true, 200), (false, 200), (false, 200), (false, 503)]);
    assert_eq!(tokens.requests()[0].scopes, ["repository:a/b:pull"]);
    Ok(())
}

#[tokio::test]
async fn its_certificate_is_of_a_private_authority() -> Result<()> {
    let registry = Registry::with_tls().await?;
    Artifact::wasm("hello").push(&registry, "a/b:1").await?;
    assert!(fs::read_to_string(registry.ca()?)?.starts_with("-----BEGIN CERTIFICATE-----"));
    let registry = Registry::with_tls_and_htpasswd("user", "secret").await?;
    Artifact::wasm("hello").push(&registry, "a/b:1").await?;
    assert!(FaultProxy::start(&registry).is_err());
    Ok(())
}

#[tokio::test]
async fn a_component_lies_in_the_layout_of_cncf() -> Result<()> {
    let registry = Registry::start().await?;
    let component = fs::read(place::guest("hello-wasip2")?)?;
    let artifact = Artifact::wasm(component.clone());
    artifact.push(&registry, "a/b:1").await?;
    let manifest = get(registry.port(), "/v2/a/b/manifests/1", &[]).await?.json();
    let at = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    assert_eq!(at("/layers/0/mediaType"), "application/wasm");
    assert_eq!(at("/layers/0/digest"), digest(&component));
    let config = get(registry.port(), &format!("/v2/a/b/blobs/{}", at("/config/digest")), &[]).await?.json();
    assert_eq!(config["layerDigests"], json!([digest(&component)]));
    let exports = config["component"]["exports"].to_string();
    assert!(exports.contains("wasi:http/incoming-handler@0.2"), "{config:#}");
    let imports = config["component"]["imports"].as_array().map(Vec::len);
    assert!(imports.is_some_and(|imports| imports >= 3), "{config:#}");
    Ok(())
}

#[tokio::test]
async fn an_application_lies_as_spin_pushes_it() -> Result<()> {
    let registry = Registry::start().await?;
    let wasm = Bytes::from_static(b"\0asm");
    let lock = spin_lock(
        "app",
        &[("one", &digest(&wasm), &[("NAME", "value")], &["http://localhost:*"])],
        &[("/...", "one"), ("/one", "one")],
    );
    assert_eq!(lock["components"][0]["env"], json!({"NAME": "value"}));
    let ids: Vec<_> = lock["triggers"].as_array().into_iter().flatten().map(|trigger| trigger["id"].clone()).collect();
    assert_eq!(ids, ["one-http-trigger", "http-trigger2"]);

    let layers = vec![(Artifact::SPIN_WASM, wasm.clone())];
    let new = Artifact::spin(&lock, layers.clone());
    new.push(&registry, "app:1").await?;
    let manifest = get(registry.port(), "/v2/app/manifests/1", &[]).await?.json();
    let blob = async |pointer: &str| -> Result<Value> {
        let digest = manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Ok(get(registry.port(), &format!("/v2/app/blobs/{digest}"), &[]).await?.json())
    };
    assert_eq!(blob("/layers/1/digest").await?, lock);
    assert_eq!(
        blob("/config/digest").await?["config"]["Labels"]["com.fermyon.spin.lockedAppDigest"],
        new.layer_digest(1)?
    );

    Artifact::spin_in_config(&lock, layers).push(&registry, "app:old").await?;
    let manifest = get(registry.port(), "/v2/app/manifests/old", &[]).await?.json();
    let digest = manifest["config"]["digest"].as_str().context("no digest")?;
    assert_eq!(get(registry.port(), &format!("/v2/app/blobs/{digest}"), &[]).await?.json(), lock);
    Ok(())
}

#[tokio::test]
async fn it_takes_false_claims_but_no_blob_that_it_does_not_have() -> Result<()> {
    let registry = Registry::start().await?;
    let artifact = || Artifact::wasm("hello");
    let absent = digest(b"absent");
    for (number, taken) in [
        artifact().claim_size(0, 1 << 40),
        artifact().claim_size(0, 1),
        artifact().claim_config_size(1),
        artifact().claim_digest(0, &artifact().layer("x", "other").layer_digest(1)?).layer("x", "other"),
        artifact().repeat_layers(10_000),
        artifact().config("text/plain", "no JSON"),
        artifact().layer("not a media type", "x"),
        artifact().layer("application/wasm", ""),
        artifact().field("artifactType", "application/x").field("subject", json!({"digest": 1})),
        artifact().annotation("a", "b").layer_annotation(0, "c", "d"),
        artifact().media_type("application/vnd.docker.distribution.manifest.v2+json"),
    ]
    .into_iter()
    .enumerate()
    {
        let pushed = taken.push(&registry, &format!("a/b:{number}")).await;
        pushed.with_context(|| format!("number {number} of those taken"))?;
    }
    for (number, (refused, why)) in [
        (artifact().claim_digest(0, &absent), "400 Bad Request {\"errors\":[{\"code\":\"MANIFEST_BLOB_UNKNOWN\""),
        (artifact().claim_digest(0, "sha256:short"), "500 Internal Server Error"),
        (artifact().field("schemaVersion", 3), "500 Internal Server Error"),
        (artifact().field("mediaType", "text/plain"), "MANIFEST_INVALID"),
        (artifact().field("manifests", json!([])), "MANIFEST_INVALID"),
        (artifact().media_type("text/plain"), "MANIFEST_INVALID"),
        (artifact().repeat_layers(50_000), "request body too large"),
        (
            Artifact::index(Vec::new())
                .field("manifests", json!([{"mediaType": MANIFEST, "digest": absent, "size": 1}])),
            "MANIFEST_BLOB_UNKNOWN",
        ),
        (artifact().claim_size(1, 1), "there is no layer 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = refused.push(&registry, "a/b:refused").await.err();
        let error = error.with_context(|| format!("number {number} of those refused is taken"))?.to_string();
        assert!(error.contains(why), "number {number} of those refused: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn an_index_names_manifests_by_platform() -> Result<()> {
    let registry = Registry::start().await?;
    let wasm = Artifact::wasm("hello");
    let index = Artifact::index(vec![
        (Artifact::wasm("linux"), Platform::new("linux", "amd64")),
        (wasm.clone(), Platform::new("wasip2", "wasm")),
    ]);
    let pushed = index.push(&registry, "a/b:1").await?;
    assert_eq!(pushed, digest(&index.manifest()?));
    let accept = [("accept", "application/vnd.oci.image.index.v1+json")];
    let answer = get(registry.port(), "/v2/a/b/manifests/1", &accept).await?.json();
    assert_eq!(answer["manifests"][1]["platform"], json!({"os": "wasip2", "architecture": "wasm"}));
    let path = format!("/v2/a/b/manifests/{}", answer["manifests"][1]["digest"].as_str().unwrap_or_default());
    assert_eq!(get(registry.port(), &path, &[]).await?.body, wasm.manifest()?);
    Ok(())
}

#[tokio::test]
async fn it_serves_what_is_in_its_storage_under_the_old_digest() -> Result<()> {
    let registry = Registry::start().await?;
    let artifact = Artifact::wasm("hello");
    let manifest = artifact.push(&registry, "a/b:1").await?;
    fs::write(registry.stored(&artifact.layer_digest(0)?)?, "other")?;
    let blob = format!("/v2/a/b/blobs/{}", artifact.layer_digest(0)?);
    assert_eq!(get(registry.port(), &blob, &[]).await?.text(), "other");
    fs::remove_file(registry.stored(&artifact.layer_digest(0)?)?)?;
    assert_eq!(get(registry.port(), &blob, &[]).await?.status, 404);
    let changed = artifact.claim_digest(0, &digest(b"absent")).manifest()?;
    fs::write(registry.stored(&manifest)?, &changed)?;
    let answer = get(registry.port(), "/v2/a/b/manifests/1", &[]).await?;
    assert_eq!((answer.body, answer.headers["docker-content-digest"].to_str()?), (changed, manifest.as_str()));
    Ok(())
}

#[tokio::test]
async fn a_proxy_changes_nothing_by_itself() -> Result<()> {
    let (registry, proxy, blob) = behind_a_proxy().await?;
    let plain = get(registry.port(), &blob, &[]).await?;
    let through = get(proxy.port(), &blob, &[]).await?;
    let names = |answer: &Answer| answer.headers.keys().cloned().collect::<Vec<_>>();
    assert_eq!((through.status, &through.body, names(&through)), (plain.status, &plain.body, names(&plain)));
    let part = get(proxy.port(), &blob, &[("range", "bytes=990-"), ("authorization", "Basic x")]).await?;
    assert_eq!((part.status.as_u16(), part.body.len(), part.header("content-length")), (206, 10, "10"));
    let seen = proxy.seen().pop().context("nothing was seen")?;
    assert_eq!((seen.path.as_str(), seen.authorized(), seen.range()), (blob.as_str(), true, Some("bytes=990-")));
    let mut head = client::request("HEAD", "/v2/a/b/manifests/1", empty())?;
    head.headers_mut().insert("accept", MANIFEST.parse()?);
    let head = client::fetch(Protocol::H1, proxy.port(), head).await?;
    assert!(head.status == 200 && head.header("content-length") != "0", "{head:?}");
    Ok(())
}

#[tokio::test]
async fn a_status_is_answered_so_many_times() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault_times(2, Seen::gets_blob, Fault::retry_after(429, 1));
    proxy.fault(Seen::gets_manifest, Fault::status(500));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = get(proxy.port(), &blob, &[]).await?;
        statuses.push((answer.status.as_u16(), answer.header("retry-after").to_owned()));
    }
    assert_eq!(statuses, [(429, "1".to_owned()), (429, "1".into()), (200, String::new())]);
    assert_eq!(get(proxy.port(), "/v2/a/b/manifests/1", &[]).await?.status, 500);
    proxy.clear();
    assert_eq!(get(proxy.port(), "/v2/a/b/manifests/1", &[]).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_cut_can_be_resumed() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault_times(1, Seen::gets_blob, Fault::Truncate { after_bytes: 300 });
    let first = get(proxy.port(), &blob, &[]).await?;
    assert_eq!((first.header("content-length"), first.body.len(), first.cut.is_some()), ("1000", 300, true));
    let rest = get(proxy.port(), &blob, &[("range", "bytes=300-")]).await?;
    assert_eq!((rest.status.as_u16(), rest.body.len(), rest.cut.is_none()), (206, 700, true));
    proxy.fault(Seen::gets_blob, Fault::Truncate { after_bytes: 0 });
    assert_eq!(get(proxy.port(), &blob, &[]).await?.body.len(), 0);
    Ok(())
}

#[tokio::test]
async fn bodies_are_falsified() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault_times(1, Seen::gets_blob, Fault::Corrupt);
    let corrupt = get(proxy.port(), &blob, &[]).await?;
    let wrong: Vec<_> = corrupt.body.iter().enumerate().filter(|(_, byte)| **byte != b'a').collect();
    assert_eq!((corrupt.body.len(), wrong), (1000, vec![(500, &(b'a' ^ 1))]));

    proxy.fault_times(1, Seen::gets_blob, Fault::Longer { extra: 10 });
    let longer = get(proxy.port(), &blob, &[]).await?;
    assert_eq!((longer.header("content-length"), longer.body.len(), longer.cut.is_none()), ("1010", 1010, true));

    let replaced = Fault::ReplaceBody { bytes: "{}".into(), content_type: Some("text/plain".into()) };
    proxy.fault_times(1, Seen::gets_manifest, replaced);
    let replaced = get(proxy.port(), "/v2/a/b/manifests/1", &[]).await?;
    assert_eq!((replaced.text().as_str(), replaced.header("content-type")), ("{}", "text/plain"));
    assert!(replaced.header("docker-content-digest").starts_with("sha256:"));

    let name = "docker-content-digest";
    proxy.fault_times(1, Seen::gets_manifest, Fault::Header { name, value: None });
    assert_eq!(get(proxy.port(), "/v2/a/b/manifests/1", &[]).await?.header(name), "");
    proxy.fault_times(1, Seen::gets_manifest, Fault::Header { name, value: Some("sha256:0".into()) });
    assert_eq!(get(proxy.port(), "/v2/a/b/manifests/1", &[]).await?.header(name), "sha256:0");
    Ok(())
}

#[tokio::test]
async fn an_endless_body_is_made_only_as_it_is_read() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault(Seen::gets_manifest, Fault::Endless { total_bytes: 100 << 20 });
    let before = proxy.sent();
    let mut connection = Connection::open(Protocol::H1, proxy.port()).await?;
    let response = connection.send(client::request("GET", "/v2/a/b/manifests/1", empty())?).await?;
    assert_eq!(response.headers().get("content-length"), None);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = proxy.sent() - before;
    assert!(sent < 16 << 20, "{sent} bytes were taken though nobody reads");
    drop((response, connection));
    proxy.fault(Seen::gets_blob, Fault::Endless { total_bytes: 1 << 20 });
    let whole = get(proxy.port(), &blob, &[]).await?;
    assert_eq!((whole.body.len(), whole.cut.is_none()), (1 << 20, true));
    Ok(())
}

#[tokio::test]
async fn a_trickle_comes_byte_by_byte() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault_times(1, Seen::gets_blob, Fault::Trickle { bytes_per_second: 1 });
    let slow = tokio::time::timeout(Duration::from_millis(2500), get(proxy.port(), &blob, &[])).await;
    assert!(slow.is_err());
    proxy.fault_times(1, Seen::gets_blob, Fault::Trickle { bytes_per_second: 2000 });
    let begin = Instant::now();
    assert_eq!(get(proxy.port(), &blob, &[]).await?.body.len(), 1000);
    let took = begin.elapsed();
    assert!(Duration::from_millis(400) < took && took < Duration::from_secs(2), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn callers_hang_are_refused_or_wait() -> Result<()> {
    let (mut registry, proxy, blob) = behind_a_proxy().await?;
    proxy.fault_times(1, Seen::gets_blob, Fault::Hang);
    assert!(tokio::time::timeout(Duration::from_millis(200), get(proxy.port(), &blob, &[])).await.is_err());
    proxy.fault_times(1, Seen::gets_blob, Fault::Refuse);
    assert!(get(proxy.port(), &blob, &[]).await.is_err());
    proxy.fault_times(1, Seen::gets_blob, Fault::Delay(Duration::from_millis(200)));
    let begin = Instant::now();
    assert_eq!(get(proxy.port(), &blob, &[]).await?.status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    registry.stop();
    assert!(get(proxy.port(), &blob, &[]).await.is_err());
    registry.restart().await?;
    assert_eq!(get(proxy.port(), &blob, &[]).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_redirect_leads_elsewhere() -> Result<()> {
    let (registry, proxy, blob) = behind_a_proxy().await?;
    let elsewhere = FaultProxy::start(&registry)?;
    proxy.fault(Seen::gets_blob, Fault::Redirect { base: format!("http://{}", elsewhere.numeric_host()) });
    let answer = get(proxy.port(), &blob, &[("authorization", "Basic x")]).await?;
    assert_eq!(answer.status, 307);
    let location = answer.header("location").strip_prefix(&format!("http://127.0.0.1:{}", elsewhere.port()));
    assert_eq!(get(elsewhere.port(), location.context("another location")?, &[]).await?.body.len(), 1000);
    let seen = elsewhere.seen();
    ensure!(seen.len() == 1 && !seen[0].authorized(), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn requests_in_flight_are_never_counted_twice() -> Result<()> {
    let (_registry, proxy, blob) = behind_a_proxy().await?;
    let mut connection = Connection::open(Protocol::H1, proxy.port()).await?;
    for _ in 0..100 {
        connection.get(&blob).await?;
    }
    assert_eq!(proxy.requests_in_flight_max(), 1);
    proxy.fault(Seen::gets_blob, Fault::Delay(Duration::from_millis(300)));
    let calls = (0..7).map(|_| get(proxy.port(), &blob, &[]));
    futures::future::try_join_all(calls).await?;
    assert_eq!(proxy.requests_in_flight_max(), 7);
    let connections: Vec<_> = proxy.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.iter().max(), Some(&8));
    Ok(())
}
