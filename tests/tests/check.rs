//! `pillion check` before a real API server where nothing is installed but the definitions.

use anyhow::{Result, ensure};
use pillion_tests::{
    control::{AGENT, NAMESPACE, Plane},
    program,
};
use serde_json::{Value, json};

/// Runs it by a kubeconfig; gives its exit code, and its findings.
fn check(kubeconfig: &std::path::Path) -> Result<(Option<i32>, Vec<Value>)> {
    let mut pillion = program::clean(program::binary()?);
    let output = pillion.env("KUBECONFIG", kubeconfig).args(["check", "-o", "json"]).output()?;
    let stdout = String::from_utf8(output.stdout)?;
    let findings = stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((output.status.code(), findings))
}

fn has(findings: &[Value], level: &str, text: &str) -> Result<()> {
    let is_it =
        |finding: &Value| finding.get("level").is_some_and(|is| is == level) && finding.to_string().contains(text);
    ensure!(findings.iter().any(is_it), "no {level} with {text:?}: {findings:#?}");
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_found_and_what_may_not_be_seen_is_said() -> Result<()> {
    let plane = Plane::start().await?;
    plane.pod("shop", "cart", "a", "clock=8081")?;
    plane.cluster_component("other", &json!({"image": "r.example/other:1"}))?;
    let (code, findings) = check(&plane.api.kubeconfig())?;
    ensure!(code == Some(1), "{code:?}");
    has(&findings, "ok", "both are there")?;
    has(&findings, "problem", "there is no Deployment")?;
    has(&findings, "problem", "there is no DaemonSet")?;
    has(&findings, "problem", "pod shop/cart")?;
    let token = plane.api.kubectl(&["create", "token", AGENT, "-n", NAMESPACE])?;
    let (code, findings) = check(&plane.api.kubeconfig_with_token(token.trim())?)?;
    ensure!(code == Some(1), "{code:?}");
    has(&findings, "unknown", "forbidden")?;
    let mut nobody = program::clean(program::binary()?);
    let output = nobody.env("KUBECONFIG", "/nowhere/kubeconfig").arg("check").output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("/nowhere/kubeconfig"), "{said}");
    Ok(())
}
