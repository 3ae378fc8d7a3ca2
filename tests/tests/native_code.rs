//! Native code on disk is used if it is what this node's compiler wrote, and made again if it is not.

#![expect(clippy::indexing_slicing, reason = "JSON gives null for a key that is not there")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, Host, Protocol, eventually, get, place, program::pillion};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What everything bad is served beside.
fn good() -> Result<Component> {
    Component::guest("good", "hello-wasip2")
}

/// The files in a store's `native/*/` with this extension.
fn native(store: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(kinds) = fs::read_dir(store.join("native")) else { return Ok(found) };
    for kind in kinds {
        for entry in fs::read_dir(kind?.path())? {
            found.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|e| e == extension)));
        }
    }
    Ok(found)
}

/// Compiles the good component in a new store; gives its native code and its manifest.
async fn compiled(store: &Path) -> Result<(PathBuf, PathBuf)> {
    let host = Host::of([good()?]).store(store).start().await?;
    let ready = host.event("ready").context("no event `ready`")?;
    ensure!(ready["compiled"] == true, "the store was empty: {ready}");
    drop(host);
    let (code, manifest) = (native(store, "code")?.pop(), native(store, "json")?.pop());
    Ok((code.context("no native code")?, manifest.context("no manifest")?))
}

/// Starts a host with a store that was tampered with, and checks that it is compiled again and served.
async fn compiled_again(store: &Path) -> Result<()> {
    let host = Host::of([good()?]).store(store).start().await?;
    let served = async || {
        let answer = get(Protocol::H1, host.port("good")?, "/").await?;
        ensure!(answer.text() == "hello\n", "{}", answer.text());
        Ok(())
    };
    eventually("an answer of native code that was made again", Duration::from_secs(20), served).await?;
    host.wait_for("an event of its new native code", Duration::from_secs(2), |event| event["compiled"] == true).await?;
    ensure!(host.events_of("worker").len() == 1, "the worker died of it: {:?}", host.events());
    drop(host);
    let host = Host::of([good()?]).store(store).start().await?;
    let ready = host.event("ready").context("no event `ready`")?;
    ensure!(ready["compiled"] == false, "what was made again is good: {ready}");
    Ok(())
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let at = at(bytes.len());
    *bytes.get_mut(at).context("inside the file")? ^= 1;
    Ok(fs::write(path, bytes)?)
}

#[tokio::test]
async fn native_code_is_on_disk_after_the_first_start() -> Result<()> {
    let store = tempfile::tempdir()?;
    compiled(store.path()).await?;
    let host = Host::of([good()?]).store(store.path()).start().await?;
    assert_eq!(host.event("ready").map(|event| event["compiled"].clone()), Some(Value::Bool(false)));
    Ok(())
}

#[tokio::test]
async fn corrupt_native_code_is_made_again() -> Result<()> {
    let store = tempfile::tempdir()?;
    for at in [|_| 0, |length| length / 2, |length| length - 1] {
        let (code, _) = match native(store.path(), "code")?.pop() {
            Some(code) => (code, PathBuf::new()),
            None => compiled(store.path()).await?,
        };
        flip(&code, at)?;
        compiled_again(store.path()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn truncated_native_code_is_made_again() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (code, _) = compiled(store.path()).await?;
    File::options().write(true).open(&code)?.set_len(1_000)?;
    compiled_again(store.path()).await
}

#[tokio::test]
async fn foreign_native_code_is_made_again() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (code, _) = compiled(store.path()).await?;
    fs::write(&code, b"native code of somebody else")?;
    compiled_again(store.path()).await
}

#[tokio::test]
async fn a_manifest_that_names_other_bytes_is_not_believed() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (code, manifest) = compiled(store.path()).await?;
    let garbage = b"native code of somebody else, with a digest that is right";
    let digest = hex::encode(Sha256::digest(garbage));
    fs::write(code.with_file_name(format!("{digest}.code")), garbage)?;
    let mut facts: Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    facts["native"] = format!("sha256:{digest}").into();
    facts["size"] = garbage.len().into();
    fs::write(&manifest, facts.to_string())?;
    compiled_again(store.path()).await
}

#[tokio::test]
async fn a_broken_manifest_is_as_good_as_none() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (_, manifest) = compiled(store.path()).await?;
    fs::write(manifest, "{")?;
    compiled_again(store.path()).await
}

#[tokio::test]
async fn native_code_that_is_changed_after_the_start_is_not_loaded() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (code, _) = compiled(store.path()).await?;
    let host = Host::of([good()?]).store(store.path()).start().await?;
    flip(&code, |length| length / 2)?;
    let first = get(Protocol::H1, host.port("good")?, "/").await?;
    assert!(["unavailable", ""].contains(&first.header("pillion-error")), "{}", first.text());
    let served = async || {
        let answer = get(Protocol::H1, host.port("good")?, "/").await?;
        ensure!(answer.text() == "hello\n", "{}", answer.text());
        Ok(())
    };
    eventually("an answer of native code that was made again", Duration::from_secs(20), served).await
}

#[tokio::test]
async fn native_code_that_is_lost_or_changed_after_this_worker_had_it_made_is_made_again() -> Result<()> {
    for damage in
        [(|code| flip(code, |length| length / 2)) as fn(&Path) -> Result<()>, |code| Ok(fs::remove_file(code)?)]
    {
        let store = tempfile::tempdir()?;
        let host = Host::of([good()?]).store(store.path()).start().await?;
        let ready = host.event("ready").context("no event `ready`")?;
        assert_eq!(ready["compiled"], true, "{ready}");
        for code in native(store.path(), "code")? {
            damage(&code)?;
        }
        let served = async || {
            let answer = get(Protocol::H1, host.port("good")?, "/").await?;
            ensure!(answer.text() == "hello\n", "{}", answer.text());
            Ok(())
        };
        eventually("an answer of native code that was made again", Duration::from_secs(20), served).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_store_that_others_can_write_is_refused() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    fs::create_dir(&store)?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777))?;
    let argument = format!("{}={}", place::guest("hello-wasip2")?.display(), place::free_port()?);
    let ended = pillion(&["run", &argument, "--store", &store.display().to_string()]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("lets others write"), "{ended:?}");
    Ok(())
}
