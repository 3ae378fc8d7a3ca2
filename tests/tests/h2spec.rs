//! HTTP/2 as its specification says, asked by `h2spec`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, Host, place};

/// Cases that fail, each with the reason why that is as it should be.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "http2/3.5 Sends invalid connection preface",
    "what does not begin like HTTP/2 is HTTP/1.1 on the same port: it is answered 400, and the connection is closed",
)];

/// `/count` reads the request's body to its end: what answers before may be done before it could see what is wrong with it.
const ARGUMENTS: [&str; 6] = ["-h", "127.0.0.1", "-P", "/count", "-o", "3"];

fn h2spec() -> Result<PathBuf> {
    let path = place::cache()?.join("tools/bin/h2spec");
    let install = "go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";
    let folder = path.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    ensure!(path.is_file(), "{} is not there: `make test` installs it, by GOBIN={folder} {install}", path.display());
    Ok(path)
}

/// The cases in a report that failed: section and title.
fn failed(report: &str) -> Vec<(String, String)> {
    let attribute = |text: &str, name: &str| -> Option<String> {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let cases = report.split("<testcase ").skip(1).filter(|case| case.contains("<failure") || case.contains("<error"));
    cases
        .map(|case| (attribute(case, "package").unwrap_or_default(), attribute(case, "classname").unwrap_or_default()))
        .collect()
}

#[tokio::test]
async fn an_endpoint_speaks_http_2_as_its_specification_says() -> Result<()> {
    let host = Host::of([Component::guest("faults", "faults-p2")?]).start().await?;
    let report = host.folder().join("report.xml");
    let port = host.port("faults")?.to_string();
    let (tool, written) = (h2spec()?, report.clone());
    let run = move || Command::new(tool).args(ARGUMENTS).args(["-p", &port, "-j"]).arg(written).output();
    let output = tokio::task::spawn_blocking(run).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = std::fs::read_to_string(report).with_context(|| said.clone())?;
    let cases = report.matches("<testcase ").count();
    assert!(cases > 100, "h2spec ran {cases} cases only: {said}");
    let unexpected: Vec<_> = failed(&report)
        .into_iter()
        .filter(|(section, title)| !EXCEPTIONS.iter().any(|(case, _)| *case == format!("{section} {title}")))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}\n{said}");
    for (case, reason) in EXCEPTIONS {
        let still = failed(&report).iter().any(|(section, title)| format!("{section} {title}") == case);
        assert!(still, "{case} does not fail any more: its exception ({reason}) can go");
    }
    Ok(())
}
