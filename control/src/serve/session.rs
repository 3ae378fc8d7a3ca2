//! The streams that are open, by node: who is to look again when something changes, and who is to end.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, watch};

use super::identity::{Identity, TokenHash};
use crate::catalog::NodeName;

/// All open streams. A node has two while its agent is replaced.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeName, Vec<Arc<Session>>>>,
    /// Pods that have ended lately: a stream may be on its way to be opened.
    ended: Mutex<VecDeque<String>>,
}

/// Streams of one node at once: two while its agent is replaced, and what control has not noticed yet to be cut.
const STREAMS: usize = 4;

/// So many are remembered.
const ENDED: usize = 1_000;

/// A node's open stream.
#[derive(Debug)]
pub struct Session {
    pod_uid: String,
    token: TokenHash,
    /// Its view may be another one.
    pub(super) changed: Notify,
    /// The pod that it is with is no more.
    ended: watch::Sender<bool>,
}

/// An open stream; it is forgotten when this is dropped.
pub(super) struct Open {
    control: Arc<crate::control::Control>,
    node: NodeName,
    pub(super) session: Arc<Session>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut sessions = self.control.sessions.all();
        if let Some(of_node) = sessions.get_mut(&self.node) {
            of_node.retain(|session| !Arc::ptr_eq(session, &self.session));
            if of_node.is_empty() {
                sessions.remove(&self.node);
            }
        }
    }
}

/// A stream is opened.
pub(super) fn open(control: &Arc<crate::control::Control>, identity: &Identity) -> Open {
    let session = Arc::new(Session {
        pod_uid: identity.pod_uid.clone(),
        token: identity.token,
        changed: Notify::new(),
        ended: watch::Sender::new(false),
    });
    // Its pod may have ended since it was looked for; from now on it would be told.
    let node = NodeName::clone(&identity.node);
    let mut sessions = control.sessions.all();
    let of_node = sessions.entry(NodeName::clone(&node)).or_default();
    of_node.push(Arc::clone(&session));
    for too_many in of_node.iter().rev().skip(STREAMS) {
        too_many.ended.send_replace(true);
    }
    drop(sessions);
    if control.sessions.ended().contains(&session.pod_uid) {
        session.ended.send_replace(true);
    }
    Open { control: Arc::clone(control), node, session }
}

impl Session {
    /// Waits until its pod is no more.
    pub(super) async fn until_ended(&self) {
        drop(self.ended.subscribe().wait_for(|ended| *ended).await);
    }
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeName, Vec<Arc<Session>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The views of these nodes may be others.
    pub fn tell(&self, nodes: &BTreeSet<NodeName>) {
        let sessions = self.all();
        for session in nodes.iter().filter_map(|node| sessions.get(node)).flatten() {
            session.changed.notify_one();
        }
    }

    /// The nodes that have one.
    pub fn nodes(&self) -> BTreeSet<NodeName> {
        self.all().keys().map(NodeName::clone).collect()
    }

    /// The node that has a stream by this token.
    pub(super) fn node_of(&self, token: &TokenHash) -> Option<NodeName> {
        let sessions = self.all();
        let is_it = |sessions: &Vec<Arc<Session>>| sessions.iter().any(|session| session.token == *token);
        sessions.iter().find(|(_, sessions)| is_it(sessions)).map(|(node, _)| NodeName::clone(node))
    }

    /// A pod is no more: a stream with it ends.
    pub fn end_of_pod(&self, uid: &str) {
        let mut ended = self.ended();
        ended.push_back(uid.to_owned());
        if ended.len() > ENDED {
            ended.pop_front();
        }
        drop(ended);
        self.end(|session| session.pod_uid == uid);
    }

    /// No other pods are there than these.
    pub fn end_of_pods_but(&self, uids: &BTreeSet<String>) {
        self.end(|session| !uids.contains(&session.pod_uid));
    }

    fn end(&self, is_over: impl Fn(&Session) -> bool) {
        for session in self.all().values().flatten().filter(|session| is_over(session)) {
            session.ended.send_replace(true);
        }
    }
}
