//! A node's stream: what it has not, then every change, for as long as its token is good and its pod lives.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use pillion_protocol::stream::{Key, Subscribe, ToNode, Version, common_version};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Refused, Served, identity, leads, read,
    session::{self, Open},
};
use crate::control::Control;

/// Something is said at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A burst of changes is told as one.
const BURST: Duration = Duration::from_millis(20);

/// A node that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(30);

/// The messages that wait for a node which is slow.
const AHEAD: usize = 64;

pub(super) async fn open(
    State(Served { control, client }): State<Served>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let who = async {
        leads(&control)?;
        Ok::<_, Refused>(identity::identify(&client, &control, identity::token(&headers)?).await?)
    };
    let identity = match who.await {
        Ok(identity) => identity,
        Err(refused) => return Err(refused.after(body).await),
    };
    let subscribe: Subscribe = read(body).await?;
    let version = common_version(&subscribe.versions).ok_or(Refused::Version { theirs: subscribe.versions })?;
    let until = Instant::now() + identity.lasts;
    let open = session::open(&control, &identity);
    tracing::info!(node = &*identity.node, version, known = subscribe.known.len(), "a node has its stream");
    let (lines, told) = mpsc::channel(AHEAD);
    let node = identity.node;
    let teller = Teller { control, open, lines, known: subscribe.known };
    tokio::spawn(async move {
        let why = teller.tell(&node, version, until).await;
        tracing::info!(node = &*node, why, "a node's stream ends");
    });
    let body = Body::from_stream(stream::unfold(told, async |mut told: mpsc::Receiver<Bytes>| {
        let line = told.recv().await?;
        Some((Ok::<_, Infallible>(line), told))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

struct Teller {
    control: Arc<Control>,
    open: Open,
    lines: mpsc::Sender<Bytes>,
    /// What the node has.
    known: BTreeMap<Key, Version>,
}

/// Why a stream ends.
struct Ended(&'static str);

impl Teller {
    /// Tells everything until it ends; gives why.
    async fn tell(mut self, node: &str, version: u32, until: Instant) -> &'static str {
        let Err(Ended(why)) = self.run(node, version, until).await;
        why
    }

    async fn run(&mut self, node: &str, version: u32, until: Instant) -> Result<Infallible, Ended> {
        let control = Arc::clone(&self.control);
        let session = Arc::clone(&self.open.session);
        let hello = ToNode::Hello {
            version,
            control: control.settings.identity.clone(),
            heartbeat_seconds: HEARTBEAT.as_secs(),
        };
        self.say(&hello).await?;
        self.say_what_is_otherwise(node).await?;
        self.say(&ToNode::Complete).await?;
        let mut silent_until = Instant::now() + HEARTBEAT;
        loop {
            tokio::select! {
                () = session.changed.notified() => {
                    tokio::time::sleep(BURST).await;
                    if self.say_what_is_otherwise(node).await? {
                        silent_until = Instant::now() + HEARTBEAT;
                    }
                }
                () = sleep_until(silent_until) => {
                    self.say(&ToNode::Heartbeat).await?;
                    silent_until = Instant::now() + HEARTBEAT;
                }
                () = control.until_leading(false) => return Err(Ended("another replica leads now")),
                () = session.until_ended() => return Err(Ended("its pod is no more")),
                () = sleep_until(until) => return Err(Ended("its token has expired")),
                () = self.lines.closed() => return Err(Ended("the node is gone")),
            }
        }
    }

    /// Whether there was anything to say.
    async fn say_what_is_otherwise(&mut self, node: &str) -> Result<bool, Ended> {
        let news = crate::catalog::difference(&self.known, &self.control.view(node));
        for told in &news {
            self.say(told).await?;
            told.note_in(&mut self.known);
        }
        Ok(!news.is_empty())
    }

    async fn say(&self, told: &ToNode) -> Result<(), Ended> {
        let mut line = serde_json::to_vec(told).map_err(|_| Ended("something cannot be written"))?;
        line.push(b'\n');
        let sent = timeout_at(Instant::now() + STALL, self.lines.send(line.into())).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended("the node is gone")),
            Err(_) => Err(Ended("the node takes nothing")),
        }
    }
}
