//! What is to be bound and closed: desired and observed are compared, without IO.

use std::collections::{BTreeMap, BTreeSet};

use pillion_protocol::{
    annotation::{Port, Sidecars},
    pod::PodUid,
};

/// What was found of a pod that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The path of its namespace leads elsewhere, or nowhere.
    pub vanished: bool,
    /// Ports with a listener at each address of localhost that the namespace has, all of them listening.
    pub whole: BTreeSet<Port>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open what is missing at this port.
    Bind(PodUid, Port),
    /// Close all of the pod's listeners and forget it: its sandbox is gone.
    Forget(PodUid),
}

/// Compares what each pod should have with what it has. A pod is forgotten only because its namespace is: that nobody names it is
/// no reason.
pub fn plan<'a>(
    desired: impl IntoIterator<Item = (&'a PodUid, &'a Sidecars)>,
    observed: &BTreeMap<PodUid, Observed>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (pod, sidecars) in desired {
        let Some(found) = observed.get(pod) else { continue };
        if found.vanished {
            actions.push(Action::Forget(pod.clone()));
            continue;
        }
        let missing = sidecars.iter().map(|sidecar| sidecar.port).filter(|port| !found.whole.contains(port));
        actions.extend(missing.map(|port| Action::Bind(pod.clone(), port)));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_bound_and_what_has_vanished_is_forgotten() {
        let uid = |text: &str| text.parse::<PodUid>().unwrap();
        let port = |number: u16| Port::try_from(number).unwrap();
        let sidecars: Sidecars = "a=8081, b=8082".parse().unwrap();
        let table = [
            (false, vec![8081, 8082], vec![]),
            (false, vec![8082], vec![Action::Bind(uid("p"), port(8081))]),
            (false, vec![], vec![Action::Bind(uid("p"), port(8081)), Action::Bind(uid("p"), port(8082))]),
            (true, vec![8081], vec![Action::Forget(uid("p"))]),
        ];
        for (vanished, whole, expected) in table {
            let found = Observed { vanished, whole: whole.into_iter().map(port).collect() };
            let pod = uid("p");
            assert_eq!(plan([(&pod, &sidecars)], &BTreeMap::from([(uid("p"), found)])), expected);
        }
        let pod = uid("q");
        assert_eq!(plan([(&pod, &sidecars)], &BTreeMap::new()), [], "what was not looked at is left alone");
    }
}
