//! Readiness gates that never open.

use pillion_protocol::annotation::{SIDECARS, is_ours};

use super::Finding;
use crate::readiness::READINESS;

/// What keeps pods from being ready for ever, where they have these gates and name sidecars or do not.
pub(super) fn findings(about: &str, gates: &[String], names: bool) -> Vec<Finding> {
    let problem = |gate: &String| {
        let (found, advice) = match gate.as_str() {
            READINESS if names => return None,
            READINESS => (
                format!("its readiness gate {gate} opens when sidecars are served, and it names none"),
                format!("name them in the annotation {SIDECARS}, or take the gate away"),
            ),
            _ => (format!("nothing opens its readiness gate {gate}"), format!("there is {READINESS} only")),
        };
        Some(Finding::problem(about, found, advice))
    };
    gates.iter().filter(|gate| is_ours(gate)).filter_map(problem).collect()
}
