//! A stream of control's that ends at any byte: what was whole counts, what was not is as if it had never been said, and the rest is told
//! afterwards.
//!
//! Control is a fake here: the real one cannot be made to stop after a given byte. The follower is the real one.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, future::pending, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use pillion_protocol::{
    component::{ComponentSpec, Image},
    pod::Pod,
    stream::{Key, Subscribe, ToNode, Version, WantedPod},
};
use pillion_tests::{
    client::{Body, streamed},
    program,
    server::Server,
    tls::Authority,
};
use serde_json::{Value, json};

/// Followers at once.
const AT_ONCE: usize = 16;

fn version(text: &str) -> Version {
    Version(text.into())
}

/// What a node is told first.
fn snapshot() -> Result<Vec<ToNode>> {
    let spec = ComponentSpec::new(Image::Reference("r.example/acme/clock:1".parse()?));
    let pod = Pod { uid: "0a1b".parse()?, namespace: "shop".into(), name: "cart".into() };
    let wanted = WantedPod { pod, sidecars: "clock=8081".parse()?, refused: BTreeMap::new() };
    Ok(vec![
        ToNode::Hello { version: 1, control: "control-0".into(), heartbeat_seconds: 10 },
        ToNode::Component { id: "shop/clock".parse()?, version: version("a"), wanted: spec.into() },
        ToNode::Pod { version: version("b"), wanted },
        ToNode::Complete,
    ])
}

fn lines(told: &[ToNode]) -> Result<Vec<String>> {
    told.iter().map(|told| Ok(serde_json::to_string(told)? + "\n")).collect()
}

/// What nodes have asked for, by where they were cut.
type Asked = Arc<Mutex<HashMap<usize, Vec<Subscribe>>>>;

/// A control that ends a node's first stream after as many bytes as its URL says. The next one it does not end.
fn control(authority: &Authority, asked: &Asked) -> Result<Server> {
    let (told, asked) = (snapshot()?, Arc::clone(asked));
    Server::with_tls(authority, move |request| answer(request, told.clone(), Arc::clone(&asked)))
}

async fn answer(request: Request<Incoming>, told: Vec<ToNode>, asked: Asked) -> std::io::Result<Response<Body>> {
    let bytes = request.uri().path().split('/').nth(1).and_then(|part| part.parse().ok()).unwrap_or_default();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let subscribe: Subscribe = serde_json::from_slice(&body)?;
    let known = subscribe.known.clone();
    let is_first = {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked.entry(bytes).or_default();
        asked.push(subscribe);
        asked.len() == 1
    };
    let news = told.into_iter().filter(|told| told.key().is_none_or(|key| known.get(&key) != told.version()));
    let text = lines(&news.collect::<Vec<_>>()).map_err(std::io::Error::other)?.concat();
    let said = if is_first { text.get(..bytes).unwrap_or_default().to_owned() } else { text };
    let end = async move {
        // What was said has to be out before the connection is cut.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if is_first { Err(std::io::Error::other("cut")) } else { pending().await }
    };
    let said = stream::iter([Ok(Frame::data(Bytes::from(said)))]).chain(stream::once(end));
    Ok(Response::new(streamed(said)))
}

/// A follower. It is killed when it is dropped.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Follower {
    fn start(url: &str, authority: &Authority, token: &std::path::Path) -> Result<Self> {
        let mut command = Command::new(program::binary()?);
        command.arg("follower").arg(std::process::id().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let settings = json!({"url": url, "authority": authority.certificate(), "token": token});
        let start = json!({"settings": settings, "known": {}});
        child.stdin.as_mut().context("no standard input")?.write_all(format!("{start}\n").as_bytes())?;
        Ok(Self(child))
    }

    /// What it hands on, until everything was told; without who control is.
    fn hands_on(&mut self) -> Result<Vec<ToNode>> {
        let mut told = Vec::new();
        for line in BufReader::new(self.0.stdout.as_mut().context("no standard output")?).lines() {
            let mut word: Value = serde_json::from_str(&line?)?;
            ensure!(word.get("Misunderstood").is_none(), "{word}");
            let Some(said) = word.get_mut("Told") else { continue };
            match serde_json::from_value(said.take())? {
                ToNode::Hello { .. } => {}
                ToNode::Complete => return Ok(told),
                other => told.push(other),
            }
        }
        anyhow::bail!("it ended; it had handed on {told:?}")
    }
}

/// What is told by lines that are whole in so many bytes.
fn whole(told: &[ToNode], bytes: usize) -> Result<BTreeMap<Key, Version>> {
    let (mut end, mut known) = (0, BTreeMap::new());
    for (told, line) in told.iter().zip(lines(told)?) {
        end += line.len();
        if end <= bytes {
            told.note_in(&mut known);
        }
    }
    Ok(known)
}

#[test]
fn a_stream_that_is_cut_at_any_byte_loses_nothing_and_doubles_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::found(folder.path())?;
    let token = folder.path().join("token");
    std::fs::write(&token, "token")?;
    let (asked, told) = (Asked::default(), snapshot()?);
    let server = control(&authority, &asked)?;
    let url = server.url();
    let expected: Vec<ToNode> = told.iter().filter(|told| told.key().is_some()).cloned().collect();
    let length = lines(&told)?.concat().len();
    // Where the last line is whole, the first stream is the only one.
    let cuts: Vec<usize> = (0..length).collect();
    std::thread::scope(|scope| {
        let cut = |start: usize| {
            for bytes in cuts.iter().skip(start).step_by(AT_ONCE) {
                let handed_on = Follower::start(&format!("{url}/{bytes}"), &authority, &token)?.hands_on()?;
                ensure!(handed_on == expected, "cut after {bytes} bytes: {handed_on:?}");
                let known: Vec<_> = {
                    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.get(bytes).into_iter().flatten().map(|asked| asked.known.clone()).collect()
                };
                let expected = [BTreeMap::new(), whole(&told, *bytes)?];
                ensure!(known == expected, "cut after {bytes} bytes: it says that it knows {known:?}");
            }
            Ok(())
        };
        let cuts: Vec<_> = (0..AT_ONCE).map(|start| scope.spawn(move || cut(start))).collect();
        cuts.into_iter().try_for_each(|cut| cut.join().map_err(|_| anyhow::anyhow!("a caller has panicked"))?)
    })
}
