//! Pods with annotations or labels that nothing reads. They are no node's business; their owners are told.

use super::{ApiUid, Catalog};
use crate::strays::Stray;

/// A pod with annotations or labels that nothing reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrayPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What nothing reads.
    pub strays: Box<[Stray]>,
}

impl Catalog {
    /// A pod has such, or has none any more.
    pub fn set_stray(&mut self, uid: ApiUid, stray: Option<StrayPod>) {
        match stray {
            Some(stray) => _ = self.strays.insert(uid, stray),
            None => _ = self.strays.remove(&uid),
        }
    }

    /// A pod that has such.
    pub fn stray(&self, uid: &str) -> Option<&StrayPod> {
        self.strays.get(uid)
    }

    /// The pods that somebody may have to be told of.
    pub fn uids(&self) -> Vec<ApiUid> {
        self.pods.keys().chain(self.strays.keys()).map(ApiUid::clone).collect()
    }
}
