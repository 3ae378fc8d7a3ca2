//! `pillion run`: the node's host on a laptop.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::Sender,
    thread,
};

use pillion_confine::Process;
use pillion_protocol::{
    annotation::{Port, Sidecars},
    component::Image,
    hosts::{Allowance, AllowedHostError},
    name::Name,
    quantity::{ByteSize, Span},
};
use pillion_sockets::listen;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{KeepArgs, Output, RegistryArgs, StoreArgs, listeners::Listeners, output::Told, say};
use crate::{
    catalog::{
        CatalogError, Components, folder,
        nested::Nested,
        short::Short,
        told::Verdict,
        watch::{self, Watched},
    },
    engine::settings::Capacity,
    log::{Log, LogFormat},
    store::Store,
    supervisor::{
        Bound, Desired, Input, Supervisor,
        message::{Binding, Event, Reason, Settings},
    },
    sys::ThreadClass,
};

/// Serves components on localhost, each at a port of its own.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  pillion run ./hello.wasm=8080
  pillion run clock=./target/release/_clock.wasm=8080 --allow-outbound https://time.example
  pillion run -f components/ --sidecars \"jwt-authz=8081, flags=8082\"
  pillion run -f components/ --watch
  pillion run --image registry.example/acme/clock:1.0.1=8080

Ctrl-C ends requests in flight first; twice ends at once.")]
pub(super) struct Run {
    /// Component files, each with its port; a component is named like its file, unless a NAME is said
    #[arg(value_name = "[NAME=]FILE.wasm=PORT")]
    components: Vec<String>,
    /// An artifact in a registry, with its port: a component with every setting at its default, named like its repository, unless a NAME is said
    #[arg(long = "image", value_name = "[NAME=]REGISTRY/REPOSITORY:TAG=PORT")]
    images: Vec<String>,
    /// Where components that are given with their ports may call out to, as in spec.allowedOutboundHosts; may be repeated [default: nowhere]
    #[arg(long, value_name = "SCHEME://HOST[:PORT]", value_parser = allowance)]
    allow_outbound: Vec<Allowance>,
    /// Component resources (apiVersion pillion.dev/v1alpha1): a YAML file, or a folder of them
    #[arg(short, long = "file", value_name = "FILE_OR_FOLDER", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Which components are served at which ports, in the grammar of the annotation pillion.dev/sidecars
    /// [default: all of them, from port 8080 on]
    #[arg(long, value_name = "NAME=PORT, …")]
    sidecars: Option<Sidecars>,
    /// Serves new versions when files change, or tags lead elsewhere; requests in flight finish on the old ones. Which components are bound stays as it is
    #[arg(long)]
    watch: bool,
    /// Addresses to listen on [default: 127.0.0.1 and, where there is IPv6, ::1]
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    store: StoreArgs,
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

/// Where components come from.
#[derive(Clone)]
struct Sources {
    files: Vec<PathBuf>,
    shorts: Vec<String>,
    images: Vec<String>,
    /// Where those of short forms may call out to.
    allow_outbound: Vec<Allowance>,
}

/// What [`Sources`] hold: resources, and short forms.
type Read = (Components, Vec<Short>);

impl Sources {
    fn read(&self) -> Result<Read, CatalogError> {
        let shorts = self.shorts.iter().map(|text| Short::file(text));
        let mut shorts: Vec<_> =
            shorts.chain(self.images.iter().map(|text| Short::image(text))).collect::<Result<_, _>>()?;
        if shorts.is_empty() && !self.allow_outbound.is_empty() {
            return Err(CatalogError::HostsForNothing);
        }
        for short in &mut shorts {
            short.entry.spec.allowed_outbound_hosts.clone_from(&self.allow_outbound);
        }
        Ok((folder::read(&self.files)?, shorts))
    }

    fn components(&self) -> Result<Components, CatalogError> {
        let (mut components, shorts) = self.read()?;
        for short in shorts {
            short.insert_into(&mut components)?;
        }
        Ok(components)
    }
}

fn allowance(text: &str) -> Result<Allowance, AllowedHostError> {
    text.to_owned().try_into()
}

impl Run {
    /// `-f` takes all that comes behind it: what can only be a short form is one.
    fn sources(&self) -> Sources {
        let is_short = |file: &PathBuf| !file.exists() && file.to_str().is_some_and(|text| Short::file(text).is_ok());
        let (shorts, files): (Vec<_>, Vec<_>) = self.files.iter().cloned().partition(is_short);
        let shorts = shorts.iter().map(|text| text.to_string_lossy().into_owned());
        Sources {
            files,
            shorts: self.components.iter().cloned().chain(shorts).collect(),
            images: self.images.clone(),
            allow_outbound: self.allow_outbound.clone(),
        }
    }

    /// Reads files and arguments.
    fn asked(&self) -> Result<Asked, CatalogError> {
        let (mut components, shorts) = self.sources().read()?;
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
        for short in shorts {
            let (name, port) = (short.name.clone(), short.port);
            if let Some((first, _)) = ports.iter().find(|(_, taken)| *taken == Some(port)) {
                return Err(CatalogError::PortTwice { port, first: first.clone(), second: name });
            }
            short.insert_into(&mut components)?;
            ports.push((name, Some(port)));
        }
        // Ports that were asked for first: none of them is given to somebody else.
        ports.sort_by_key(|(_, port)| port.is_none());
        if ports.is_empty() { Err(CatalogError::Nothing) } else { Ok(Asked { components, ports }) }
    }

    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Asked { components, ports } = self.asked()?;
        let log = Log { format: self.log_format, filter: self.log.clone() };
        listen::raise_descriptor_limit();
        Process::Supervisor.confine()?;
        let _logging = log.start()?;
        let mut nested = Nested::default();
        nested.tell(&self.sources().files);
        Capacity::check()?;
        let store = self.store_path()?;
        // The worker opens it too, but what is wrong with it is to be said here, once.
        Store::open(&store)?.sweep();
        let asked_for = ports.len();
        let mut output = Written::new(self.output, asked_for);
        let listeners = Listeners::new(&self.address);
        let mut bindings = BTreeMap::new();
        for (name, port) in ports {
            match listeners.open(&name, port)? {
                Ok((port, listeners)) => {
                    let (component, verdict) = (name.clone().into(), Verdict::Served);
                    let binding = Binding { component, name, port, pod: None, verdict };
                    bindings.insert((None, port), Bound::from((binding, listeners)));
                }
                Err((port, message)) => {
                    let (component, binding, reason) = (name.clone().into(), name, Reason::Port);
                    let (pod, serves) = (None, None);
                    output.write(&Event::Failed { component, binding, pod, port, reason, message, serves });
                }
            }
        }
        if bindings.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        let bound: BTreeSet<_> = bindings.values().map(|bound| bound.component().name.clone()).collect();
        let watched = self.watch.then(|| self::watched(&self.sources().files, &components));
        let components = components
            .into_iter()
            .filter(|(name, _)| bound.contains(name))
            .map(|(name, entry)| (name.into(), entry.spec.into()));
        // What is not watched stays as it is.
        let tag_refresh = self.watch.then_some(self.keep.tag_refresh);
        let KeepArgs { store_quota, .. } = self.keep;
        let (memory, drain_timeout) = (self.memory, self.drain_timeout);
        // SCHED_IDLE would yield to every program of the machine.
        let back = ThreadClass::Nice(19);
        let settings = Settings { store, store_quota, tag_refresh, back, memory, drain_timeout, log };
        let unbound = asked_for - bindings.len();
        let supervisor = Supervisor::new(Desired {
            settings,
            registries: self.registry.location(),
            components: components.collect(),
            bindings,
            control: None,
        });
        terminate_on_signals(supervisor.inputs())?;
        if let Some(watched) = watched {
            self.start_watching(watched, nested, bound, supervisor.inputs())?;
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
    fn start_watching(
        &self,
        watched: Watched,
        mut nested: Nested,
        bound: BTreeSet<Name>,
        inputs: Sender<Input>,
    ) -> anyhow::Result<()> {
        let sources = self.sources();
        watch::watch(watched, move || match sources.components() {
            Ok(components) => {
                nested.tell(&sources.files);
                let now = self::watched(&sources.files, &components);
                for (name, entry) in components.into_iter().filter(|(name, _)| bound.contains(name)) {
                    _ = inputs.send(Input::Component(name.into(), Box::new(entry.spec)));
                }
                Some(now)
            }
            Err(error) => {
                tracing::error!(%error, "what has changed cannot be read: everything is served as it was");
                None
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
        if let Image::Path(image) = &entry.spec.image {
            watched.add(Path::new(image));
        }
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
            Self::Json => _ = say::json(event),
        }
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
        let table: [(&[&str], &str); 15] = [
            (&[], "no component is named"),
            (&["x.wasm"], "\"x.wasm\" is no component: expected [NAME=]FILE.wasm=PORT"),
            (&["x.wasm=0"], "\"0\" is no port for a sidecar: allowed are 1024 to 65535"),
            (&["x.wasm=80"], "\"80\" is no port"),
            (&["x.wasm=70000"], "\"70000\" is no port"),
            (&["x.wasm=8080", "y.wasm=8080"], "port 8080 is given to both \"x\" and \"y\""),
            (&["a/x.wasm=8080", "b/x.wasm=8081"], "the component \"x\" is already in"),
            (&["--sidecars", "clock=8080"], "there is no component \"clock\": there are none"),
            (&["--image", "r.example/a:1"], "\"r.example/a:1\" is no artifact with a port"),
            (&["--image", "hello:1=8080"], "the registry is not named"),
            (&["--image", "r.example/a:1=80"], "\"80\" is no port"),
            (&["--image", "r.example/x:1=8080", "x.wasm=8081"], "the component \"x\" is already in"),
            (&["--sidecars", "clock=80"], "\"80\" is no port for a sidecar"),
            (&["--allow-outbound", "https://a.example"], "and there are none"),
            (&["x.wasm=8080", "--allow-outbound", "a.example"], "\"a.example\" is no allowed host"),
        ];
        for (args, expected) in table {
            let error = asked(args).err().unwrap();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }
}
