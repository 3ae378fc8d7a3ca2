//! What a cluster lacks.
//!
//! | file | about |
//! |---|---|
//! | `release` | Kubernetes, the definitions, control, the agent |
//! | `nodes` | kernels and container runtimes |
//! | `pods` | pods that name sidecars, or would |
//! | `workloads` | what makes pods |
//! | `gates` | what keeps pods from being ready |
//! | `components` | what they name |

mod components;
mod gates;
mod nodes;
mod pods;
mod release;
mod workloads;

use std::collections::BTreeSet;

use super::{Cluster, Finding, Level, Looked};

/// So many of a kind are named.
const NAMED: usize = 10;

pub(super) fn all(cluster: &Cluster) -> Vec<Finding> {
    [
        release::findings(cluster),
        nodes::findings(cluster),
        workloads::findings(cluster),
        pods::findings(cluster),
        components::findings(cluster),
    ]
    .concat()
}

fn unseen(about: &str, error: &str) -> Vec<Finding> {
    let advice = "if it is forbidden, ask somebody who may get and list this in the whole cluster to run it; else see the message";
    vec![Finding::new(Level::Unknown, about, error, advice)]
}

/// Looks at something that could be looked at.
fn seen<T>(about: &str, looked: &Looked<T>, look: impl FnOnce(&T) -> Vec<Finding>) -> Vec<Finding> {
    match looked {
        Ok(found) => look(found),
        Err(error) => unseen(about, error),
    }
}

/// The first two numbers of a version: 6 and 1 of `6.1.0-13-amd64`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: BTreeSet<_> = names.into_iter().collect();
    let shown: Vec<_> = names.iter().take(NAMED).copied().collect();
    let more = names.len().saturating_sub(NAMED);
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
mod tests;
