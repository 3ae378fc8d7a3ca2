//! Others' text on a terminal: names in components, answers of registries and API servers. No command writes it as it is.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Result, ensure};
use http::Response;
use pillion_tests::{
    client::full,
    place,
    program::{Ended, pillion, pillion_with},
    server::Server,
    tls::Authority,
};
use serde_json::json;

/// Escape sequences that begin by ESC and by their C1 form, a title with its bell, a turn of direction, a line that looks like ours.
const HOSTILE: &str = "\u{1b}]0;pwned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\r\u{8}\u{7f}\nserved   yes";

/// Nothing that was written acts on a terminal, and what was hostile is told all the same.
fn is_plain(ended: &Ended, what: &str) -> Result<()> {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let acts = |c: char| {
        c.is_control() && c != '\n'
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    ensure!(!said.contains(acts), "{what}: {said:?}");
    ensure!(said.contains("pwned"), "{what} does not tell it: {said:?}");
    ensure!(!said.lines().any(|line| line.starts_with("served")), "{what}: a line that is not ours: {said:?}");
    Ok(())
}

/// A component that imports and exports hostile names.
fn component(folder: &Path) -> Result<PathBuf> {
    let name: String = HOSTILE.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let wat = format!(r#"(component (import "{name}" (func $f)) (export "{name}" (func $f)))"#);
    let file = folder.join("hostile.wasm");
    std::fs::write(&file, wat::parse_str(wat)?)?;
    Ok(file)
}

/// With both ways of writing.
async fn each_way(args: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    for output in ["text", "json"] {
        let args: Vec<_> = args.iter().copied().chain(["--output", output]).collect();
        is_plain(&pillion_with(&args, variables).await?, &args.join(" "))?;
    }
    Ok(())
}

#[tokio::test]
async fn names_in_a_component() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = component(folder.path())?.display().to_string();
    let (store, port) = (folder.path().join("store").display().to_string(), place::free_port()?);
    each_way(&["inspect", &file], &[]).await?;
    each_way(&["compile", &file, "--store", &store], &[]).await?;
    each_way(&["run", &format!("{file}={port}"), "--store", &store], &[]).await
}

#[tokio::test]
async fn names_of_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(format!("{HOSTILE}.wasm"));
    std::fs::write(&file, "garbage")?;
    let (file, store) = (file.display().to_string(), folder.path().join("store").display().to_string());
    each_way(&["inspect", &file], &[]).await?;
    each_way(&["compile", &file, "--store", &store], &[]).await?;
    each_way(&["push", &file, "registry.example/a:1"], &[]).await?;
    let yaml = folder.path().join(format!("{HOSTILE}.yaml"));
    std::fs::write(&yaml, format!("spec: {{pwned: {:?}", HOSTILE))?;
    is_plain(&pillion(&["run", "-f", &yaml.display().to_string()]).await?, "run -f")
}

#[tokio::test]
async fn answers_of_a_registry() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::found(folder.path())?;
    let registry = Server::with_tls(&authority, |_| async {
        let body = json!({"errors": [{"code": HOSTILE, "message": HOSTILE}]}).to_string();
        let answer = Response::builder().status(403).header("content-type", "application/json").body(full(body));
        answer.map_err(std::io::Error::other)
    })?;
    let host = registry.url().replace("https://", "");
    let settings = folder.path().join("registries.yaml");
    std::fs::write(&settings, json!({"registries": {&host: {"ca": authority.certificate()}}}).to_string())?;
    let (image, settings) = (format!("{host}/pwned:1"), settings.display().to_string());
    let store = folder.path().join("store").display().to_string();
    let file = place::guest("hello-wasip2")?.display().to_string();
    let settings = ["--registries", settings.as_str()];
    each_way(&[&["pull", &image, "--store", &store], &settings[..]].concat(), &[]).await?;
    each_way(&[&["inspect", &image, "--store", &store], &settings[..]].concat(), &[]).await?;
    each_way(&[&["push", &file, &image], &settings[..]].concat(), &[]).await?;
    let asked = format!("{image}={}", place::free_port()?);
    each_way(&[&["run", "--image", &asked, "--store", &store], &settings[..]].concat(), &[]).await
}

/// A server that answers each request with a refusal of an API server's, until the process ends.
fn api_server() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": HOSTILE, "message": HOSTILE});
    let body = status.to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            _ = stream.read(&mut [0; 8 << 10]);
            let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n";
            _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
    Ok(port)
}

#[tokio::test]
async fn answers_of_an_api_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("kubeconfig");
    let server = format!("http://127.0.0.1:{}", api_server()?);
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&config, text.to_string())?;
    let config = config.display().to_string();
    let variables = [("KUBECONFIG", config.as_str())];
    each_way(&["check"], &variables).await?;
    each_way(&["uninstall"], &variables).await
}
