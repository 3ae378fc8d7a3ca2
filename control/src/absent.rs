//! Nodes that have pods with sidecars and no agent: the DaemonSet does not go there, or its pod does not come up. An agent that is replaced or
//! starts again is back sooner than anybody is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{catalog::NodeName, control::Control};

/// How often it is looked. A node's stream is back within 5 s where its agent is.
const LOOK: Duration = Duration::from_secs(5);

/// Since when nodes that have pods with sidecars have no agent.
#[derive(Debug, Default)]
struct Absent {
    since: BTreeMap<NodeName, Instant>,
    told: BTreeSet<NodeName>,
}

impl Absent {
    /// Looks at the nodes that have pods with sidecars, and at those that have an agent. Gives those of which it is to be told otherwise than before.
    fn look(
        &mut self,
        now: Instant,
        grace: Duration,
        wanted: &BTreeSet<NodeName>,
        there: &BTreeSet<NodeName>,
    ) -> BTreeSet<NodeName> {
        self.since.retain(|node, _| wanted.contains(node) && !there.contains(node));
        for node in wanted.difference(there) {
            self.since.entry(NodeName::clone(node)).or_insert(now);
        }
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= grace;
        let long =
            self.since.iter().filter(|(_, since)| is_long(since)).map(|(node, _)| NodeName::clone(node)).collect();
        let before = std::mem::replace(&mut self.told, long);
        before.symmetric_difference(&self.told).map(NodeName::clone).collect()
    }
}

/// Looks while this replica leads, for as long as the process lives.
pub async fn follow(control: Arc<Control>) {
    let grace = control.settings.agent_grace;
    loop {
        control.until_leading(true).await;
        // Nodes come to a new leader first.
        let mut absent = Absent::default();
        while control.leads() {
            let (wanted, there) = (control.catalog().nodes(), control.sessions.nodes());
            let changed = absent.look(Instant::now(), grace, &wanted, &there);
            if !changed.is_empty() {
                let named: Vec<_> = absent.told.iter().take(10).collect();
                tracing::info!(nodes = absent.told.len(), ?named, "nodes that have pods with sidecars have no agent");
                control.set_absent(&absent.told, &changed);
            }
            tokio::time::sleep(LOOK.min(grace)).await;
        }
        control.set_absent(&BTreeSet::new(), &BTreeSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_of_when_its_agent_was_away_for_long_and_when_it_is_back() {
        let nodes = |names: &str| names.split_whitespace().map(NodeName::from).collect::<BTreeSet<_>>();
        let (begin, mut absent) = (Instant::now(), Absent::default());
        // Second, nodes with pods, nodes with an agent; of which it is told, and which changed.
        for (second, wanted, there, told, changed) in [
            (0, "a b", "a", "", ""),
            (50, "a b", "a", "", ""),
            (60, "a b c", "a", "b", "b"),
            (65, "a b c", "a b", "", "b"),
            // A short while without one counts from its beginning.
            (70, "a b c", "a", "", ""),
            (119, "a b c", "a", "", ""),
            (120, "a b c", "a", "c", "c"),
            (130, "a b c", "a", "b c", "b"),
            (135, "a b", "a", "b", "c"),
            (140, "a", "", "", "b"),
        ] {
            let now = begin + Duration::from_secs(second);
            let found = absent.look(now, Duration::from_secs(60), &nodes(wanted), &nodes(there));
            assert_eq!((&absent.told, found), (&nodes(told), nodes(changed)), "at {second} s");
        }
    }
}
