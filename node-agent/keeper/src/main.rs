//! `pillion-keeper`: see `pillion-keeper --help`.

#![forbid(unsafe_code)]

use std::{
    io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use pillion_confine::Process;
use pillion_keeper::{
    claim::{Claimant, Turn},
    folders,
    handover::{self, Handed, HandedHost},
    hear::Taken,
    host, install,
    keeper::{Ended, Input, Keeper},
    netns::Entrance,
    plugin, socket,
    state::StateFile,
    status,
};
use pillion_sockets::listen;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// How often a keeper that another one was preferred to looks whether that is still there.
const AGAIN: Duration = Duration::from_secs(1);

/// Owns the network namespaces of this node's pods and every listener in them.
///
/// It needs CAP_SYS_ADMIN, to enter network namespaces, and CAP_SYS_PTRACE, to find those of pods that were there before it; every
/// other capability is dropped. When it ends, nothing on the node is removed.
#[derive(Debug, Parser)]
#[command(name = "pillion-keeper", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
    /// Which log lines are written, for example "debug"
    #[arg(long, value_name = "FILTER", default_value = "info", env = "PILLION_LOG", global = true)]
    log: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Status(status::Command),
    #[command(flatten)]
    Install(install::Command),
    #[command(flatten)]
    Folders(folders::Command),
}

#[derive(Debug, clap::Args)]
struct Config {
    /// The socket of the CNI plugin; all keepers of a node share it
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/keeper/cni.sock", env = "PILLION_CNI_SOCKET")]
    cni_socket: PathBuf,
    /// The socket of the host, in a folder of this instance's own
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/host/keeper.sock", env = "PILLION_HOST_SOCKET")]
    host_socket: PathBuf,
    /// The user that the host runs as, besides root: nobody else is served at its socket
    #[arg(long, value_name = "UID", env = "PILLION_HOST_UID")]
    host_uid: Option<u32>,
    /// The folder of what must outlive this process: which pods it holds, and who the keeper is
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pillion/keeper", env = "PILLION_KEEPER_STATE")]
    state: PathBuf,
    /// The node's /proc, where pods that are older than this node's agent are found
    #[arg(long, value_name = "DIR", default_value = "/proc", env = "PILLION_PROC")]
    proc: PathBuf,
    /// A file of the node's own network namespace, which is never used for a pod [default: 1/ns/net in the node's /proc]
    ///
    /// For nodes whose first process may not be looked at: `ip netns attach node 1` makes such a file on the node.
    #[arg(long, value_name = "PATH", env = "PILLION_NODE_NETNS")]
    node_netns: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::new(&arguments.log);
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(io::stderr).with_env_filter(filter).init();
    let done = match &arguments.command {
        Some(Command::Status(status)) => status.run(),
        Some(Command::Install(install)) => {
            let confined = Process::Installer.confine().map_err(anyhow::Error::from);
            confined.and_then(|()| install.run()).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Folders(folders)) => folders.run().map(|()| ExitCode::SUCCESS),
        None => run(&arguments.config),
    };
    done.unwrap_or_else(|error| {
        eprintln!("pillion-keeper: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(config: &Config) -> anyhow::Result<ExitCode> {
    listen::raise_descriptor_limit();
    // Before any thread is there: each has what the one that starts it has.
    Process::Keeper.confine()?;
    tracing::info!(?config, "the keeper starts");
    let node = config.node_netns.clone().unwrap_or_else(|| config.proc.join("1/ns/net"));
    let entrance = Entrance::start(&node)?;
    let (inputs, inbox) = channel();
    let ends = inputs.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            _ = ends.send(Input::Terminate);
        }
    })?;
    let instance = config.host_socket.parent().context("the host's socket is in no folder")?;
    StateFile::open(&config.state)?;
    let mut claimant = Claimant::new(&config.state, instance)?;
    while let Some((keeper, hosts)) = become_keeper(config, &mut claimant, &entrance, &inbox)? {
        let generation = claimant.generation;
        tracing::info!(generation, "this is the keeper of the node");
        for (host, origin) in hosts {
            host::connect(host, origin, &inputs)?;
        }
        let sockets = open_sockets(config, &inputs)?;
        if keeper.run(&inbox) == Ended::Terminated {
            break;
        }
        tracing::info!(generation, "another keeper holds everything now; this one waits for its end");
        sockets.iter().for_each(socket::close);
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until this process is the keeper; `None` if it is to end before. What comes with it are connections to hosts.
fn become_keeper(
    config: &Config,
    claimant: &mut Claimant,
    entrance: &Entrance,
    inbox: &Receiver<Input>,
) -> anyhow::Result<Option<(Keeper, Vec<HandedHost>)>> {
    let new = |claim| {
        Ok::<_, anyhow::Error>(Keeper::new(
            claim,
            entrance.clone(),
            StateFile::open(&config.state)?,
            config.proc.clone(),
        )?)
    };
    let mut said = false;
    loop {
        match claimant.turn()? {
            Turn::Hold(claim) => return Ok(Some((new(claim)?, Vec::new()))),
            Turn::Wait => {}
            Turn::Ask => match handover::ask(&config.cni_socket, claimant.generation) {
                Ok(mut handed) => {
                    let mut keeper = new(claimant.hold(handed.lock.try_clone()?))?;
                    match take_all(&mut keeper, &mut handed) {
                        Ok(()) => {
                            let hosts = handed.take().context("the keeper before this one did not wait")?;
                            keeper.claim.declare()?;
                            return Ok(Some((keeper, hosts)));
                        }
                        // The one before stays the keeper, and is asked again.
                        Err(error) => tracing::error!(%error, "what the keeper before this one has cannot be taken"),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the keeper before this one does not hand over; it is asked again")
                }
            },
        }
        if !said {
            tracing::info!(
                generation = claimant.generation,
                "another keeper holds the node's endpoints; this one waits"
            );
            said = true;
        }
        if is_told_to_end(inbox) {
            return Ok(None);
        }
    }
}

/// Takes every endpoint. The keeper before has looked just now: one that is not there for us is a namespace that we cannot see.
fn take_all(keeper: &mut Keeper, handed: &mut Handed) -> anyhow::Result<()> {
    for (endpoint, listeners) in handed.endpoints.drain(..) {
        let (pod, netns) = (endpoint.pod.to_string(), endpoint.netns.display().to_string());
        match keeper.take_back(&endpoint, listeners) {
            Taken::Yes => {}
            Taken::Gone => anyhow::bail!(
                "{pod}: {netns} is not there: the keeper has to see it (mount its folder with HostToContainer)"
            ),
            Taken::Unseen(why) => anyhow::bail!("{pod}: {why}"),
        }
    }
    Ok(())
}

/// Waits a moment. Whoever asks this process for anything meanwhile is let go, and asks the keeper.
fn is_told_to_end(inbox: &Receiver<Input>) -> bool {
    let deadline = Instant::now() + AGAIN;
    loop {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Input::Terminate) | Err(RecvTimeoutError::Disconnected) => return true,
            Ok(Input::HostConnected(_, link, _)) => _ = link.socket().shutdown(std::net::Shutdown::Both),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Opens both sockets and serves them.
fn open_sockets(config: &Config, inputs: &Sender<Input>) -> anyhow::Result<[UnixListener; 2]> {
    let open = |path: &Path, mode| socket::open(path, mode).with_context(|| format!("the socket {}", path.display()));
    // Another user's host has to be able to connect; who it is, is looked at.
    let mode = if config.host_uid.is_some() { 0o666 } else { 0o600 };
    let (for_host, for_plugin) = (open(&config.host_socket, mode)?, open(&config.cni_socket, 0o600)?);
    host::serve(for_host.try_clone()?, config.host_uid, inputs.clone())?;
    plugin::serve(for_plugin.try_clone()?, inputs.clone())?;
    Ok([for_host, for_plugin])
}
