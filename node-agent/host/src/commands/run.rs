//! `pillion run`: the node's host on a laptop.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::Sender,
    thread,
};

use pillion_confine::Process;
use pillion_protocol::{
    annotation::{Port, Sidecars},
    component::Image,
    name::Name,
    quantity::{ByteSize, Span},
};
use pillion_sockets::listen;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{Output, StoreArgs, output::Told};
use crate::{
    catalog::{
        CatalogError, Components, folder,
        watch::{self, Watched},
    },
    store::Store,
    supervisor::{
        Bound, Desired, Input, Supervisor,
        message::{Binding, Event, Log, LogFormat, Reason, Settings},
    },
};

/// Where the search for ports begins when none are given.
const FIRST_PORT: u16 = 8080;

/// Serves components on localhost, each at a port of its own.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  pillion run ./hello.wasm=8080
  pillion run -f components/ --sidecars \"jwt-authz=8081, flags=8082\"
  pillion run -f components/ --watch

Ctrl-C ends requests in flight first; twice ends at once.")]
pub(super) struct Run {
    /// Component files, each with its port, as FILE.wasm=PORT
    #[arg(value_name = "FILE.wasm=PORT")]
    components: Vec<String>,
    /// Component resources (apiVersion pillion.dev/v1alpha1): a YAML file, or a folder of them
    #[arg(short, long = "file", value_name = "FILE_OR_FOLDER", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Which components are served at which ports, in the grammar of the annotation pillion.dev/sidecars
    /// [default: all of them, from port 8080 on]
    #[arg(long, value_name = "NAME=PORT, …")]
    sidecars: Option<Sidecars>,
    /// Serves new versions when files change; requests in flight finish on the old ones. Which components are bound stays as it is
    #[arg(long)]
    watch: bool,
    /// Addresses to listen on [default: 127.0.0.1 and, where there is IPv6, ::1]
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    store: StoreArgs,
    /// Memory for all guests together, for example 2Gi [default: four fifths of what the cgroup allows or the machine has]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// How long requests in flight may take when it ends
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    drain_timeout: Span,
    /// How log lines are written, to standard error
    #[arg(long, value_enum, default_value_t, env = "PILLION_LOG_FORMAT")]
    log_format: LogFormat,
    /// Which log lines are written, for example "debug" or "warn,guest=off"
    #[arg(long, value_name = "FILTER", env = "PILLION_LOG")]
    log: Option<String>,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What is asked for: components, and ports for those that have one.
struct Asked {
    components: Components,
    ports: Vec<(Name, Option<Port>)>,
}

impl Run {
    /// Resources, and short forms. `-f` takes all that comes behind it: what can only be a short form is one.
    fn sources(&self) -> (Vec<PathBuf>, Vec<String>) {
        let is_short = |file: &PathBuf| !file.exists() && file.to_str().is_some_and(|text| folder::short(text).is_ok());
        let (shorts, files): (Vec<_>, Vec<_>) = self.files.iter().cloned().partition(is_short);
        let shorts = shorts.iter().map(|text| text.to_string_lossy().into_owned());
        (files, self.components.iter().cloned().chain(shorts).collect())
    }

    /// Reads files and arguments.
    fn asked(&self) -> Result<Asked, CatalogError> {
        let (files, shorts) = self.sources();
        let mut components = folder::read(&files)?;
        let mut ports: Vec<(Name, Option<Port>)> = Vec::new();
        match &self.sidecars {
            Some(sidecars) => {
                for sidecar in sidecars {
                    if !components.contains_key(&sidecar.name) {
                        let known = components.keys().cloned().collect();
                        return Err(CatalogError::Unknown { name: sidecar.name.clone(), known });
                    }
                    ports.push((sidecar.name.clone(), Some(sidecar.port)));
                }
            }
            None => ports.extend(components.keys().map(|name| (name.clone(), None))),
        }
        for text in &shorts {
            let (name, entry, port) = folder::short(text)?;
            if let Some((first, _)) = ports.iter().find(|(_, taken)| *taken == Some(port)) {
                return Err(CatalogError::PortTwice { port, first: first.clone(), second: name });
            }
            folder::insert(&mut components, name.clone(), entry)?;
            ports.push((name, Some(port)));
        }
        // Ports that were asked for first: none of them is given to somebody else.
        ports.sort_by_key(|(_, port)| port.is_none());
        if ports.is_empty() { Err(CatalogError::Nothing) } else { Ok(Asked { components, ports }) }
    }

    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Asked { components, ports } = self.asked()?;
        let log = Log { format: self.log_format, filter: self.log.clone() };
        log.start();
        let store = self.store_path()?;
        // The worker opens it too, but what is wrong with it is to be said here, once.
        Store::open(&store)?;
        let asked_for = ports.len();
        let mut output = Written::new(self.output, asked_for);
        listen::raise_descriptor_limit();
        Process::Supervisor.confine()?;
        let listeners = Listeners::new(&self.address);
        let mut bindings = BTreeMap::new();
        for (name, port) in ports {
            match listeners.open(&name, port)? {
                Ok((port, listeners)) => {
                    let binding = Binding { component: name.clone(), name, port, pod: None };
                    bindings.insert((None, port), Bound::from((binding, listeners)));
                }
                Err((port, message)) => {
                    let (component, binding, reason) = (name.clone(), name, Reason::Port);
                    output.write(&Event::Failed { component, binding, port, reason, message });
                }
            }
        }
        if bindings.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        let bound: BTreeSet<_> = bindings.values().map(|bound| bound.component().clone()).collect();
        let watched = self.watch.then(|| self::watched(&self.sources().0, &components));
        let components = components
            .into_iter()
            .filter(|(name, _)| bound.contains(name))
            .map(|(name, entry)| (name, entry.spec.into()));
        let settings = Settings { store, memory: self.memory, drain_timeout: self.drain_timeout, log };
        let unbound = asked_for - bindings.len();
        let supervisor = Supervisor::new(Desired { settings, components: components.collect(), bindings });
        terminate_on_signals(supervisor.inputs())?;
        if let Some(watched) = watched {
            self.start_watching(watched, bound, supervisor.inputs())?;
        }
        let (inputs, nothing) = (supervisor.inputs(), Cell::new(false));
        let watching = self.watch;
        supervisor.run(|mut event| {
            if let Event::Serving { failed, .. } = &mut event {
                *failed += unbound;
            }
            output.write(&event);
            if let Event::Serving { ready: 0, .. } = event
                && !watching
            {
                nothing.set(true);
                _ = inputs.send(Input::Terminate);
            }
        })?;
        Ok(if nothing.get() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn store_path(&self) -> anyhow::Result<PathBuf> {
        StoreArgs { store: self.store.store.clone() }.path()
    }

    /// Reads everything again whenever a file changes, and tells the supervisor what is bound and there.
    fn start_watching(&self, watched: Watched, bound: BTreeSet<Name>, inputs: Sender<Input>) -> anyhow::Result<()> {
        let (files, shorts) = self.sources();
        watch::watch(watched, move || {
            let read = || {
                let mut components = folder::read(&files)?;
                for text in &shorts {
                    let (name, entry, _) = folder::short(text)?;
                    folder::insert(&mut components, name, entry)?;
                }
                Ok::<_, CatalogError>(components)
            };
            match read() {
                Ok(components) => {
                    let now = self::watched(&files, &components);
                    for (name, entry) in components.into_iter().filter(|(name, _)| bound.contains(name)) {
                        _ = inputs.send(Input::Component(name, Box::new(entry.spec)));
                    }
                    Some(now)
                }
                Err(error) => {
                    tracing::error!(%error, "what has changed cannot be read: everything is served as it was");
                    None
                }
            }
        })
    }
}

/// The files whose changes mean something: YAML, and components.
pub(super) fn watched(files: &[PathBuf], components: &Components) -> Watched {
    let mut watched = Watched::default();
    for file in files {
        watched.add(&std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    }
    for entry in components.values() {
        let Image::Path(image) = &entry.spec.image;
        watched.add(Path::new(image));
    }
    watched
}

pub(super) fn terminate_on_signals(inputs: Sender<Input>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if inputs.send(Input::Terminate).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Where results go.
enum Written {
    Text(Told),
    Json,
}

impl Written {
    fn new(output: Output, bindings: usize) -> Self {
        match output {
            Output::Text => Self::Text(Told::new(bindings)),
            Output::Json => Self::Json,
        }
    }

    fn write(&mut self, event: &Event) {
        match self {
            Self::Text(told) => told.tell(event),
            Self::Json => println!("{}", serde_json::to_string(event).unwrap_or_default()),
        }
    }
}

/// Opens listeners for bindings.
struct Listeners {
    addresses: Vec<IpAddr>,
    /// No address was given: IPv6 may be missing.
    default: bool,
    next: Cell<u16>,
}

/// A binding's port with its listeners, or why there are none.
type Opened = Result<(Port, Vec<OwnedFd>), (Port, String)>;

impl Listeners {
    fn new(addresses: &[IpAddr]) -> Self {
        let default = addresses.is_empty();
        let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses = if default { localhost.to_vec() } else { addresses.to_vec() };
        Self { addresses, default, next: Cell::new(FIRST_PORT) }
    }

    /// Opens the binding's port, or the next free one.
    fn open(&self, name: &Name, port: Option<Port>) -> anyhow::Result<Opened> {
        if let Some(port) = port {
            return Ok(match self.open_at(port.get()) {
                Ok(listeners) => Ok((port, listeners)),
                Err((address, error)) => {
                    Err((port, format!("port {port} on {address} cannot be listened on: {error}")))
                }
            });
        }
        let first = self.next.get();
        for number in first..=u16::MAX {
            match self.open_at(number) {
                Ok(listeners) => {
                    self.next.set(number.saturating_add(1));
                    return Ok(Ok((Port::try_from(number)?, listeners)));
                }
                Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err((address, error)) => {
                    anyhow::bail!("{address} cannot be listened on: {error}");
                }
            }
        }
        Err(CatalogError::NoPort { name: name.clone(), first: FIRST_PORT }.into())
    }

    fn open_at(&self, port: u16) -> Result<Vec<OwnedFd>, (IpAddr, io::Error)> {
        let mut listeners = Vec::new();
        for &address in &self.addresses {
            match listen::open(address, port) {
                Ok(listener) => listeners.push(listener),
                Err(error) if self.default && address.is_ipv6() && listen::is_no_ipv6(&error) => {}
                Err(error) => return Err((address, error)),
            }
        }
        Ok(listeners)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn asked(args: &[&str]) -> Result<Asked, String> {
        let line = Line::try_parse_from([&["run"], args].concat()).map_err(|error| error.to_string())?;
        line.run.asked().map_err(|error| error.to_string())
    }

    #[test]
    fn ports_that_are_asked_for_come_before_those_that_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = "apiVersion: pillion.dev/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec: {image: ./a.wasm}\n";
        std::fs::write(folder.path().join("a.yaml"), yaml).unwrap();
        let asked = asked(&["-f", folder.path().to_str().unwrap(), "x.wasm=8080"]).unwrap();
        let ports: Vec<_> = asked.ports.iter().map(|(name, port)| (name.as_str(), port.map(Port::get))).collect();
        assert_eq!(ports, [("x", Some(8080)), ("a", None)]);
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let table: [(&[&str], &str); 9] = [
            (&[], "no component is named"),
            (&["x.wasm"], "\"x.wasm\" is no component: expected FILE.wasm=PORT"),
            (&["x.wasm=0"], "\"0\" is no port for a sidecar: allowed are 1024 to 65535"),
            (&["x.wasm=80"], "\"80\" is no port"),
            (&["x.wasm=70000"], "\"70000\" is no port"),
            (&["x.wasm=8080", "y.wasm=8080"], "port 8080 is given to both \"x\" and \"y\""),
            (&["a/x.wasm=8080", "b/x.wasm=8081"], "the component \"x\" is already in"),
            (&["--sidecars", "clock=8080"], "there is no component \"clock\": there are none"),
            (&["--sidecars", "clock=80"], "\"80\" is no port for a sidecar"),
        ];
        for (args, expected) in table {
            let error = asked(args).err().unwrap();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }
}
