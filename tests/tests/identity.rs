//! Who control tells what: a node's token gets that node's pods and what they name, for as long as its pod lives; every other token gets
//! nothing.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    control::{AGENT, AUDIENCE, Access, Control, NAMESPACE, Plane},
    eventually, wait_until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// What a caller of the stream gets: the status, and what was said within a second or two.
struct Said {
    status: u16,
    body: String,
}

/// Asks for a stream as somebody with a token, for so many seconds.
fn ask(access: &Access, path: &str, token: &str, seconds: u32) -> Result<Said> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--no-buffer", "--write-out", "\n%{http_code}", "--max-time", &seconds.to_string()]);
    curl.arg("--cacert").arg(&access.authority).args(["--header", "content-type: application/json"]);
    // Not as an argument: others could see it.
    curl.args(["--header", "@-", "--data", r#"{"versions":[1]}"#]).arg(format!("{}{path}", access.url));
    let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    curl.stdin.take().context("no standard input")?.write_all(format!("authorization: Bearer {token}\n").as_bytes())?;
    let output = curl.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').with_context(|| text.clone())?;
    Ok(Said { status: status.parse()?, body: body.into() })
}

fn read(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path)?)
}

struct World {
    plane: Plane,
    control: Control,
    access: Access,
    /// The agent's token on node `a`.
    token: String,
}

impl World {
    async fn start() -> Result<Self> {
        let plane = Plane::start().await?;
        let control = plane.leader("control-0").await?;
        let agent = plane.agent("a")?;
        let (access, token) = (plane.access(&control, &agent.token)?, read(&agent.token)?);
        plane.cluster_component("clock", &json!({"image": "r.example/clock:1"}))?;
        plane.cluster_component("secret", &json!({"image": "r.example/secret:1"}))?;
        plane.pod("shop", "cart", "a", "clock=8081")?;
        plane.pod("bank", "vault", "b", "secret=8081")?;
        Ok(Self { plane, control, access, token })
    }

    fn refused(&self, token: &str, status: u16, why: &str) -> Result<()> {
        let said = ask(&self.access, "/v1/stream", token, 20)?;
        ensure!(said.status == status && said.body.contains(why), "{why}: {} {}", said.status, said.body);
        ensure!(!said.body.contains("r.example"), "{}", said.body);
        Ok(())
    }
}

#[tokio::test]
async fn a_node_is_told_of_its_own_pods_and_of_nothing_else() -> Result<()> {
    let world = World::start().await?;
    eventually("what it needs", SOON, async || {
        let Said { status, body } = ask(&world.access, "/v1/stream", &world.token, 1)?;
        ensure!(status == 200 && body.contains("r.example/clock:1") && body.contains("\"cart\""), "{status}: {body}");
        ensure!(!body.contains("vault") && !body.contains("secret"), "{body}");
        Ok(())
    })
    .await
    .with_context(|| world.control.log())?;
    // What the request says of itself means nothing.
    let claims = ask(&world.access, "/v1/stream?node=b", &world.token, 1)?;
    ensure!(!claims.body.contains("vault"), "{}", claims.body);
    // The API server has nothing for it, either: the token is for control only.
    let kubeconfig = world.plane.api.kubeconfig_with_token(&world.token)?;
    let kubeconfig = kubeconfig.display().to_string();
    for what in ["pods", "secrets", "configmaps", "clustercomponents.pillion.dev"] {
        let refused = world.plane.api.kubectl(&["--kubeconfig", &kubeconfig, "get", what, "-A"]);
        let error = refused.err().with_context(|| format!("it may get {what}"))?;
        ensure!(
            format!("{error:#}").contains("Unauthorized") || format!("{error:#}").contains("logged in"),
            "{error:#}"
        );
    }
    // Nor may its account do anything there.
    let account = format!("system:serviceaccount:{NAMESPACE}:{AGENT}");
    for (verb, what) in [("get", "pods"), ("list", "secrets"), ("get", "clustercomponents.pillion.dev")] {
        let can = world.plane.api.kubectl(&["auth", "can-i", verb, what, "-A", "--as", &account]);
        ensure!(!can.is_ok_and(|can| can.trim() == "yes"), "it can {verb} {what}");
    }
    Ok(())
}

#[tokio::test]
async fn every_other_token_gets_nothing() -> Result<()> {
    let world = World::start().await?;
    let api = &world.plane.api;
    let long = Duration::from_secs(600);
    world.refused("", 401, "no bearer token")?;
    world.refused("nonsense", 401, "not good")?;
    // Anybody can have a token for our audience.
    api.kubectl(&["create", "serviceaccount", "eve", "-n", "shop"])?;
    world.refused(&api.token_for("shop", "eve", AUDIENCE, None, long)?, 403, "is not the agent")?;
    // The agent's, for somebody else.
    let agent = world.plane.agent("a")?;
    let other = api.token_for(NAMESPACE, AGENT, "somebody.else", Some((&agent.name, &agent.uid)), long)?;
    world.refused(&other, 401, "not good")?;
    world.refused(&api.token_for(NAMESPACE, AGENT, AUDIENCE, None, long)?, 403, "bound to no pod")?;
    // A pod that somebody runs as the agent's account.
    let stranger = world.plane.pod_of_the_agents_account("b", json!([]))?;
    world.refused(&read(&stranger.token)?, 403, "not of the DaemonSet")?;
    // One whose pod is gone, known to the API server a moment ago.
    let gone = world.plane.agent("b")?;
    let token = read(&gone.token)?;
    ensure!(ask(&world.access, "/v1/stream", &token, 4)?.status == 200, "it was good before");
    world.plane.delete_pod(NAMESPACE, &gone.name)?;
    let refused = ask(&world.access, "/v1/stream", &token, 20)?;
    ensure!(matches!(refused.status, 401 | 403), "one whose pod is gone: {} {}", refused.status, refused.body);
    // Nor is a report taken from who has no stream.
    let report = ask(&world.access, "/v1/report", "nonsense", 20)?;
    ensure!(
        report.status == 409 && report.body.contains("has no stream"),
        "a report: {} {}",
        report.status,
        report.body
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_pod() -> Result<()> {
    let world = World::start().await?;
    let agent = world.plane.agent("a")?;
    let (access, token) = (world.access.clone(), read(&agent.token)?);
    let began = Instant::now();
    let stream = std::thread::spawn(move || ask(&access, "/v1/stream", &token, 60));
    let has_it = || (world.control.log().matches("a node has its stream").count() == 1).then_some(());
    wait_until("a stream", SOON, has_it).await?;
    world.plane.delete_pod(NAMESPACE, &agent.name)?;
    let said = stream.join().map_err(|_| anyhow::anyhow!("the caller has panicked"))??;
    ensure!(said.status == 200 && began.elapsed() < SOON, "it took {:?}", began.elapsed());
    ensure!(world.control.log().contains("its pod is no more"), "{}", world.control.log());
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_token() -> Result<()> {
    let world = World::start().await?;
    let at = |seconds: i64| {
        let by = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    };
    let token = |seconds| world.plane.api.token_until(&world.token, at(seconds));
    // The API server lets a minute pass, as clocks differ.
    world.refused(&token(-90)?, 401, "not good")?;
    // Whatever control's clock says, it lasts for a minute that the API server has found good.
    let token = token(5)?;
    let (access, began) = (world.access.clone(), Instant::now());
    let shown = token.clone();
    let said = tokio::task::spawn_blocking(move || ask(&access, "/v1/stream", &shown, 120)).await??;
    ensure!(said.status == 200 && said.body.contains("r.example/clock:1"), "{} {}", said.status, said.body);
    let lasted = began.elapsed();
    ensure!((50..90).contains(&lasted.as_secs()), "it lasted {lasted:?}");
    eventually("a refusal", SOON, async || world.refused(&token, 401, "not good")).await
}

#[tokio::test]
async fn one_replica_serves_and_the_other_takes_over() -> Result<()> {
    let mut world = World::start().await?;
    let second = world.plane.control("control-1")?;
    let other = Access { url: second.url(), ..world.access.clone() };
    eventually("a word of who leads", SOON, async || {
        let said = ask(&other, "/v1/stream", &world.token, 2)?;
        ensure!(said.status == 503 && said.body.contains("\"leader\":\"control-0\""), "{} {}", said.status, said.body);
        Ok(())
    })
    .await
    .with_context(|| second.log())?;
    // One that is asked to end gives the Lease up; the next one need not wait for its end.
    let began = Instant::now();
    world.control.end()?;
    eventually("the other's stream", SOON, async || {
        let said = ask(&other, "/v1/stream", &world.token, 1)?;
        ensure!(said.status == 200 && said.body.contains("r.example/clock:1"), "{} {}", said.status, said.body);
        Ok(())
    })
    .await
    .with_context(|| second.log())?;
    ensure!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());
    Ok(())
}

/// One that stands still, as if its machine did, or the network around it, does not lead beside the next one.
#[tokio::test]
async fn a_leader_that_stood_still_serves_nobody_when_it_goes_on() -> Result<()> {
    let world = World::start().await?;
    let second = world.plane.control("control-1")?;
    world.control.hold(true)?;
    let led = world.plane.until_led_by("control-1").await;
    world.control.hold(false)?;
    led.with_context(|| second.log())?;
    eventually("an end of the first one's streams", SOON, async || {
        let said = ask(&world.access, "/v1/stream", &world.token, 1)?;
        ensure!(said.status == 503, "{} {}", said.status, said.body);
        Ok(())
    })
    .await
    .with_context(|| world.control.log())
}

/// Makes an authority of control's older by so many days.
fn age(plane: &Plane, which: usize, days: u64) -> Result<()> {
    let secret = ["secret", "pillion-control-ca", "-n", NAMESPACE];
    let template = r#"go-template={{index .data "authorities.json" | base64decode}}"#;
    let text = plane.api.kubectl(&[&["get"], &secret[..], &["-o", template]].concat())?;
    let mut authorities: Value = serde_json::from_str(&text)?;
    let made = authorities.pointer_mut(&format!("/{which}/made")).context("there is no such authority")?;
    *made = json!(made.as_u64().context("no time")? - days * 86_400);
    let patch = json!({"stringData": {"authorities.json": authorities.to_string()}}).to_string();
    plane.api.kubectl(&[&["patch"], &secret[..], &["--type", "merge", "--patch", &patch]].concat()).map(drop)
}

#[tokio::test]
async fn nodes_know_the_next_authority_before_it_signs() -> Result<()> {
    let mut world = World::start().await?;
    let first = world.plane.token_file("first", &read(&world.access.authority)?)?;
    let status = |access: &Access| Ok::<_, anyhow::Error>(ask(access, "/v1/stream", &world.token, 2)?.status);
    let known_to = |access: &Access, authority: &Path| Access { authority: authority.into(), ..access.clone() };
    age(&world.plane, 0, 400)?;
    world.control.kill()?;
    let mut control = world.plane.leader("control-1").await?;
    let access = world.plane.access(&control, &world.access.token)?;
    ensure!(read(&access.authority)?.matches("BEGIN CERTIFICATE").count() == 2, "the next one is not there");
    ensure!(status(&access)? == 200 && status(&known_to(&access, &first))? == 200, "the first one signs no more");
    // A node that has heard of it needs nothing new when it signs.
    let both = world.plane.token_file("both", &read(&access.authority)?)?;
    age(&world.plane, 1, 2)?;
    control.kill()?;
    let control = world.plane.leader("control-2").await?;
    let access = world.plane.access(&control, &world.access.token)?;
    ensure!(status(&known_to(&access, &both))? == 200, "it is not trusted");
    ensure!(status(&known_to(&access, &first))? == 0, "the first one signs still");
    Ok(())
}
