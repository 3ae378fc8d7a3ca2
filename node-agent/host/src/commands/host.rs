//! `pillion host`: the node's host. Components come from control, or from a folder; endpoints from the keeper.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::mpsc::Sender};

use pillion_confine::Process;
use pillion_protocol::{
    component::Image,
    quantity::{ByteSize, Span},
};
use pillion_sockets::listen;

use super::{
    KeepArgs, RegistryArgs, events,
    run::{terminate_on_signals, watched},
};
use crate::{
    catalog::{CatalogError, Components, Entry, folder, kept::Kept, nested::Nested, watch},
    engine::settings::Capacity,
    follower,
    log::{Log, LogFormat},
    store::Store,
    supervisor::{Desired, Input, Supervisor, control::Control, keeper, message::Settings},
    sys::ThreadClass,
};

/// Serves the pods of a node: components from control or from a folder, endpoints from the keeper.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  pillion host --catalog /etc/pillion/catalog --store /var/lib/pillion/host
  pillion host --control https://pillion-control.pillion-system.svc:8443 --control-ca /etc/pillion/ca/ca.crt \\
    --control-token /var/run/secrets/pillion/token

It needs no capability. SIGTERM ends requests in flight first and removes nothing.")]
pub(super) struct Host {
    #[command(flatten)]
    from: FromArgs,
    /// The keeper's socket for the host
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/host/keeper.sock", env = "PILLION_HOST_SOCKET")]
    keeper_socket: PathBuf,
    /// Where components and their native code are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pillion/host", env = "PILLION_STORE")]
    store: PathBuf,
    /// Where what control tells of Secrets is kept while this program does not run: a folder in memory, this user's own
    #[arg(long, value_name = "DIR", default_value = "/run/pillion/secrets", env = "PILLION_SECRETS")]
    secrets: PathBuf,
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

/// Where components come from: a folder, or control.
#[derive(clap::Args)]
#[group(required = true)]
struct FromArgs {
    /// A folder of component resources (apiVersion pillion.dev/v1alpha1); changes in it are followed
    #[arg(long, value_name = "DIR", env = "PILLION_CATALOG", conflicts_with = "control")]
    catalog: Option<PathBuf>,
    /// Where control is, which tells what the node's pods need
    #[arg(long, value_name = "https://HOST:PORT", env = "PILLION_CONTROL", requires_all = ["control_ca", "control_token"])]
    control: Option<String>,
    /// The certificate of control's authority, PEM; it is read again for each connection
    #[arg(long, value_name = "FILE", env = "PILLION_CONTROL_CA", requires = "control")]
    control_ca: Option<PathBuf>,
    /// This node's token for control; it is read again for each connection
    #[arg(long, value_name = "FILE", env = "PILLION_CONTROL_TOKEN", requires = "control")]
    control_token: Option<PathBuf>,
}

impl FromArgs {
    fn control(&self) -> Option<follower::message::Settings> {
        let (url, authority, token) = (self.control.clone()?, self.control_ca.clone()?, self.control_token.clone()?);
        Some(follower::message::Settings { url: url.trim_end_matches('/').to_owned(), authority, token })
    }
}

/// The catalog in `folder`; one without components is a catalog too.
fn read(folder: &PathBuf) -> Result<Components, CatalogError> {
    match folder::read(std::slice::from_ref(folder)) {
        Err(CatalogError::EmptyFolder { .. }) => Ok(Components::new()),
        read => read,
    }
}

/// Tells the supervisor what changes in the folder.
fn follow_folder(folder: PathBuf, mut known: Components, inputs: Sender<Input>) -> anyhow::Result<()> {
    let files = [folder.clone()];
    let follow = watched(&files, &known);
    let mut nested = Nested::default();
    nested.tell(&files);
    watch::watch(follow, move || match read(&folder) {
        Ok(components) => {
            nested.tell(&files);
            for name in known.keys().filter(|name| !components.contains_key(*name)) {
                _ = inputs.send(Input::ComponentGone(name.clone().into()));
            }
            for (name, Entry { spec, .. }) in &components {
                // The content of a file may be another one; what a tag leads to is looked at in its own time.
                let same = known.get(name).is_some_and(|known| known.spec == *spec);
                if !same || matches!(spec.image, Image::Path(_)) {
                    _ = inputs.send(Input::Component(name.clone().into(), Box::new(spec.clone())));
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
    })
}

impl Host {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let log = Log { format: LogFormat::Json, filter: self.log.clone() };
        anyhow::ensure!(
            !rustix::process::geteuid().is_root(),
            "this program runs strangers' code, and not as root: start it as a user of its own (runAsUser in a pod, User= in a unit), and tell the keeper which one by --host-uid"
        );
        listen::raise_descriptor_limit();
        Process::Supervisor.confine()?;
        let _logging = log.start()?;
        Capacity::check()?;
        Store::open(&self.store)?.sweep();
        let open = |settings| Control::open(settings, Kept::new(&self.store, &self.secrets));
        let control = self.from.control().map(open).transpose()?;
        let catalog = self
            .from
            .catalog
            .as_ref()
            .map(|folder| Ok::<_, CatalogError>((folder.clone(), read(folder)?)))
            .transpose()?;
        let KeepArgs { store_quota, tag_refresh } = self.keep;
        let settings = Settings {
            store: self.store,
            store_quota,
            tag_refresh: Some(tag_refresh),
            back: ThreadClass::Idle,
            memory: self.memory,
            drain_timeout: self.drain_timeout,
            log,
        };
        let of_folder = catalog.iter().flat_map(|(_, components)| components);
        let of_folder = of_folder.map(|(name, entry)| (name.clone().into(), entry.spec.clone().into()));
        let of_control = control.iter().flat_map(Control::components);
        let of_control = of_control.map(|(id, spec)| (id.clone(), spec.clone().into()));
        let supervisor = Supervisor::new(Desired {
            settings,
            registries: self.registry.location(),
            components: of_folder.chain(of_control).collect(),
            bindings: BTreeMap::new(),
            control,
        });
        terminate_on_signals(supervisor.inputs())?;
        if let Some((folder, components)) = catalog {
            follow_folder(folder, components, supervisor.inputs())?;
        }
        keeper::follow(self.keeper_socket, supervisor.inputs())?;
        supervisor.run(|event| events::log(&event))?;
        Ok(ExitCode::SUCCESS)
    }
}
