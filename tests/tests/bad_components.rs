//! What cannot be served is refused by one clear error, and nothing else suffers from it.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, Host, Protocol, get, place, process, program::pillion, wait_until};
use rustix::process::Signal;

/// What everything bad is served beside.
fn good() -> Result<Component> {
    Component::guest("good", "hello-wasip2")
}

/// Checks that the component `good` is served by `host` and the component `bad` is not, for the reason that `expected` is a part of.
async fn check(host: &Host, reason: &str, expected: &str) -> Result<()> {
    let failed = host.events_of("failed");
    ensure!(failed.len() == 1, "one event `failed` is expected: {:?}", host.events());
    let failed = failed.first().context("no event `failed`")?;
    ensure!(failed["component"] == "bad" && failed["binding"] == "bad", "{failed}");
    ensure!(failed["port"] == host.port("bad")?, "{failed}");
    ensure!(failed["reason"] == reason, "expected {reason}: {failed}");
    let message = failed["message"].as_str().unwrap_or_default();
    ensure!(message.contains(expected), "expected {expected:?}: {message}");
    ensure!(!message.contains('\n') && message.len() < 2_000, "one line is enough: {message}");
    let serving = host.event("serving").context("no event `serving`")?;
    ensure!(serving["ready"] == 1 && serving["failed"] == 1, "{serving}");
    ensure!(get(Protocol::H1, host.port("good")?, "/").await?.text() == "hello\n", "the other component");
    let answer = get(Protocol::H1, host.port("bad")?, "/").await?;
    ensure!(answer.header("pillion-error") == "unavailable", "{}", answer.text());
    ensure!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(expected)), "{}", answer.text());
    Ok(())
}

/// A bad component beside a good one, and alone: then nothing can be served, and the program ends with 1 and one error.
async fn refused(image: &Path, reason: &str, expected: &str) -> Result<()> {
    let host = Host::of([Component::file("bad", image), good()?]).start().await?;
    check(&host, reason, expected).await?;
    drop(host);
    let port = place::free_port()?;
    let folder = tempfile::tempdir()?;
    let alone = folder.path().join("alone.wasm");
    fs::hard_link(image, &alone).or_else(|_| fs::copy(image, &alone).map(|_| ()))?;
    let store = place::shared_store()?;
    let (argument, store) = (format!("{}={port}", alone.display()), store.display().to_string());
    let ended = pillion(&["run", &argument, "--store", &store]).await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    let errors: Vec<_> = ended.stderr.lines().filter(|line| line.contains("error")).collect();
    ensure!(errors.len() == 1 && errors.iter().all(|line| line.contains(expected)), "one error is enough: {ended:?}");
    Ok(())
}

/// A file with these bytes.
fn file(folder: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder.join("bad.wasm");
    fs::write(&path, bytes)?;
    Ok(path)
}

#[tokio::test]
async fn what_is_not_web_assembly_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    refused(&file(folder.path(), b"#!/bin/sh\necho hello\n")?, "component", "not WebAssembly").await
}

#[tokio::test]
async fn an_empty_file_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    refused(&file(folder.path(), b"")?, "component", "it is empty").await
}

#[tokio::test]
async fn a_core_module_is_refused() -> Result<()> {
    refused(&place::guest("core-module")?, "component", "core WebAssembly module, expected a component").await
}

#[tokio::test]
async fn a_truncated_component_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = fs::read(place::guest("faults-p2")?)?;
    let half = whole.get(..whole.len() / 2).context("half of it")?;
    refused(&file(folder.path(), half)?, "component", "no whole component").await
}

#[tokio::test]
async fn a_component_with_a_changed_byte_is_refused_or_served_but_never_crashes_anything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = fs::read(place::guest("hello-wasip2")?)?;
    for at in [9, whole.len() / 3, whole.len() / 2, whole.len() - 9] {
        let mut bytes = whole.clone();
        *bytes.get_mut(at).context("inside")? ^= 0xff;
        let host = Host::of([Component::file("bad", file(folder.path(), &bytes)?), good()?]).start().await?;
        assert_eq!(get(Protocol::H1, host.port("good")?, "/").await?.text(), "hello\n", "byte {at}");
        assert_eq!(host.events_of("worker").len(), 1, "byte {at}: {:?}", host.events());
    }
    Ok(())
}

#[tokio::test]
async fn a_component_of_200_mb_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bad.wasm");
    File::create(&path)?.set_len(200 << 20)?;
    refused(&path, "image", "has 209715200 bytes: at most 104857600 are allowed").await
}

#[tokio::test]
async fn a_component_without_an_http_export_is_refused() -> Result<()> {
    let expected =
        "no HTTP export: expected wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x, found wasi:cli/run@";
    refused(&place::guest("not-http")?, "component", expected).await
}

#[tokio::test]
async fn an_import_that_is_not_offered_is_refused_by_its_name() -> Result<()> {
    refused(&place::guest("imports-unknown")?, "component", "acme:missing/thing@1.2.3").await
}

#[tokio::test]
async fn a_memory_above_the_limit_from_the_start_is_refused() -> Result<()> {
    refused(&place::guest("big-memory")?, "limits", "its limits.memory is 128Mi").await
}

#[tokio::test]
async fn a_large_memory_is_served_where_the_limit_allows_it() -> Result<()> {
    let host = Host::of([Component::guest("big", "big-memory")?.limit("memory", "512Mi")]).start().await?;
    assert_eq!(get(Protocol::H1, host.port("big")?, "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_there_or_is_a_folder_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (path, expected) in [(folder.path().join("gone.wasm"), "gone.wasm"), (folder.path().to_owned(), "not a file")] {
        let host = Host::of([Component::file("bad", path), good()?]).start().await?;
        check(&host, "image", expected).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_component_that_takes_too_long_to_compile_is_refused() -> Result<()> {
    let store = tempfile::tempdir()?;
    let host = Host::of([Component::guest("bad", "hello-js")?, good()?]).store(store.path());
    let host = host.variable("PILLION_COMPILER_CPU_SECONDS", "1").start().await?;
    check(&host, "component", "it used all the CPU time that it may").await
}

#[tokio::test]
async fn a_compiler_that_is_killed_is_an_error_of_its_component_alone() -> Result<()> {
    let store = tempfile::tempdir()?;
    let host = Host::of([Component::guest("bad", "hello-js")?, good()?]).store(store.path()).spawn()?;
    host.wait_for("the good component", Duration::from_secs(30), |event| event["event"] == "ready").await?;
    let compiler = wait_until("a compiler", Duration::from_secs(10), || {
        let mut children = process::children(host.supervisor()).into_iter();
        children.rfind(|&child| process::arguments(child).starts_with("pillion compiler"))
    });
    process::signal(compiler.await?, Signal::KILL)?;
    host.wait_for("an event `serving`", Duration::from_secs(30), |event| event["event"] == "serving").await?;
    check(&host, "component", "signal 9").await?;
    assert_eq!(host.events_of("worker").len(), 1, "the worker lives");
    Ok(())
}

/// A small file system, mounted for one test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = format!("size={size},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output()?;
        let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
        ensure!(mounted.status.success(), "a small disk cannot be mounted, which needs root: {why}");
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_of_what_does_not_fit_alone() -> Result<()> {
    let disk = SmallDisk::mount("4m")?;
    let store = disk.0.path().join("store");
    drop(Host::of([good()?]).store(&store).start().await?);
    // Its 13 MB do not fit.
    let host = Host::of([Component::guest("bad", "hello-js")?, good()?]).store(&store).start().await?;
    check(&host, "image", "No space left on device").await?;
    drop(host);
    assert_eq!(fs::read_dir(store.join("tmp"))?.count(), 0, "nothing partial stays");
    Ok(())
}

#[tokio::test]
async fn a_disk_that_native_code_does_not_fit_on_is_an_error_of_its_component_alone() -> Result<()> {
    let disk = SmallDisk::mount("4m")?;
    let store = disk.0.path().join("store");
    drop(Host::of([good()?]).store(&store).start().await?);
    // Room for the component, and not for its native code, which is larger.
    let component = fs::metadata(place::guest("faults-p2")?)?.len();
    let free = rustix::fs::statvfs(&store).map(|stat| stat.f_bavail * stat.f_frsize)?;
    fs::write(disk.0.path().join("filler"), vec![0; usize::try_from(free - 2 * component)?])?;
    let host = Host::of([Component::guest("bad", "faults-p2")?, good()?]).store(&store).start().await?;
    let failed = host.event("failed").context("no event `failed`")?;
    let reason = failed["reason"].as_str().unwrap_or_default().to_owned();
    check(&host, &reason, "No space left on device").await?;
    drop(host);
    assert_eq!(fs::read_dir(store.join("tmp"))?.count(), 0, "nothing partial stays");
    fs::remove_file(disk.0.path().join("filler"))?;
    let host = Host::of([Component::guest("bad", "faults-p2")?, good()?]).store(&store).start().await?;
    assert_eq!(host.event("serving").map(|event| event["ready"].clone()), Some(2.into()), "there is room again");
    Ok(())
}

/// A component whose handler has the right type and does nothing, with `more` in it.
fn idle(more: &str) -> Result<Vec<u8>> {
    let text = format!(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            {more}
            (core module $m (func (export "handle") (param i32 i32)))
            (core instance $i (instantiate $m))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $i "handle")))
            (instance $handler (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    );
    Ok(wat::parse_str(text)?)
}

/// Whether a component can be served is known without running it, and before it is compiled.
#[tokio::test]
async fn inspect_compile_and_run_say_the_same_of_what_cannot_be_served() -> Result<()> {
    let (folder, store) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let instances = format!("(core module $e){}", "(core instance (instantiate $e))".repeat(70));
    let tables = format!("(core module $t {})(core instance (instantiate $t))", "(table 1 funcref)".repeat(9));
    let globals = format!(
        "(core module $g {})(core instance (instantiate $g))",
        "(global v128 (v128.const i64x2 0 0))".repeat(300_000)
    );
    let no_member = r#"(import "wasi:cli/environment@0.2.0" (instance (export "get-everything" (func))))"#;
    let table = [
        (idle(&instances)?, "71 core module instances, which exceeds the configured maximum of 64"),
        (idle(&tables)?, "tables count of 9 exceeds the per-instance limit of 8"),
        (idle(&globals)?, "bytes which exceeds the configured maximum of 4194304 bytes"),
        (idle(no_member)?, "does not link: component imports instance `wasi:cli/environment@0.2.0`"),
        (
            idle("(core module (type (struct)))")?,
            "WebAssembly's proposal for garbage collection, which is not offered here",
        ),
        (
            wat::parse_str(
                r#"(component
                    (core module $m (func (export "handle")))
                    (core instance $i (instantiate $m))
                    (func $handle (canon lift (core func $i "handle")))
                    (instance $handler (export "handle" (func $handle)))
                    (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#,
            )?,
            "with a function `handle` of another type",
        ),
    ];
    let store = store.path().display().to_string();
    for (wasm, expected) in table {
        let image = file(folder.path(), &wasm)?;
        refused(&image, "component", expected).await?;
        let image = image.display().to_string();
        let seen = pillion(&["inspect", &image]).await?;
        ensure!(seen.code == Some(1) && seen.stdout.contains(expected), "expected {expected:?}: {seen:?}");
        let compiled = pillion(&["compile", "--store", &store, &image]).await?;
        ensure!(compiled.code == Some(1) && compiled.stderr.contains(expected), "expected {expected:?}: {compiled:?}");
    }
    Ok(())
}
