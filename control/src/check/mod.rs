//! `pillion check`: what a cluster lacks for its pods to have their sidecars, and what to do about it. What there is is gathered first; what
//! that means is decided without IO.

mod cluster;
mod findings;
mod workloads;

use std::fmt;

use pillion_protocol::text::plain;
use serde::Serialize;

pub use self::{
    cluster::{Cluster, Looked, Place},
    workloads::{Said, Workload},
};

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do about it; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, with less than there could be.
    Warning,
    /// It could not be looked at.
    Unknown,
    /// Something does not work.
    Problem,
}

impl Finding {
    fn ok(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, about: about.into(), found: found.into(), advice: None }
    }

    fn new(level: Level, about: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level, about: about.into(), found: found.into(), advice: Some(advice.into()) }
    }

    fn problem(about: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Level::Problem, about, found, advice)
    }

    fn warning(about: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, found, advice)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Unknown => "unknown",
            Level::Problem => "PROBLEM",
        };
        write!(f, "{level:<8} {}: {}", plain(&self.about), plain(&self.found))?;
        self.advice.iter().try_for_each(|advice| write!(f, "\n{:9}→ {}", "", plain(advice)))
    }
}

impl Cluster {
    /// What it lacks, and what is well.
    pub fn findings(&self) -> Vec<Finding> {
        findings::all(self)
    }
}
