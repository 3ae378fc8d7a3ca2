//! Strangers at control's ports: thousands of connections that say nothing, or half a head, or what is no token, keep neither the kubelet's probes
//! nor a node from their answers, and cost a bounded amount.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    control::{Access, Control, Plane},
    eventually, process,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// So many strangers.
const STRANGERS: usize = 3_000;

/// What they may cost beyond what control had, in bytes.
const COST: u64 = 160 << 20;

/// Lets this process have as many descriptors as it may.
fn many_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// Connects so often and says this each time.
fn strangers(port: u16, says: &[u8]) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for _ in 0..STRANGERS {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), SOON)?;
        // One that was closed meanwhile is no fault.
        _ = stream.write_all(says);
        all.push(stream);
    }
    Ok(all)
}

/// What a probe gets.
fn probe(control: &Control, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], control.health())), SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn half_heads_at_the_probes_port_keep_no_probe_from_its_answer() -> Result<()> {
    many_descriptors()?;
    let plane = Plane::start().await?;
    let control = plane.leader("control-0").await?;
    let (before, sockets) = (process::memory(control.pid())?, process::sockets(control.pid())?);
    let all = strangers(control.health(), b"GET /livez HTTP/1.1\r\nx: ")?;
    for path in ["/livez", "/readyz"].iter().cycle().take(10) {
        let answer = probe(&control, path)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer:?}");
    }
    // Others that are on their way meanwhile are control's own.
    let held = process::sockets(control.pid())?.saturating_sub(sockets);
    ensure!(held <= 100, "{held} connections are held for {STRANGERS} strangers");
    let cost = process::memory(control.pid())?.saturating_sub(before);
    ensure!(cost < 32 << 20, "they cost {cost} bytes");
    eventually("the end of those that are held", SOON, async || {
        let held = process::sockets(control.pid())?.saturating_sub(sockets);
        ensure!(held <= 10, "{held} are held");
        Ok(())
    })
    .await?;
    drop(all);
    Ok(())
}

/// A node's stream, written to a file as it comes. It ends when this is dropped.
struct Stream(Child, tempfile::NamedTempFile);

impl Stream {
    fn open(access: &Access) -> Result<Self> {
        let said = tempfile::NamedTempFile::new()?;
        let token = std::fs::read_to_string(&access.token)?;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--max-time", "300", "--cacert"]).arg(&access.authority);
        // Not as an argument: others could see it.
        curl.args(["--header", "@-", "--data", r#"{"versions":[1]}"#]).arg(format!("{}/v1/stream", access.url));
        let mut curl = curl.stdin(Stdio::piped()).stdout(said.reopen()?).spawn()?;
        let mut stdin = curl.stdin.take().context("no standard input")?;
        write!(stdin, "authorization: Bearer {token}\ncontent-type: application/json\n")?;
        Ok(Self(curl, said))
    }

    async fn says(&self, text: &str) -> Result<()> {
        eventually("what a node is told", SOON, async || {
            let said = std::fs::read_to_string(self.1.path())?;
            ensure!(said.contains(text), "expected {text:?}: {said}");
            Ok(())
        })
        .await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn strangers_at_the_nodes_port_keep_no_node_from_its_stream() -> Result<()> {
    many_descriptors()?;
    let plane = Plane::start().await?;
    let control = plane.leader("control-0").await?;
    let access = |node: &str| plane.access(&control, &plane.agent(node)?.token);
    plane.cluster_component("clock", &json!({"image": "r.example/clock:1"}))?;
    plane.pod("shop", "cart", "a", "clock=8081")?;
    let stream = Stream::open(&access("a")?)?;
    stream.says("\"cart\"").await?;
    let (before, sockets) = (process::memory(control.pid())?, process::sockets(control.pid())?);
    // Nothing; the beginning of a record of TLS.
    let began = Instant::now();
    let silent = [strangers(control.port(), b"")?, strangers(control.port(), &[0x16, 3, 1, 2, 0, 1])?];
    let most = process::memory(control.pid())?.saturating_sub(before);
    ensure!(most < COST, "they cost {most} bytes");
    plane.pod("shop", "till", "a", "clock=8081")?;
    stream.says("\"till\"").await?;
    let second = Stream::open(&access("b")?)?;
    second.says("\"complete\"").await?;
    eventually("their end", SOON, async || {
        let held = process::sockets(control.pid())?.saturating_sub(sockets);
        ensure!(held <= 20, "{held} are held after {:?}", began.elapsed());
        Ok(())
    })
    .await?;
    drop(silent);
    // Tokens that are none, as many as come through.
    let url = format!("{}/v1/stream", control.url());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let mut curl = Command::new("curl");
                    curl.args(["--silent", "--insecure", "--output", "/dev/null", "--max-time", "20", "--data", "{}"]);
                    curl.args(["--header", "authorization: Bearer e30.e30.e30"]).args(vec![url.as_str(); 50]);
                    _ = curl.stdin(Stdio::null()).status();
                }
            });
        }
        let third = access("c").and_then(|access| Stream::open(&access));
        let told = is_served(third);
        is_over.store(true, Relaxed);
        told
    })?;
    plane.pod("shop", "bag", "a", "clock=8081")?;
    stream.says("\"bag\"").await
}

/// Waits until a node is told everything, without giving its thread up.
fn is_served(stream: Result<Stream>) -> Result<()> {
    let (stream, began) = (stream?, Instant::now());
    loop {
        let said = std::fs::read_to_string(stream.1.path())?;
        if said.contains("\"complete\"") {
            return Ok(());
        }
        ensure!(began.elapsed() < SOON, "it is told nothing among strangers: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
