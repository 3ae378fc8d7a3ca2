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

/// Something of the namespace `shop` that makes pods: its annotations; the annotations and labels of its pods.
fn workload(api: &str, kind: &str, name: &str, own: &Value, of_pods: &Value) -> Value {
    let restart = if kind == "Job" || kind == "CronJob" { "Never" } else { "Always" };
    let pod = json!({"containers": [{"name": "c", "image": "r.example/c:1"}], "restartPolicy": restart});
    let template = json!({"metadata": of_pods, "spec": pod});
    let selector = json!({"matchLabels": {"app": name}});
    let spec = match kind {
        "Job" => json!({"template": template}),
        "CronJob" => json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}}),
        "StatefulSet" => json!({"template": template, "selector": selector, "serviceName": name}),
        _ => json!({"template": template, "selector": selector}),
    };
    let metadata = json!({"name": name, "namespace": "shop", "annotations": own});
    json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})
}

/// Another one made this.
fn made(workload: &mut Value) {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]);
    let metadata = workload.pointer_mut("/metadata").and_then(Value::as_object_mut);
    metadata.into_iter().for_each(|metadata| _ = metadata.insert("ownerReferences".into(), owner.clone()));
}

#[tokio::test]
async fn what_stands_where_nothing_reads_it_is_found() -> Result<()> {
    let plane = Plane::start().await?;
    let (none, said) = (json!({}), json!({"pillion.dev/sidecars": "clock=8081"}));
    // Each has pods that the selectors of its kind find.
    let pods = |name: &str, annotations: &Value| json!({"labels": {"app": name}, "annotations": annotations});
    let labelled = json!({"labels": {"app": "alone", "pillion.dev/sidecars": "clock"}});
    let mut items = [
        workload("apps/v1", "Deployment", "web", &said, &pods("web", &none)),
        workload("apps/v1", "StatefulSet", "db", &said, &pods("db", &none)),
        workload("apps/v1", "DaemonSet", "logs", &none, &pods("logs", &json!({"pillion.dev/sidecar": "clock=8081"}))),
        workload("apps/v1", "ReplicaSet", "alone", &none, &labelled),
        workload("batch/v1", "Job", "once", &said, &none),
        workload("batch/v1", "CronJob", "often", &said, &none),
        workload("apps/v1", "Deployment", "right", &said, &pods("right", &said)),
        workload("apps/v1", "ReplicaSet", "made", &said, &pods("made", &none)),
    ];
    items.last_mut().into_iter().for_each(made);
    plane.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    plane.api.kubectl(&["annotate", "namespace", "shop", "pillion.dev/inject=true"])?;
    plane.cluster_component("clock", &json!({"image": "r.example/clock:1"}))?;
    let sidecar = json!({"name": "cart", "namespace": "shop", "annotations": {"pillion.dev/sidecar": "clock=8081"}});
    plane.pod_of("a", &sidecar, &json!({"name": "main", "image": "r.example/c:1"}))?;
    let port = json!({"name": "port", "namespace": "shop", "annotations": {"pillion.dev/sidecars": "clock=8081"}});
    let container = json!({"name": "main", "image": "r.example/c:1", "ports": [{"containerPort": 8081}]});
    plane.pod_of("a", &port, &container)?;
    let (code, findings) = check(&plane.api.kubeconfig())?;
    ensure!(code == Some(1), "{code:?}");
    let of = |about: &str| -> Vec<String> {
        let is_it = |finding: &&Value| finding.get("about").is_some_and(|is| is == about);
        findings.iter().filter(is_it).map(Value::to_string).collect()
    };
    let own = "nothing reads the annotation pillion.dev/sidecars of its own";
    for (about, expected) in [
        ("Deployment shop/web", &[own, " spec.template.metadata.annotations"][..]),
        ("StatefulSet shop/db", &[own, " spec.template.metadata.annotations"]),
        ("DaemonSet shop/logs", &["nothing reads the annotation pillion.dev/sidecar of its pods"]),
        ("ReplicaSet shop/alone", &["nothing reads the label pillion.dev/sidecars of its pods"]),
        ("Job shop/once", &[own, " spec.template.metadata.annotations"]),
        ("CronJob shop/often", &[own, " spec.jobTemplate.spec.template.metadata.annotations"]),
        ("Namespace shop", &["nothing reads the annotation pillion.dev/inject"]),
        ("pod shop/cart", &["nothing reads the annotation pillion.dev/sidecar"]),
        ("pod shop/port", &["port 8081 is a containerPort of the container"]),
    ] {
        let found = of(about);
        let is_it = |finding: &String| expected.iter().all(|expected| finding.contains(expected));
        ensure!(found.iter().any(is_it), "{about}: {findings:#?}");
    }
    for quiet in ["ReplicaSet shop/made", "Deployment shop/right"] {
        ensure!(of(quiet).is_empty(), "{quiet}: {findings:#?}");
    }
    Ok(())
}
