//! The command line: what is wrong is named, what is right is done.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    Component, Connection, Host, Protocol,
    client::{empty, request},
    get, place,
    program::{Ended, pillion},
    upstream::Upstream,
    wait_until,
};
use rustix::process::Signal;

/// Runs a command line that is expected to fail with this code and these texts on standard error.
async fn fails(args: &[&str], code: i32, expected: &[&str]) -> Result<Ended> {
    let ended = pillion(args).await?;
    ensure!(ended.code == Some(code), "{args:?}: expected {code}: {ended:?}");
    for text in expected {
        ensure!(ended.stderr.contains(text), "{args:?}: expected {text:?}: {}", ended.stderr);
    }
    Ok(ended)
}

fn hello() -> Result<String> {
    Ok(place::guest("hello-wasip2")?.display().to_string())
}

/// A folder with YAML files.
fn folder(files: &[(&str, String)]) -> Result<(tempfile::TempDir, String)> {
    let folder = tempfile::tempdir()?;
    for (name, text) in files {
        fs::write(folder.path().join(name), text)?;
    }
    let path = folder.path().display().to_string();
    Ok((folder, path))
}

#[tokio::test]
async fn a_port_that_is_in_use_fails_alone_and_is_named() -> Result<()> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = taken.local_addr()?.port();
    let components = [Component::guest("first", "hello-wasip2")?, Component::guest("second", "hello-wasip2")?];
    let host = Host::of(components).port("first", port).start().await?;
    let failed = host.event("failed").context("no event `failed`")?;
    assert_eq!((failed["component"].as_str(), failed["reason"].as_str()), (Some("first"), Some("port")), "{failed}");
    let message = failed["message"].as_str().unwrap_or_default();
    assert!(message.contains(&port.to_string()) && message.to_lowercase().contains("in use"), "{message}");
    let serving = host.event("serving").context("no event `serving`")?;
    assert_eq!(
        (&serving["ready"], &serving["failed"]),
        (&1.into(), &1.into()),
        "a port that failed is a binding that failed"
    );
    assert_eq!(get(Protocol::H1, host.port("second")?, "/").await?.text(), "hello\n");
    let alone = format!("{}={port}", hello()?);
    fails(&["run", &alone], 1, &[&port.to_string(), "in use"]).await?;
    Ok(())
}

#[tokio::test]
async fn ports_that_cannot_be_are_named() -> Result<()> {
    let hello = hello()?;
    for port in ["0", "80", "70000", "-1", "http", ""] {
        let argument = format!("{hello}={port}");
        fails(&["run", &argument], 2, &[&format!("{port:?}"), "1024 to 65535"]).await?;
    }
    let (_folder, path) = folder(&[("x.yaml", Component::file("x", hello).yaml())])?;
    for port in ["0", "80", "70000"] {
        fails(&["run", "-f", &path, "--sidecars", &format!("x={port}")], 2, &[&format!("{port:?}"), "1024 to 65535"])
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_port_for_two_components_names_both() -> Result<()> {
    let (first, second) = (format!("{}=12345", hello()?), format!("{}=12345", place::guest("hello-wstd")?.display()));
    fails(&["run", &first, &second], 2, &["12345", "hello-wasip2", "hello-wstd"]).await?;
    let components = ["x", "y"].map(|name| Ok((format!("{name}.yaml"), Component::file(name, hello()?).yaml())));
    let components = components.into_iter().collect::<Result<Vec<_>>>()?;
    let components: Vec<_> = components.iter().map(|(name, yaml)| (name.as_str(), yaml.clone())).collect();
    let (_folder, path) = folder(&components)?;
    fails(&["run", "-f", &path, "--sidecars", "x=12345, y=12345"], 2, &["12345"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_no_component_has_lists_those_there_are() -> Result<()> {
    let (_folder, path) = folder(&[("x.yaml", Component::file("clock", hello()?).yaml())])?;
    fails(&["run", "-f", &path, "--sidecars", "clokc=12345"], 2, &["\"clokc\"", "clock"]).await?;
    Ok(())
}

#[tokio::test]
async fn yaml_that_cannot_be_read_is_named_by_file_and_place() -> Result<()> {
    let good = Component::file("x", hello()?).yaml();
    let table = [
        ("a: [".to_owned(), "line 1"),
        (good.replace("\"limits\"", "\"limit\""), "limit"),
        (Component::file("x", hello()?).limit("memroy", "64Mi").yaml(), "memroy"),
        (Component::file("x", hello()?).limit("memory", "8Gi").yaml(), "allowed are 1Mi to 4Gi"),
        (Component::file("x", hello()?).limit("cpuTime", "soon").yaml(), "soon"),
        (Component::file("x", hello()?).limit("concurrency", 0).yaml(), "allowed are 1 to 10000"),
        (Component::file("Not A Label", hello()?).yaml(), "Not A Label"),
        (Component::file("x", "hello.wasm").yaml(), "hello.wasm"),
        (Component::file("x", hello()?).may_call("ftp://example.com").yaml(), "ftp"),
        (good.replace("v1alpha1", "v9"), "v9"),
        (String::new(), "no component"),
    ];
    let mut wrong = Vec::new();
    for (yaml, expected) in table {
        let (_folder, path) = folder(&[("broken.yaml", yaml)])?;
        let ended = pillion(&["run", "-f", &path]).await?;
        if !ended.stderr.contains("broken.yaml") || !ended.stderr.contains(expected) {
            wrong.push(format!("expected {expected:?}: {}", ended.stderr));
        }
        if ended.code != Some(1) {
            wrong.push(format!("{expected}: what cannot be read is exit code 1, this was {:?}", ended.code));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn files_that_are_not_there_are_named() -> Result<()> {
    fails(&["run", "-f", "/nowhere/gone.yaml"], 1, &["/nowhere/gone.yaml"]).await?;
    let (_folder, path) = folder(&[])?;
    fails(&["run", "-f", &path], 1, &[&path, "no .yaml or .yml file"]).await?;
    let nested = std::path::Path::new(&path).join("shop");
    std::fs::create_dir(&nested)?;
    std::fs::write(nested.join("clock.yaml"), Component::file("clock", hello()?).yaml())?;
    let named = nested.to_string_lossy().into_owned();
    fails(&["run", "-f", &path], 1, &["no .yaml or .yml file", &named, "folders in it are not read"]).await?;
    fails(&["compile", "/nowhere/gone.wasm"], 1, &["/nowhere/gone.wasm"]).await?;
    fails(&["inspect", "/nowhere/gone.wasm"], 1, &["/nowhere/gone.wasm"]).await?;
    Ok(())
}

#[tokio::test]
async fn two_components_with_one_name_name_both_files() -> Result<()> {
    let yaml = Component::file("clock", hello()?).yaml();
    let (_folder, path) = folder(&[("one.yaml", yaml.clone()), ("two.yaml", yaml)])?;
    let ended = pillion(&["run", "-f", &path]).await?;
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    for text in ["one.yaml", "two.yaml", "\"clock\""] {
        assert!(ended.stderr.contains(text), "expected {text}: {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_command_line_that_says_nothing_is_wrong() -> Result<()> {
    fails(&["run"], 2, &["no component is named"]).await?;
    fails(&["run", "hello.wasm"], 2, &["\"hello.wasm\"", "FILE.wasm=PORT"]).await?;
    fails(&["run", "--no-such-flag"], 2, &["--no-such-flag"]).await?;
    fails(&["no-such-command"], 2, &["no-such-command"]).await?;
    fails(&["run", "x.wasm=12345", "--memory", "much"], 2, &["much", "--memory"]).await?;
    fails(&["run", "x.wasm=12345", "--address", "example"], 2, &["example", "--address"]).await?;
    fails(&["run", "x.wasm=12345", "--drain-timeout", "5"], 2, &["--drain-timeout"]).await?;
    fails(&[], 2, &["Usage"]).await?;
    Ok(())
}

#[tokio::test]
async fn the_short_form_serves_a_file_at_a_port() -> Result<()> {
    let port = place::free_port()?;
    let host = Host::of([]).args([format!("{}={port}", hello()?)]).start().await?;
    let ready = host.event("ready").context("no event `ready`")?;
    assert_eq!(
        (ready["component"].as_str(), ready["port"].as_u64()),
        (Some("hello-wasip2"), Some(port.into())),
        "{ready}"
    );
    assert_eq!(get(Protocol::H1, port, "/").await?.text(), "hello\n");
    Ok(())
}

#[tokio::test]
async fn any_file_is_served_by_a_name_that_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("second"))?;
    let file = |path: &str| folder.path().join(path).display().to_string();
    let components = ["first", "second", "third", "fourth"].into_iter();
    let components = components.zip(["_.wasm", "café.wasm", "x=y.wasm", "second/_.wasm"]);
    let components = components.map(|(name, path)| Ok((name, file(path), place::free_port()?)));
    let components = components.collect::<Result<Vec<_>>>()?;
    for (_, path, port) in &components {
        fs::copy(hello()?, path)?;
        let plain = format!("{path}={port}");
        fails(&["run", &plain], 2, &["no name", &format!("\"NAME={plain}\"")]).await?;
    }
    let host = Host::of([]).args(components.iter().map(|(name, path, port)| format!("{name}={path}={port}")));
    let host = host.start().await?;
    for (name, _, port) in &components {
        assert_eq!(get(Protocol::H1, *port, "/").await?.text(), "hello\n", "{name}");
    }
    let mut ready: Vec<_> = host.events_of("ready").iter().map(|event| event["component"].to_string()).collect();
    ready.sort();
    assert_eq!(ready, ["\"first\"", "\"fourth\"", "\"second\"", "\"third\""]);
    Ok(())
}

#[tokio::test]
async fn two_files_of_one_name_say_how_to_name_the_second() -> Result<()> {
    let second = "/elsewhere/hello-wasip2.wasm=12346";
    let first = format!("{}=12345", hello()?);
    fails(&["run", &first, second], 2, &["\"hello-wasip2\" is already in", &format!("\"NAME={second}\"")]).await?;
    let image = "registry.example/acme/hello-wasip2:1=12346";
    fails(&["run", &first, "--image", image], 2, &[&format!("\"NAME={image}\"")]).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_calls_out_where_the_command_line_allows_it() -> Result<()> {
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nup\n").await?;
    let url = format!("http://127.0.0.1:{}", upstream.port());
    for (allowed, status) in
        [(vec![], 502), (vec!["--allow-outbound", "https://example.com", "--allow-outbound", &url], 200)]
    {
        let port = place::free_port()?;
        let file = format!("{}={port}", place::guest("faults-p2")?.display());
        let host = Host::of([]).args([file.as_str()].into_iter().chain(allowed)).start().await?;
        let answer = get(Protocol::H1, port, &format!("/out?url={url}/")).await?;
        assert_eq!(answer.status, status, "{}", answer.text());
        drop(host);
    }
    fails(&["run", "x.wasm=12345", "--allow-outbound", "example.com"], 2, &["\"example.com\"", "SCHEME://HOST"])
        .await?;
    let (_folder, path) = folder(&[("x.yaml", Component::file("x", hello()?).yaml())])?;
    fails(&["run", "-f", &path, "--allow-outbound", &url], 2, &["spec.allowedOutboundHosts"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_path_in_yaml_is_relative_to_its_file() -> Result<()> {
    let (folder, path) = folder(&[("x.yaml", Component::file("x", "./guests/hello.wasm").yaml())])?;
    fs::create_dir(folder.path().join("guests"))?;
    fs::copy(hello()?, folder.path().join("guests/hello.wasm"))?;
    let port = place::free_port()?;
    let host = Host::of([]).args(["-f", &path, "--sidecars", &format!("x={port}")]).start().await?;
    assert_eq!(get(Protocol::H1, port, "/").await?.text(), "hello\n");
    drop(host);
    Ok(())
}

/// Starts `pillion run` as for people, waits until standard output holds `until`, ends it, and gives standard output.
async fn table(args: Vec<String>, until: &'static str) -> Result<String> {
    let mut command = std::process::Command::new(pillion_tests::program::binary()?);
    let out = tempfile::NamedTempFile::new()?;
    let store = place::shared_store()?;
    command.arg("run").args(args).arg("--store").arg(store).stdout(out.reopen()?).stderr(std::process::Stdio::null());
    let mut child = command.spawn()?;
    let said = wait_until(until, Duration::from_secs(60), || {
        fs::read_to_string(out.path()).ok().filter(|text| text.contains(until))
    });
    let said = said.await;
    pillion_tests::process::signal(child.id(), Signal::TERM)?;
    tokio::task::spawn_blocking(move || child.wait()).await??;
    said
}

#[tokio::test]
async fn without_sidecars_each_component_gets_a_port_and_a_table_says_which() -> Result<()> {
    let names = ["one", "two", "three"];
    let components = names.map(|name| Ok((format!("{name}.yaml"), Component::file(name, hello()?).yaml())));
    let components = components.into_iter().collect::<Result<Vec<_>>>()?;
    let components: Vec<_> = components.iter().map(|(name, yaml)| (name.as_str(), yaml.clone())).collect();
    let (_folder, path) = folder(&components)?;
    let said = table(vec!["-f".into(), path], "two ").await?;
    let ports: Vec<u16> = names
        .iter()
        .map(|name| {
            let line = said.lines().find(|line| line.starts_with(name) && line.contains("ready"));
            let line = line.with_context(|| format!("no line for {name}: {said}"))?;
            let (_, port) = line.split_once("http://localhost:").context("no URL")?;
            Ok(port.split(' ').next().unwrap_or_default().parse()?)
        })
        .collect::<Result<_>>()?;
    assert!(ports.iter().all(|&port| port >= 8080), "{ports:?}");
    let mut different = ports.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 3, "{ports:?}");
    Ok(())
}

#[tokio::test]
async fn several_components_may_be_in_one_file() -> Result<()> {
    let both = [Component::file("one", hello()?).yaml(), Component::file("two", hello()?).yaml()].join("---\n");
    let (_folder, path) = folder(&[("both.yaml", both)])?;
    let (one, two) = (place::free_port()?, place::free_port()?);
    let sidecars = format!("one={one}, two={two}");
    let host = Host::of([]).args(["-f", &format!("{path}/both.yaml"), "--sidecars", &sidecars]).start().await?;
    for port in [one, two] {
        assert_eq!(get(Protocol::H1, port, "/").await?.text(), "hello\n");
    }
    drop(host);
    Ok(())
}

#[tokio::test]
async fn other_addresses_may_be_listened_on() -> Result<()> {
    let port = place::free_port()?;
    let argument = format!("{}={port}", hello()?);
    let host = Host::of([]).args([argument.as_str(), "--address", "127.0.0.2"]).start().await?;
    tokio::net::TcpStream::connect(("127.0.0.2", port)).await?;
    assert!(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err(), "only what is said");
    assert!(!host.log().iter().any(|line| line.contains("everybody")), "nobody else reaches it: {:?}", host.log());
    drop(host);
    // Of an address of this machine that is none of its own loopback's: it is not listened on, and said all the same.
    let ended = pillion(&["run", &argument, "--address", "192.0.2.1"]).await?;
    ensure!(
        ended.code == Some(1) && ended.stderr.contains("everybody") && ended.stderr.contains("192.0.2.1"),
        "{ended:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_long_annotation_and_a_relative_folder_work() -> Result<()> {
    let (folder, path) = folder(&[("x.yaml", Component::file("x", hello()?).yaml())])?;
    assert!(Path::new(&path).is_absolute());
    let relative: PathBuf = Path::new(&path).components().filter(|part| part.as_os_str() != "/").collect();
    let mut up = PathBuf::from("./");
    up.extend(std::env::current_dir()?.components().skip(1).map(|_| ".."));
    let sidecars = format!("  x = {}  ,", place::free_port()?);
    let sidecars = sidecars.trim_end_matches(',').replace(" = ", "=");
    let args = ["-f".into(), up.join(relative).display().to_string(), "--sidecars".into(), sidecars];
    let host = Host::of([]).args(args).start().await?;
    let port = host.event("ready").and_then(|event| event["port"].as_u64()).context("no port")?;
    assert_eq!(get(Protocol::H1, u16::try_from(port)?, "/").await?.text(), "hello\n");
    drop(folder);
    let mut connection = Connection::open(Protocol::H1, u16::try_from(port)?).await?;
    let answer = connection.fetch(request("GET", "/", empty())?).await?;
    assert_eq!(answer.text(), "hello\n", "what is served does not need its files any more");
    Ok(())
}
