//! The starter catalog, as `make run` serves it: what `deploy/catalog/try` prints answers.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Host, place};

/// The sidecars with the ports that `make run` gives them.
const SIDECARS: [(&str, u16); 3] = [("jwt-authz", 8081), ("flags", 8082), ("whoami", 8083)];

fn catalog() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/catalog")
}

#[tokio::test]
async fn the_printed_curl_lines_answer() -> Result<()> {
    let ports = SIDECARS.iter().map(|_| place::free_port()).collect::<Result<Vec<_>>>()?;
    let sidecars: Vec<_> = SIDECARS.iter().zip(&ports).map(|((name, _), port)| format!("{name}={port}")).collect();
    let mut args = vec!["--sidecars".to_owned(), sidecars.join(", "), "-f".into()];
    for (name, _) in SIDECARS {
        let yaml = catalog().join(name).join("component.yaml");
        ensure!(yaml.with_file_name(format!("{name}.wasm")).is_file(), "{name} is not built: `make test` builds it");
        args.push(yaml.display().to_string());
    }
    let host = Host::of([]).args(args).start().await?;
    let serving = host.event("serving").context("no event `serving`")?;
    assert_eq!(serving["ready"], 3, "{:?}", host.events());

    let printed = Command::new(catalog().join("try")).output()?;
    let mut lines = String::from_utf8(printed.stdout)?;
    for ((_, default), port) in SIDECARS.iter().zip(&ports) {
        lines = lines.replace(&format!("localhost:{default}"), &format!("localhost:{port}"));
    }
    let curls: Vec<_> = lines.lines().map(str::trim).filter(|line| line.starts_with("curl")).collect();
    assert_eq!(curls.len(), SIDECARS.len(), "{lines}");
    let expected = ["x-auth-subject: alice", "\"variant\":\"large\"", "GET http://localhost"];
    for (curl, expected) in curls.into_iter().zip(expected) {
        let line = format!("{curl} --silent --show-error --max-time {}", Duration::from_secs(10).as_secs());
        let answer = Command::new("sh").arg("-c").arg(&line).output()?;
        let text = String::from_utf8_lossy(&answer.stdout);
        assert!(answer.status.success() && text.contains(expected), "{line}: {answer:?}");
    }
    Ok(())
}
