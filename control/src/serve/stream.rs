//! A node's stream: what it has not, then every change, for as long as its token is good and its pod lives.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use pillion_protocol::stream::{Key, MAX_MESSAGE, Subscribe, ToNode, Version, common_version, line};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
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

/// The messages that wait for a node which is slow, and their bytes.
const AHEAD: usize = 64;
const AHEAD_BYTES: usize = 2 * MAX_MESSAGE;

pub(super) async fn open(
    State(Served { control, client, crowd }): State<Served>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
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
    crowd.know(&peer);
    let subscribe: Subscribe = read(body).await?;
    let version = common_version(&subscribe.versions).ok_or(Refused::Version { theirs: subscribe.versions })?;
    let until = Instant::now() + identity.lasts;
    let open = session::open(&control, &identity);
    tracing::info!(node = &*identity.node, version, known = subscribe.known.len(), "a node has its stream");
    let (lines, told) = Lines::new();
    let node = identity.node;
    let teller = Teller { control, open, lines, known: subscribe.known };
    tokio::spawn(async move {
        let why = teller.tell(&node, version, until).await;
        tracing::info!(node = &*node, why, "a node's stream ends");
    });
    let body = Body::from_stream(stream::unfold(told, async |mut told: mpsc::Receiver<Line>| {
        // Its place is another's as soon as it is on its way.
        let Line { bytes, .. } = told.recv().await?;
        Some((Ok::<_, Infallible>(bytes), told))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// A line that waits for its node, and its place among [`AHEAD_BYTES`].
struct Line {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

/// Where lines wait for a node.
struct Lines {
    waiting: mpsc::Sender<Line>,
    places: Arc<Semaphore>,
}

impl Lines {
    fn new() -> (Self, mpsc::Receiver<Line>) {
        let (waiting, told) = mpsc::channel(AHEAD);
        (Self { waiting, places: Arc::new(Semaphore::new(AHEAD_BYTES)) }, told)
    }

    /// Waits until there is room for a line.
    async fn send(&self, line: Vec<u8>) -> Result<(), Ended> {
        let places = u32::try_from(line.len()).unwrap_or(u32::MAX);
        let send = async {
            // Never closed.
            let place =
                Arc::clone(&self.places).acquire_many_owned(places).await.map_err(|_| Ended("the node is gone"))?;
            let line = Line { bytes: line.into(), _place: place };
            self.waiting.send(line).await.map_err(|_| Ended("the node is gone"))
        };
        timeout_at(Instant::now() + STALL, send).await.unwrap_or(Err(Ended("the node takes nothing")))
    }

    async fn closed(&self) {
        self.waiting.closed().await;
    }
}

struct Teller {
    control: Arc<Control>,
    open: Open,
    lines: Lines,
    /// What the node has.
    known: BTreeMap<Key, Version>,
}

/// Why a stream ends.
#[derive(Debug, PartialEq, Eq)]
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

    /// What the node could not read is passed over: it would keep it from everything else.
    async fn say(&self, told: &ToNode) -> Result<(), Ended> {
        match line(told) {
            Ok(line) => self.lines.send(line).await,
            Err(error) => {
                let resource = told.key().map(String::from);
                tracing::error!(resource, %error, "a node is not told of something; it is told the rest");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_for_a_slow_node_is_bounded_by_bytes() {
        let (lines, mut told) = Lines::new();
        let longest = || vec![b'x'; MAX_MESSAGE];
        assert_eq!(lines.send(longest()).await, Ok(()));
        assert_eq!(lines.send(longest()).await, Ok(()));
        let one_more = tokio::time::timeout(Duration::from_millis(50), lines.send(b"x\n".to_vec())).await;
        assert!(one_more.is_err(), "it waits");
        assert_eq!(told.recv().await.map(|line| line.bytes.len()), Some(MAX_MESSAGE));
        assert_eq!(lines.send(longest()).await, Ok(()), "the first has left");
        for _ in 0..2 {
            told.recv().await;
        }
        drop(told);
        assert_eq!(lines.send(longest()).await, Err(Ended("the node is gone")));
    }
}
