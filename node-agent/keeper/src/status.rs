//! `pillion-keeper status`: whether this instance is the keeper, for people and for a readiness probe.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pillion_protocol::keeper::{Answer, Call, Status};

use crate::{claim, socket};

/// How long the keeper may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How a status is printed.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Shows what the keeper of this node holds. Fails when there is none, or with --instance when it is another pod's.
#[derive(Debug, clap::Args)]
pub struct Command {
    /// The socket of the CNI plugin
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/keeper/cni.sock", env = "PILLION_CNI_SOCKET")]
    cni_socket: PathBuf,
    /// The folder of the host's socket: fail unless the keeper that answers is this folder's, and its host is connected. For a
    /// readiness probe
    #[arg(long, value_name = "DIR")]
    instance: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Command {
    /// Asks and prints.
    ///
    /// # Errors
    ///
    /// There is no keeper, or it is another one.
    pub fn run(&self) -> Result<ExitCode> {
        let status = ask(&self.cni_socket).with_context(|| format!("the keeper at {}", self.cni_socket.display()))?;
        match self.output {
            Format::Json => println!("{}", serde_json::to_string(&status)?),
            Format::Text => {
                let Status { generation, pods, listeners, listeners_max, hosts, ready: _ } = status;
                println!(
                    "generation {generation}\npods       {pods}\nlisteners  {listeners} of {listeners_max}\nhosts      {hosts}"
                );
            }
        }
        if let Some(folder) = &self.instance {
            let own = claim::generation_of(folder).with_context(|| folder.display().to_string())?;
            let of_keeper = status.generation;
            ensure!(own == of_keeper, "the keeper has generation {of_keeper}, this one {own}: it is not the keeper");
            ensure!(status.ready, "no host of this pod is connected yet");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(path: &Path) -> Result<Status> {
    match socket::ask(path, Call::Status, ANSWER)?.receive()?.message {
        Answer::Status(status) => Ok(status),
        Answer::Refused(why) => bail!(why),
        Answer::Done => bail!("its answer is none"),
    }
}
