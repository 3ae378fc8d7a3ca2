//! The command line.

// Others' text goes through `say`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod compile;
mod events;
mod host;
mod inspect;
mod listeners;
mod output;
mod pull;
mod push;
mod run;
mod say;
mod uninstall;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use pillion_protocol::{
    quantity::{ByteSize, Span},
    reference::is_registry,
};

use crate::registry::settings::Location;

/// Sidecars without containers: serves WebAssembly components on localhost.
#[derive(Parser)]
#[command(name = "pillion", version, arg_required_else_help = true, max_term_width = 100)]
struct Pillion {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves components on localhost, each at a port of its own
    Run(run::Run),
    /// Serves the pods of a node: components from control or from a folder, endpoints from the keeper
    Host(host::Host),
    /// Compiles components ahead of time into the store, so that they are there when they are run
    Compile(compile::Compile),
    /// Shows what a component exports and imports, and whether it can be served
    Inspect(inspect::Inspect),
    /// Brings artifacts from registries into the store
    Pull(pull::Pull),
    /// Brings a component into a registry, as a CNCF Wasm artifact
    Push(push::Push),
    /// Looks at a cluster, and says what keeps its pods from having their sidecars
    Check(check::Check),
    /// Takes the agent off every node of a cluster
    Uninstall(uninstall::Uninstall),
    #[command(hide = true)]
    Worker,
    #[command(hide = true)]
    Puller { parent: u32 },
    #[command(hide = true)]
    Resolver {
        parent: u32,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    #[command(hide = true)]
    Follower { parent: u32 },
    #[command(hide = true)]
    Compiler { parent: u32 },
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For machines: JSON, one object a line
    Json,
}

/// The store, where several commands need it.
#[derive(clap::Args)]
struct StoreArgs {
    /// Where components and their native code are kept [default: pillion/store in the user's cache folder]
    #[arg(long, value_name = "DIR", env = "PILLION_STORE")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    fn path(self) -> anyhow::Result<PathBuf> {
        let from = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = || from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
        let store = self.store.or_else(|| Some(cache()?.join("pillion").join("store")));
        let store = store.ok_or_else(|| anyhow::anyhow!("there is no HOME to keep a store in: give --store DIR"))?;
        Ok(std::path::absolute(store)?)
    }
}

/// What is kept of registries, where components are served.
#[derive(Clone, Copy, clap::Args)]
struct KeepArgs {
    /// How much the store may hold; what was not used for longest leaves first, nothing that is served
    #[arg(long, value_name = "SIZE", default_value = "10Gi")]
    store_quota: ByteSize,
    /// How often it is looked whether tags in registries lead elsewhere; `pillion run` looks only with --watch
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    tag_refresh: Span,
}

/// How registries are reached, where several commands need it.
#[derive(Clone, clap::Args)]
struct RegistryArgs {
    /// Settings for registries: credentials, authorities, mirrors; a YAML file, see SPECIFICATION.md §7
    #[arg(long, value_name = "FILE", env = "PILLION_REGISTRIES")]
    registries: Option<PathBuf>,
    /// A registry that speaks HTTP without TLS
    #[arg(long, value_name = "HOST[:PORT]", value_parser = registry)]
    plain_http: Vec<String>,
}

fn registry(text: &str) -> Result<String, String> {
    match is_registry(text) {
        true => Ok(text.to_owned()),
        false => Err("expected HOST or HOST:PORT".into()),
    }
}

impl RegistryArgs {
    fn location(&self) -> Location {
        Location { file: self.registries.clone(), plain_http: self.plain_http.clone() }
    }
}

/// Runs the command line. The exit code is 0 when done, 1 when nothing could be done, 2 when the command line is wrong.
pub fn main() -> ExitCode {
    let done = match Pillion::parse().command {
        Command::Run(run) => run.run(),
        Command::Host(host) => host.run(),
        Command::Compile(compile) => compile.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Pull(pull) => pull.run(),
        Command::Push(push) => push.run(),
        Command::Check(check) => check.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Worker => crate::worker::main().map(|()| ExitCode::SUCCESS),
        Command::Puller { parent } => crate::registry::puller::main(parent).map(|()| ExitCode::SUCCESS),
        Command::Resolver { parent, registry } => {
            crate::registry::resolver::main(parent, &registry.location()).map(|()| ExitCode::SUCCESS)
        }
        Command::Follower { parent } => crate::follower::main(parent).map(|()| ExitCode::SUCCESS),
        Command::Compiler { parent } => crate::compiler::main(parent).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        say::err(format_args!("error: {error:#}"));
        // A command line can be well-formed and still say nothing that makes sense.
        let usage = error.downcast_ref().is_some_and(crate::catalog::CatalogError::is_usage);
        ExitCode::from(if usage { 2 } else { 1 })
    })
}
