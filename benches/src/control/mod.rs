//! Control: from a change of the catalog to an answer inside the pod, and what a large cluster costs it. The API server is a real one on
//! this machine, and takes its share of the same cores; of nodes and pods there is what control sees of them.

mod change;
mod cluster;
mod scale;

use anyhow::Context;

use crate::{report::Section, setup::Setup};

/// How large a cluster is made.
#[derive(clap::Args)]
pub struct Arguments {
    /// Nodes, each with its stream
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Pods without sidecars
    #[arg(long, value_name = "N")]
    pods: Option<usize>,
    /// Pods with a sidecar
    #[arg(long, value_name = "N")]
    annotated: Option<usize>,
}

impl Arguments {
    /// What is made where nothing is said.
    pub fn usual() -> Self {
        Self { nodes: None, pods: None, annotated: None }
    }
}

/// Runs it.
///
/// # Errors
///
/// Not root, a program that is not there, a cluster that does not do what it should.
pub fn run(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Section> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut section = Section {
        title: "control: from a change to an answer, and what a large cluster costs".into(),
        notes: vec!["API server, etcd, registry, control, node and bench share this machine's cores".into()],
        rows: Vec::new(),
    };
    runtime.block_on(change::measure(setup, &mut section)).context("a change of the catalog")?;
    let size = scale::Size {
        nodes: arguments.nodes.unwrap_or(setup.either(5_000, 100)),
        pods: arguments.pods.unwrap_or(setup.either(125_000, 500)),
        annotated: arguments.annotated.unwrap_or(setup.either(20_000, 500)),
    };
    runtime.block_on(scale::measure(&size, &mut section)).context("a large cluster")?;
    Ok(section)
}
