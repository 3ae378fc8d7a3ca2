//! `pillion-control`: see `pillion-control --help`.

#![forbid(unsafe_code)]

use std::{io, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use axum_server::Handle;
use clap::Parser;
use kube::Client;
use pillion_control::{
    absent, authority::Authority, client, control::Control, events, leader, readiness, resolve, resource, serve,
    settings::Settings, status, uninstall::Uninstall, watch,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long nodes' streams may take to end: each is told to go elsewhere at once.
const END: Duration = Duration::from_secs(2);

/// The control loop of Pillion: brings the catalog from the Kubernetes API to the nodes.
#[derive(Parser)]
#[command(name = "pillion-control", version, arg_required_else_help = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Which log lines are written, as JSON to standard error, for example "debug"
    #[arg(long, value_name = "FILTER", default_value = "info", env = "PILLION_LOG", global = true)]
    log: String,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serves nodes what their pods need, while it leads; another replica waits to
    Serve(Box<Settings>),
    /// Takes the agent off every node: the CNI plugin, then the agent's folders. Its DaemonSet can be deleted then
    Uninstall(Uninstall),
    /// Prints the definitions of the resources Component and ClusterComponent, for kubectl apply
    Crds,
}

fn main() -> ExitCode {
    let Arguments { command, log } = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::new(log);
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(io::stderr).with_env_filter(filter).init();
    let done = match command {
        Command::Crds => crds(),
        Command::Uninstall(uninstall) => take_off(&uninstall),
        Command::Serve(settings) => run(*settings),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pillion-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn crds() -> anyhow::Result<()> {
    for (_, text) in resource::definitions()? {
        println!("---\n{text}");
    }
    Ok(())
}

#[tokio::main]
async fn take_off(uninstall: &Uninstall) -> anyhow::Result<()> {
    uninstall.run(client().await?, |step| tracing::info!("{step}")).await
}

#[tokio::main]
async fn run(settings: Settings) -> anyhow::Result<()> {
    tracing::info!(?settings, "control starts");
    let client = client().await?;
    let control = Arc::new(Control::new(settings));
    let health = serve::serve_health(Arc::clone(&control));
    let ended = async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        served = lead_and_serve(Arc::clone(&control), client, ended) => served,
        failed = health => failed.with_context(|| format!("--health-listen {}", control.settings.health_listen)),
    }
}

/// Follows the API server, leads when it may, and serves nodes then; until `ended`.
async fn lead_and_serve(
    control: Arc<Control>,
    client: Client,
    ended: impl Future<Output = io::Result<()>>,
) -> anyhow::Result<()> {
    tokio::spawn(watch::follow(client.clone(), Arc::clone(&control)));
    let authority =
        Authority::of_cluster(&client, &control.settings).await.context("the authority for nodes' streams")?;
    let certificate = authority.certificate()?;
    let handle = Handle::new();
    // Before it leads: nodes come at once.
    let listen = control.settings.listen;
    let listener = std::net::TcpListener::bind(listen).with_context(|| format!("--listen {listen}"))?;
    let serve = serve::serve(listener, Arc::clone(&control), client.clone(), certificate, handle.clone());
    let serving = tokio::spawn(serve);
    tokio::spawn(status::follow(client.clone(), Arc::clone(&control)));
    tokio::spawn(absent::follow(Arc::clone(&control)));
    tokio::spawn(events::follow(client.clone(), Arc::clone(&control)));
    tokio::spawn(readiness::follow(client.clone(), Arc::clone(&control)));
    tokio::spawn(resolve::follow(Arc::clone(&control)));
    let (end, ending) = sync::watch::channel(false);
    let following = async {
        // Who would lead must have something to serve.
        control.until_listed().await;
        leader::follow(client, Arc::clone(&control), ending).await;
    };
    let mut following = std::pin::pin!(following);
    tokio::select! {
        served = serving => return served?.with_context(|| format!("--listen {}", control.settings.listen)),
        () = &mut following => {}
        signalled = ended => signalled?,
    }
    tracing::info!("control ends; another replica leads, and nodes go there");
    _ = end.send(true);
    if control.is_listed() {
        _ = tokio::time::timeout(END, following).await;
    }
    handle.graceful_shutdown(Some(END));
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}
