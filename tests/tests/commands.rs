//! The commands and what they tell: help, events, `compile`, `inspect`.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result};
use pillion_tests::{
    Component, Host, place,
    program::{pillion, pillion_with},
};
use rustix::process::Signal;
use serde_json::Value;

fn hello() -> Result<String> {
    Ok(place::guest("hello-wasip2")?.display().to_string())
}

#[tokio::test]
async fn events_are_one_json_object_a_line_in_the_order_of_the_specification() -> Result<()> {
    let store = tempfile::tempdir()?;
    let components = [Component::guest("good", "hello-wasip2")?, Component::guest("bad", "not-http")?];
    let mut host = Host::of(components).store(store.path()).start().await?;
    let port = host.port("good")?;
    host.signal(Signal::TERM)?;
    assert_eq!(host.end(Duration::from_secs(10)).await?.code(), Some(0));
    let events = host.events();
    assert!(events.iter().all(Value::is_object), "{events:?}");
    let fields =
        |event: &Value| event.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let expected: [(&str, &[&str]); 6] = [
        ("worker", &["pid", "restarts"]),
        ("compiling", &["component", "digest"]),
        ("ready", &["component", "binding", "port", "urls", "digest", "compiled", "seconds"]),
        ("failed", &["component", "binding", "port", "reason", "message"]),
        ("serving", &["ready", "failed"]),
        ("drained", &["requests"]),
    ];
    for (kind, names) in expected {
        let event = host.event(kind).with_context(|| format!("no event `{kind}`"))?;
        let mut names: Vec<_> = names.iter().chain(&["event"]).map(ToString::to_string).collect();
        names.sort();
        let mut found = fields(&event);
        found.sort();
        assert_eq!(found, names, "{event}");
    }
    let ready = host.event("ready").context("no event `ready`")?;
    assert_eq!((&ready["compiled"], ready["port"].as_u64()), (&true.into(), Some(port.into())), "{ready}");
    assert_eq!(ready["urls"], serde_json::json!([format!("http://localhost:{port}")]), "{ready}");
    assert!(
        ready["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:") && digest.len() == 71),
        "{ready}"
    );
    assert_eq!(events.first().map(|event| event["event"].clone()), Some("worker".into()));
    assert_eq!(events.last().map(|event| event["event"].clone()), Some("drained".into()));
    Ok(())
}

#[tokio::test]
async fn each_binding_has_its_event_before_all_are_decided() -> Result<()> {
    const MANY: usize = 1_000;
    // What is decided fastest: there is nothing to read. Many, so that some are while others are not yet known.
    let mut yaml = Component::guest("good", "hello-wasip2")?.yaml();
    for number in 0..MANY {
        write!(yaml, "---\n{}", Component::file(&format!("gone-{number}"), "/nowhere/gone.wasm").yaml())?;
    }
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("many.yaml"), yaml)?;
    for _ in 0..4 {
        let host = Host::of([]).args(["-f".as_ref(), folder.path().as_os_str()]).start().await?;
        let (ready, failed) = (host.events_of("ready").len(), host.events_of("failed").len());
        assert_eq!((ready, failed), (1, MANY), "{:?}", host.event("serving"));
    }
    Ok(())
}

#[tokio::test]
async fn help_says_everything() -> Result<()> {
    let help = pillion(&["--help"]).await?;
    assert_eq!(help.code, Some(0));
    for text in ["run", "compile", "inspect", "--help", "--version"] {
        assert!(help.stdout.contains(text), "{text}: {}", help.stdout);
    }
    for hidden in ["worker", "compiler"] {
        assert!(
            !help.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{hidden} "))),
            "{}",
            help.stdout
        );
    }
    let run = pillion(&["run", "--help"]).await?.stdout;
    for text in [
        "--file",
        "--sidecars",
        "--watch",
        "--address",
        "--store",
        "--memory",
        "--drain-timeout",
        "--log-format",
        "--output",
        "[NAME=]FILE.wasm=PORT",
        "--allow-outbound",
        "8080",
        "127.0.0.1",
        "30s",
        "text",
        "json",
        "Examples",
        "Ctrl-C",
    ] {
        assert!(run.contains(text), "{text}: {run}");
    }
    for command in ["compile", "inspect"] {
        let help = pillion(&[command, "--help"]).await?;
        assert!(help.code == Some(0) && help.stdout.contains("FILE"), "{help:?}");
    }
    assert!(pillion(&["--version"]).await?.stdout.starts_with("pillion "));
    Ok(())
}

#[tokio::test]
async fn compile_puts_native_code_into_the_store_once() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (store_path, hello) = (store.path().display().to_string(), hello()?);
    for compiled in [true, false] {
        let ended = pillion(&["compile", "-o", "json", "--store", &store_path, &hello]).await?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let result: Value = serde_json::from_str(ended.stdout.trim())?;
        assert_eq!((&result["compiled"], &result["world"]), (&compiled.into(), &"p2".into()), "{result}");
    }
    let text = pillion(&["compile", "--store", &store_path, &hello]).await?;
    assert!(text.code == Some(0) && text.stdout.contains("hello-wasip2.wasm"), "{text:?}");
    let host = Host::of([Component::file("x", hello)]).store(store.path()).start().await?;
    assert_eq!(host.event("ready").map(|event| event["compiled"].clone()), Some(false.into()), "a run finds it");
    Ok(())
}

#[tokio::test]
async fn compile_names_what_it_cannot_compile_and_does_the_rest() -> Result<()> {
    let store = tempfile::tempdir()?;
    let store_path = store.path().display().to_string();
    let bad = place::guest("not-http")?.display().to_string();
    let ended = pillion(&["compile", "-o", "json", "--store", &store_path, &bad, &hello()?]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("not-http.wasm") && ended.stderr.contains("no HTTP export"), "{ended:?}");
    assert!(ended.stdout.contains("hello-wasip2.wasm"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn the_store_may_be_named_by_a_variable() -> Result<()> {
    let store = tempfile::tempdir()?;
    let path = store.path().join("here");
    let ended = pillion_with(&["compile", &hello()?], &[("PILLION_STORE", &path.display().to_string())]).await?;
    assert!(ended.code == Some(0) && path.join("native").is_dir(), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn inspect_shows_world_imports_and_whether_it_is_served() -> Result<()> {
    let spin = place::guest("hello-spin")?.display().to_string();
    let text = pillion(&["inspect", &spin]).await?;
    assert_eq!(text.code, Some(0), "{text:?}");
    for expected in ["hello-spin.wasm", "p3", "wasi:http/handler@0.3.", "sha256:", "served   yes"] {
        assert!(text.stdout.contains(expected), "{expected}: {}", text.stdout);
    }
    let bad = place::guest("imports-unknown")?.display().to_string();
    let json = pillion(&["inspect", "-o", "json", &bad]).await?;
    assert_eq!(json.code, Some(1), "what cannot be served is told by the exit code too: {json:?}");
    let seen: Value = serde_json::from_str(json.stdout.trim())?;
    assert_eq!(seen["world"], "p2", "{seen}");
    assert!(seen["imports"].as_array().is_some_and(|all| all.contains(&"acme:missing/thing@1.2.3".into())), "{seen}");
    assert!(seen["refused"].as_str().is_some_and(|why| why.contains("acme:missing/thing@1.2.3")), "{seen}");
    let core = pillion(&["inspect", &place::guest("core-module")?.display().to_string()]).await?;
    assert!(core.code == Some(1) && core.stdout.contains("core WebAssembly module"), "{core:?}");
    Ok(())
}
