//! `pillion-keeper`: see `pillion-keeper --help`.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode, sync::mpsc::channel, thread};

use clap::Parser;
use pillion_keeper::{
    host,
    keeper::{Input, Keeper},
    netns::Entrance,
    plugin,
    state::StateFile,
};
use pillion_sockets::listen;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Owns the network namespaces of this node's pods and every listener in them.
///
/// It needs CAP_SYS_ADMIN, to enter network namespaces. When it ends, nothing on the node is removed.
#[derive(Debug, Parser)]
#[command(name = "pillion-keeper", version)]
struct Config {
    /// The socket of the CNI plugin
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/keeper/cni.sock", env = "PILLION_CNI_SOCKET")]
    cni_socket: PathBuf,
    /// The socket of the host
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/host/keeper.sock", env = "PILLION_HOST_SOCKET")]
    host_socket: PathBuf,
    /// The folder of the state file, which must outlive this process
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pillion/keeper", env = "PILLION_KEEPER_STATE")]
    state: PathBuf,
    /// Which log lines are written, for example "debug"
    #[arg(long, value_name = "FILTER", default_value = "info", env = "PILLION_LOG")]
    log: String,
}

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).with_env_filter(filter).init();
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pillion-keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    listen::raise_descriptor_limit();
    tracing::info!(?config, "the keeper starts");
    let entrance = Entrance::start()?;
    let keeper = Keeper::new(entrance, StateFile::open(&config.state)?)?;
    let (inputs, inbox) = channel();
    let ends = inputs.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            _ = ends.send(Input::Terminate);
        }
    })?;
    let at =
        |path: &PathBuf| anyhow::Context::with_context(plugin::open(path), || format!("the socket {}", path.display()));
    host::serve(at(&config.host_socket)?, inputs.clone())?;
    plugin::serve(at(&config.cni_socket)?, inputs)?;
    keeper.run(&inbox);
    Ok(())
}
