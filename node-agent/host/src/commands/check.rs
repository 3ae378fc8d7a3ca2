//! `pillion check`: from a person's machine, by a kubeconfig.

use std::process::ExitCode;

use anyhow::Context;
use pillion_control::check::{Cluster, Level, Place};

use super::{Output, say};

/// Looks at a cluster, and says what keeps its pods from having their sidecars.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pillion check --namespace pillion-system

It only reads: what it may not read is said so. Exit code: 0 nothing is wrong, 1 there is a problem, or something could not be looked at.")]
pub(super) struct Check {
    #[command(flatten)]
    place: Place,
    /// How each finding is written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Check {
    #[tokio::main(flavor = "current_thread")]
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = pillion_control::client().await?;
        let cluster = Cluster::look(&client, self.place).await.context("the API server cannot be reached")?;
        let findings = cluster.findings();
        for finding in &findings {
            match self.output {
                Output::Text => finding.to_string().lines().for_each(say::out),
                Output::Json => say::json(finding)?,
            }
        }
        let is_well = findings.iter().all(|finding| finding.level < Level::Unknown);
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
