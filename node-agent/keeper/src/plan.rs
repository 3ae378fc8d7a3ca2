//! What is to be bound and closed: desired and observed are compared, without IO.

use std::collections::{BTreeMap, BTreeSet};

use pillion_protocol::{
    annotation::{Port, Sidecars},
    pod::PodUid,
};

/// What was found of a pod that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The path of its namespace leads elsewhere, or nowhere.
    pub vanished: bool,
    /// Ports with a listener.
    pub held: BTreeSet<Port>,
    /// Ports with a listener at each address of localhost that the namespace has, all of them listening.
    pub whole: BTreeSet<Port>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look for the namespace of this pod, which is not held.
    Find(PodUid),
    /// Open what is missing at this port.
    Bind(PodUid, Port),
    /// Close what the pod should not have.
    Close(PodUid, Port),
    /// Close all of the pod's listeners and forget it: its sandbox is gone.
    Forget(PodUid),
}

/// Compares what each pod should have with what it has. A pod is forgotten only because its namespace is gone: that nobody names it
/// is no reason.
pub fn plan<'a>(
    desired: impl IntoIterator<Item = (&'a PodUid, &'a Sidecars)>,
    observed: &BTreeMap<PodUid, Observed>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (pod, sidecars) in desired {
        let Some(found) = observed.get(pod) else {
            actions.push(Action::Find(pod.clone()));
            continue;
        };
        if found.vanished {
            actions.push(Action::Forget(pod.clone()));
            continue;
        }
        let ports: BTreeSet<Port> = sidecars.iter().map(|sidecar| sidecar.port).collect();
        actions.extend(found.held.difference(&ports).map(|port| Action::Close(pod.clone(), *port)));
        actions.extend(ports.difference(&found.whole).map(|port| Action::Bind(pod.clone(), *port)));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_bound_and_what_has_vanished_is_forgotten() {
        let uid = || "p".parse::<PodUid>().unwrap();
        let port = |number: u16| Port::try_from(number).unwrap();
        let ports = |numbers: &[u16]| numbers.iter().map(|number| port(*number)).collect::<BTreeSet<_>>();
        let sidecars: Sidecars = "a=8081, b=8082".parse().unwrap();
        let bind = |number| Action::Bind(uid(), port(number));
        let close = |number| Action::Close(uid(), port(number));
        let table = [
            (false, vec![8081, 8082], vec![8081, 8082], vec![]),
            (false, vec![8081, 8082], vec![8082], vec![bind(8081)]),
            (false, vec![], vec![], vec![bind(8081), bind(8082)]),
            (false, vec![8081, 8082, 9000], vec![8081, 8082], vec![close(9000)]),
            (false, vec![9000], vec![9000], vec![close(9000), bind(8081), bind(8082)]),
            (true, vec![8081], vec![8081], vec![Action::Forget(uid())]),
        ];
        for (vanished, held, whole, expected) in table {
            let found = Observed { vanished, held: ports(&held), whole: ports(&whole) };
            assert_eq!(plan([(&uid(), &sidecars)], &BTreeMap::from([(uid(), found)])), expected);
        }
    }

    #[test]
    fn what_is_not_held_is_looked_for_and_what_nobody_names_is_left_alone() {
        let [held, sought] = ["held", "sought"].map(|uid| uid.parse::<PodUid>().unwrap());
        let sidecars: Sidecars = "a=8081".parse().unwrap();
        let observed = BTreeMap::from([(held, Observed { vanished: true, ..Observed::default() })]);
        assert_eq!(plan([(&sought, &sidecars)], &observed), [Action::Find(sought)]);
    }
}
