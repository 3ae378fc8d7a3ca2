//! Annotations and labels that are meant for us where nothing reads them: misspelt ones, labels, those of a workload in place of its pods.
//! Decides, and does no IO.

use std::{collections::BTreeMap, fmt};

use pillion_protocol::{
    annotation::{SIDECARS, is_ours},
    keeper::WAIT,
};

/// So many of an object are told: anybody may write them.
const TOLD: usize = 5;

/// Annotations or labels.
pub type Keys = BTreeMap<String, String>;

/// One that nothing reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// An annotation.
    Annotation(Box<str>),
    /// A label: none is read anywhere.
    Label(Box<str>),
    /// What a pod's start waits for, where it names no sidecars.
    WaitAlone,
}

impl Stray {
    /// What it is.
    pub fn found(&self) -> String {
        match self {
            Self::Annotation(key) => format!("nothing reads the annotation {key}"),
            Self::Label(key) => format!("nothing reads the label {key}"),
            Self::WaitAlone => format!("the annotation {WAIT} says nothing without {SIDECARS}"),
        }
    }

    /// What a pod may have in its place.
    pub fn advice(&self) -> String {
        match self {
            Self::Annotation(_) => format!("those of a pod are {SIDECARS} and {WAIT}"),
            Self::Label(_) => format!("sidecars are named in the annotation {SIDECARS}"),
            Self::WaitAlone => format!("name the sidecars in {SIDECARS}"),
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found(), self.advice())
    }
}

/// What nothing reads of a pod, or of the template that pods are made of.
pub fn of_pod(annotations: &Keys, labels: &Keys) -> Vec<Stray> {
    let stray = |key: &str| match key {
        SIDECARS => None,
        // Beside a blank one it stands where a chart's template had no value.
        WAIT if annotations.contains_key(SIDECARS) => None,
        WAIT => Some(Stray::WaitAlone),
        other => Some(Stray::Annotation(other.into())),
    };
    ours(annotations).filter_map(stray).chain(ours(labels).map(|key| Stray::Label(key.into()))).take(TOLD).collect()
}

/// What nothing reads of an object that has no sidecars itself: all of it.
pub fn of_other(annotations: &Keys, labels: &Keys) -> Vec<Stray> {
    let annotations = ours(annotations).map(|key| Stray::Annotation(key.into()));
    annotations.chain(ours(labels).map(|key| Stray::Label(key.into()))).take(TOLD).collect()
}

fn ours(keys: &Keys) -> impl Iterator<Item = &str> {
    keys.keys().map(String::as_str).filter(|key| is_ours(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Keys {
        keys.iter().map(|key| ((*key).to_owned(), String::new())).collect()
    }

    #[test]
    fn what_nothing_reads_is_named_with_what_is_read() {
        let table: [(&[&str], &[&str], &[&str]); 8] = [
            (&["pillion.dev/sidecars", "pillion.dev/wait", "a.example/pillion.dev"], &["app"], &[]),
            (
                &["pillion.dev/sidecar"],
                &[],
                &["annotation pillion.dev/sidecar: those of a pod are pillion.dev/sidecars and pillion.dev/wait"],
            ),
            (&["Pillion.Dev/Sidecars"], &[], &["annotation Pillion.Dev/Sidecars"]),
            (&["pillion.dev/"], &[], &["annotation pillion.dev/"]),
            (&["pillion.dev/wait"], &[], &["annotation pillion.dev/wait says nothing without pillion.dev/sidecars"]),
            (
                &[],
                &["pillion.dev/sidecars"],
                &["label pillion.dev/sidecars: sidecars are named in the annotation pillion.dev/sidecars"],
            ),
            (&["pillion.dev/sidecars"], &["pillion.dev/sidecars"], &["label pillion.dev/sidecars"]),
            (
                &["pillion.dev/a", "pillion.dev/b"],
                &["pillion.dev/c", "pillion.dev/d", "pillion.dev/e", "pillion.dev/f"],
                &["/a", "/b", "/c", "/d", "/e"],
            ),
        ];
        for (annotations, labels, expected) in table {
            let found = of_pod(&keys(annotations), &keys(labels));
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (stray, expected) in found.iter().zip(expected) {
                assert!(stray.to_string().contains(expected), "{expected}: {stray}");
            }
        }
    }

    #[test]
    fn of_what_is_not_a_pod_nothing_is_read() {
        let found = of_other(&keys(&["pillion.dev/sidecars", "other"]), &keys(&["pillion.dev/inject", "app"]));
        let expected = [Stray::Annotation("pillion.dev/sidecars".into()), Stray::Label("pillion.dev/inject".into())];
        assert_eq!(found, expected);
    }
}
