//! Whose turn it is: pods that something is to be done for, one after another, in turns between namespaces. So one in which much happens
//! does not keep the others waiting.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

use crate::catalog::ApiUid;

/// Pods that wait, by namespace.
#[derive(Default)]
pub struct Turns {
    waiting: BTreeMap<String, VecDeque<ApiUid>>,
    known: HashSet<ApiUid>,
    /// The namespace that had the last turn.
    last: String,
}

impl Turns {
    /// A pod waits, behind the others of its namespace; one that waits already keeps its place.
    pub fn add(&mut self, namespace: &str, pod: ApiUid) {
        if self.known.insert(ApiUid::clone(&pod)) {
            self.waiting.entry(namespace.to_owned()).or_default().push_back(pod);
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Iterator for Turns {
    type Item = ApiUid;

    fn next(&mut self) -> Option<ApiUid> {
        let behind = self.waiting.range::<String, _>((Excluded(&self.last), Unbounded)).next();
        let namespace = behind.or_else(|| self.waiting.first_key_value())?.0.clone();
        let pods = self.waiting.get_mut(&namespace)?;
        let pod = pods.pop_front()?;
        if pods.is_empty() {
            self.waiting.remove(&namespace);
        }
        self.known.remove(&pod);
        self.last = namespace;
        Some(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_take_turns() {
        let mut turns = Turns::default();
        assert!(turns.is_empty() && turns.next().is_none());
        for (namespace, pod) in
            [("b", "b1"), ("b", "b2"), ("b", "b3"), ("a", "a1"), ("c", "c1"), ("b", "b1"), ("c", "c2")]
        {
            turns.add(namespace, pod.into());
        }
        let mut told: Vec<_> = turns.by_ref().take(3).map(|pod| pod.to_string()).collect();
        assert_eq!(told, ["a1", "b1", "c1"]);
        // Whoever comes later does not wait for all of those who came before, and has no second turn before them.
        turns.add("d", "d1".into());
        turns.add("a", "a1".into());
        told = turns.by_ref().map(|pod| pod.to_string()).collect();
        assert_eq!(told, ["d1", "a1", "b2", "c2", "b3"]);
        assert!(turns.is_empty());
    }
}
