//! How many bytes guests may write: of one binding, of one namespace, of all. So no namespace takes the log from another, and what
//! the agent says itself does not leave the node's disk within minutes because of what guests write.

use std::{collections::HashMap, time::Instant};

use super::{Allowance, Rate, lanes::GUESTS};

const KIB: f64 = 1024.0;

/// Of one binding.
pub(super) const BINDING: Rate = Rate { per_second: 128.0 * KIB, burst: 1024.0 * KIB };

/// Of one namespace; on a laptop there is one.
const NAMESPACE: Rate = Rate { per_second: 256.0 * KIB, burst: 2048.0 * KIB };

/// Of a node.
const NODE: Rate = Rate { per_second: 1024.0 * KIB, burst: 4096.0 * KIB };

/// What the guests of a node may write.
#[derive(Debug)]
pub(super) struct Budget {
    node: Allowance,
    /// Those that have written lately.
    namespaces: HashMap<Option<Box<str>>, Allowance>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { node: Allowance::new(NODE, now), namespaces: HashMap::new() }
    }

    /// Whether a guest in `namespace` may write so many bytes, where so many of guests are not written yet. It has taken them then.
    pub(super) fn take(&mut self, namespace: Option<&str>, bytes: usize, queued: usize, now: Instant) -> bool {
        let new = || Allowance::new(NAMESPACE, now);
        let namespace = self.namespaces.entry(namespace.map(Into::into)).or_insert_with(new);
        let amount = bytes as f64;
        if !(namespace.has(amount, now) && self.node.has(amount, now)) {
            return false;
        }
        // Where the lines leave more slowly than they come, one that writes much leaves room for those that do not.
        let most = if namespace.is_low() { GUESTS / 2 } else { GUESTS };
        if queued + bytes > most {
            return false;
        }
        namespace.take(amount);
        self.node.take(amount);
        true
    }

    /// Forgets namespaces that have written nothing for a time.
    pub(super) fn forget(&mut self, now: Instant) {
        self.namespaces.retain(|_, allowance| !allowance.is_whole(now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LINE: usize = 8 << 10;

    fn lines(budget: &mut Budget, namespace: &str, queued: usize, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.take(Some(namespace), LINE, queued, now)).count()
    }

    #[test]
    fn a_namespace_takes_no_more_than_its_own_and_all_no_more_than_the_nodes() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert_eq!(lines(&mut budget, "a", 0, now), 256);
        assert_eq!(lines(&mut budget, "b", 0, now), 256);
        assert_eq!(lines(&mut budget, "c", 0, now), 0, "the node's 4 MiB are taken");
        let later = now + Duration::from_secs(1);
        assert_eq!(lines(&mut budget, "a", 0, later), 32);
        assert_eq!(lines(&mut budget, "c", 0, later), 96);
    }

    #[test]
    fn where_lines_leave_slowly_a_flood_leaves_room_for_others() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        while budget.take(Some("flood"), LINE, 0, now) {}
        let later = now + Duration::from_secs(3);
        assert!(budget.take(Some("flood"), LINE, GUESTS / 2 - LINE, later));
        assert!(!budget.take(Some("flood"), LINE, GUESTS / 2, later));
        assert!(budget.take(Some("quiet"), LINE, GUESTS / 2, later));
        assert!(!budget.take(Some("quiet"), LINE, GUESTS, later));
    }

    #[test]
    fn namespaces_that_are_silent_are_forgotten() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert!(budget.take(None, LINE, 0, now));
        budget.forget(now);
        assert_eq!(budget.namespaces.len(), 1);
        budget.forget(now + Duration::from_secs(1));
        assert!(budget.namespaces.is_empty());
    }
}
