//! `pillion host`: the node's host. Components come from a folder, endpoints from the keeper.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use pillion_confine::Process;
use pillion_protocol::{
    component::Image,
    quantity::{ByteSize, Span},
};
use pillion_sockets::listen;

use super::{
    KeepArgs, RegistryArgs,
    run::{terminate_on_signals, watched},
};
use crate::{
    catalog::{CatalogError, Components, Entry, folder, watch},
    store::Store,
    supervisor::{
        Desired, Input, Supervisor, keeper,
        message::{Event, Log, LogFormat, Settings},
    },
};

/// Serves the pods of a node: components from a folder, endpoints from the keeper.
#[derive(clap::Args)]
#[command(after_help = "Example:
  pillion host --catalog /etc/pillion/catalog --store /var/lib/pillion/host

It needs no capability. SIGTERM ends requests in flight first and removes nothing.")]
pub(super) struct Host {
    /// A folder of component resources (apiVersion pillion.dev/v1alpha1); changes in it are followed
    #[arg(long, value_name = "DIR", env = "PILLION_CATALOG")]
    catalog: PathBuf,
    /// The keeper's socket for the host
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/host/keeper.sock", env = "PILLION_HOST_SOCKET")]
    keeper_socket: PathBuf,
    /// Where components and their native code are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pillion/host", env = "PILLION_STORE")]
    store: PathBuf,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Memory for all guests together, for example 2Gi [default: four fifths of what the cgroup allows or the machine has]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// How long requests in flight may take when it ends
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    drain_timeout: Span,
    /// Which log lines are written, as JSON to standard error, for example "debug"
    #[arg(long, value_name = "FILTER", env = "PILLION_LOG")]
    log: Option<String>,
}

/// The catalog in `folder`; one without components is a catalog too.
fn read(folder: &PathBuf) -> Result<Components, CatalogError> {
    match folder::read(std::slice::from_ref(folder)) {
        Err(CatalogError::EmptyFolder(_)) => Ok(Components::new()),
        read => read,
    }
}

impl Host {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let log = Log { format: LogFormat::Json, filter: self.log.clone() };
        log.start();
        anyhow::ensure!(
            !rustix::process::geteuid().is_root(),
            "this program runs strangers' code, and not as root: start it as a user of its own (runAsUser in a pod, User= in a unit), and tell the keeper which one by --host-uid"
        );
        listen::raise_descriptor_limit();
        Process::Supervisor.confine()?;
        let components = read(&self.catalog)?;
        Store::open(&self.store)?.sweep();
        let KeepArgs { store_quota, tag_refresh } = self.keep;
        let settings = Settings {
            store: self.store,
            store_quota,
            tag_refresh: Some(tag_refresh),
            memory: self.memory,
            drain_timeout: self.drain_timeout,
            log,
        };
        let files = [self.catalog.clone()];
        let follow = watched(&files, &components);
        let mut known = components.clone();
        let components = components.into_iter().map(|(name, entry)| (name, entry.spec.into())).collect();
        let supervisor = Supervisor::new(Desired {
            settings,
            registries: self.registry.location(),
            components,
            bindings: BTreeMap::new(),
        });
        terminate_on_signals(supervisor.inputs())?;
        let inputs = supervisor.inputs();
        watch::watch(follow, move || match read(&self.catalog) {
            Ok(components) => {
                for name in known.keys().filter(|name| !components.contains_key(*name)) {
                    _ = inputs.send(Input::ComponentGone(name.clone()));
                }
                for (name, Entry { spec, .. }) in &components {
                    // The content of a file may be another one; what a tag leads to is looked at in its own time.
                    let same = known.get(name).is_some_and(|known| known.spec == *spec);
                    if !same || matches!(spec.image, Image::Path(_)) {
                        _ = inputs.send(Input::Component(name.clone(), Box::new(spec.clone())));
                    }
                }
                let follow = watched(&files, &components);
                known = components;
                Some(follow)
            }
            Err(error) => {
                tracing::error!(%error, "the catalog cannot be read: everything is served as it was");
                None
            }
        })?;
        keeper::follow(self.keeper_socket, supervisor.inputs())?;
        supervisor.run(|event| {
            let event = serde_json::to_string::<Event>(&event).unwrap_or_default();
            tracing::info!(event, "what became of a component or a binding");
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
