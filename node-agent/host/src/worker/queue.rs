//! Work that several preparations may wait for: it is done once, and so many at a time. Decides, and does no IO.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use super::prepare::Preparation;

/// Preparations by what they wait for.
pub(super) struct Queue<K> {
    /// What was not begun yet, and what was.
    todo: VecDeque<K>,
    begun: Vec<K>,
    waiting: HashMap<K, Vec<Preparation>>,
    at_once: usize,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Work of which `at_once` is done at a time.
    pub(super) fn new(at_once: usize) -> Self {
        Self { todo: VecDeque::new(), begun: Vec::new(), waiting: HashMap::new(), at_once }
    }

    /// A preparation waits for this.
    pub(super) fn push(&mut self, key: K, preparation: Preparation) {
        let waiting = self.waiting.entry(key.clone()).or_default();
        if waiting.is_empty() {
            self.todo.push_back(key);
        }
        waiting.push(preparation);
    }

    /// What is to be begun now, with the first of those that wait for it. Passed over is what `may` denies, given all that is begun.
    pub(super) fn begin(&mut self, may: impl Fn(&K, &[K]) -> bool) -> Option<(K, &Preparation)> {
        if self.begun.len() >= self.at_once {
            return None;
        }
        let next = self.todo.iter().position(|key| may(key, &self.begun))?;
        let key = self.todo.remove(next)?;
        self.begun.push(key.clone());
        let first = self.waiting.get(&key)?.first()?;
        Some((key, first))
    }

    /// This is done: gives those that have waited for it.
    pub(super) fn done(&mut self, key: &K) -> Vec<Preparation> {
        self.begun.retain(|begun| begun != key);
        self.waiting.remove(key).unwrap_or_default()
    }

    /// Those that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Preparation> {
        self.waiting.values().flatten()
    }

    /// What is waited for.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.waiting.keys()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use pillion_protocol::component::{ComponentSpec, Image};

    use super::*;

    fn preparation(name: &str) -> Preparation {
        let spec = Arc::new(ComponentSpec::new(Image::Path("/x.wasm".into())));
        let id = name.parse().unwrap();
        Preparation {
            id,
            spec,
            generation: 0,
            began: Instant::now(),
            anew: false,
            version: None,
            compiled: false,
            pulled: false,
        }
    }

    #[test]
    fn a_thing_is_done_once_however_many_wait_for_it() {
        let mut queue = Queue::new(1);
        for (key, name) in [("x", "a"), ("y", "b"), ("x", "c")] {
            queue.push(key, preparation(name));
        }
        let any = |_: &_, _: &[_]| true;
        assert_eq!(queue.begin(any).map(|(key, first)| (key, first.id.to_string())), Some(("x", "a".into())));
        assert!(queue.begin(any).is_none(), "one at a time");
        queue.push("x", preparation("d"));
        let waited: Vec<_> = queue.done(&"x").into_iter().map(|waited| waited.id.to_string()).collect();
        assert_eq!(waited, ["a", "c", "d"]);
        assert_eq!(queue.begin(any).map(|(key, _)| key), Some("y"));
        queue.done(&"y");
        assert_eq!(queue.keys().count(), 0);
        queue.push("x", preparation("e"));
        assert!(queue.begin(any).is_some(), "it may be wanted again");
    }

    #[test]
    fn what_may_not_begin_yet_holds_up_nobody_else() {
        let mut queue = Queue::new(3);
        for key in ["slow-1", "slow-2", "fast"] {
            queue.push(key, preparation("a"));
        }
        let one_slow =
            |key: &&str, begun: &[&str]| !(key.starts_with("slow") && begun.iter().any(|b| b.starts_with("slow")));
        assert_eq!(queue.begin(one_slow).map(|(key, _)| key), Some("slow-1"));
        assert_eq!(queue.begin(one_slow).map(|(key, _)| key), Some("fast"));
        assert!(queue.begin(one_slow).is_none());
        queue.done(&"slow-1");
        assert_eq!(queue.begin(one_slow).map(|(key, _)| key), Some("slow-2"));
    }
}
