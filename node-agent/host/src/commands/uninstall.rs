//! `pillion uninstall`: from a person's machine, by a kubeconfig.

use std::process::ExitCode;

use super::{Output, say};

/// Takes Pillion's agent off every node of a cluster, by the kubeconfig of whoever runs it.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pillion uninstall --crds && helm uninstall pillion --namespace pillion-system

It makes the agent's DaemonSet take the CNI plugin and the agent's folders off its nodes, and waits for all of them. DaemonSet, control
and their namespace stay: helm uninstall, or kubectl delete of the manifests, removes them.")]
pub(super) struct Uninstall {
    #[command(flatten)]
    uninstall: pillion_control::uninstall::Uninstall,
    /// How each step is written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Uninstall {
    #[tokio::main(flavor = "current_thread")]
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = pillion_control::client().await?;
        let tell = |step: pillion_control::uninstall::Step| match self.output {
            Output::Text => say::out(step),
            Output::Json => _ = say::json(&step),
        };
        self.uninstall.run(client, tell).await?;
        Ok(ExitCode::SUCCESS)
    }
}
