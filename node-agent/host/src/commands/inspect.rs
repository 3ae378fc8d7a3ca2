//! `pillion inspect`: what a component is, for people who build components.

use std::{collections::BTreeSet, fs::File, io::Read, path::Path, process::ExitCode};

use anyhow::Context;
use pillion_protocol::{component::Limits, digest::Digest, quantity::ByteSize, reference::Reference};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Output, RegistryArgs, StoreArgs, pull::pull, say};
use crate::{
    compiler::{
        MAX_COMPONENT,
        facts::{self, Facts, Interfaces, is_offered},
        judge,
    },
    engine::settings::World,
    registry::settings::Location,
    spin::{self, App, Handler},
    store::{Artifact, Image, Store},
};

/// Shows what components export and import, and whether they can be served. Artifacts are brought into the store for that.
#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Component files, and artifacts in registries
    #[arg(required_unless_present = "offered", value_name = "FILE|REGISTRY/REPOSITORY:TAG")]
    things: Vec<String>,
    /// Lists the interfaces that components may import, and nothing else
    #[arg(long, conflicts_with = "things")]
    offered: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    /// The file, or within an artifact the component.
    file: String,
    size: u64,
    digest: Digest,
    /// Through which it can be served, if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    world: Option<World>,
    #[serde(flatten)]
    interfaces: Option<Interfaces>,
    /// Why it cannot be served.
    refused: Option<String>,
}

/// An artifact.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SeenImage {
    image: Reference,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<Application>,
    components: Vec<Seen>,
}

/// What a Spin application says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    name: String,
    version: Option<String>,
    routes: Vec<Route>,
    /// What its components ask for; it counts within `spec.allowedOutboundHosts` of the resource.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    asks_for_outbound_hosts: BTreeSet<String>,
}

#[derive(Serialize)]
struct Route {
    /// `None`: no request leads there.
    route: Option<String>,
    /// `None`: the answer is fixed.
    component: Option<String>,
}

impl Application {
    fn new(app: &App) -> Self {
        let route = |route: &spin::Route| Route {
            route: route.pattern.as_ref().map(|pattern| pattern.as_str().to_owned()),
            component: match &route.handler {
                Handler::Component(id) => Some(id.clone()),
                Handler::Static(_) => None,
            },
        };
        let hosts = app.components.values().flat_map(|component| component.allowed_outbound_hosts.iter().cloned());
        Self {
            name: app.name.clone(),
            version: app.version.clone(),
            routes: app.routes.iter().map(route).collect(),
            asks_for_outbound_hosts: hosts.collect(),
        }
    }
}

impl SeenImage {
    fn read(image: Reference, store: &Path, registries: &Location) -> anyhow::Result<Self> {
        let pulled = pull(&image, store, registries)?;
        let (content, artifacts) =
            Store::open_as_child(store)?.image(pulled.digest).context("it has gone from the store")?;
        let (ids, application) = match &content {
            Image::Component(_) => (vec![image.repository().to_owned()], None),
            Image::App(app) => (app.components.keys().cloned().collect(), Some(Application::new(app))),
        };
        let seen = |(id, artifact): (String, Artifact)| Seen::read(id, artifact.open()?);
        let components = ids.into_iter().zip(artifacts).map(seen).collect::<anyhow::Result<_>>()?;
        Ok(Self { image, digest: pulled.digest, application, components })
    }

    fn print(&self) {
        say::out(&self.image);
        say::out(format_args!("  digest   {}", self.digest));
        if let Some(Application { name, version, routes, asks_for_outbound_hosts }) = &self.application {
            say::out(format_args!("  spin     {name} {}", version.as_deref().unwrap_or_default()));
            for Route { route, component } in routes {
                let component = component.as_deref().unwrap_or("(a fixed answer)");
                say::out(format_args!("  route    {} -> {component}", route.as_deref().unwrap_or("(private)")));
            }
            for host in asks_for_outbound_hosts {
                say::out(format_args!("  asks for {host:?}, which counts within spec.allowedOutboundHosts"));
            }
        }
        for component in &self.components {
            component.print();
        }
    }
}

impl Seen {
    fn read(name: String, file: File) -> anyhow::Result<Self> {
        let size = file.metadata().with_context(|| name.clone())?.len();
        anyhow::ensure!(size <= MAX_COMPONENT, "{name}: {size} bytes: at most {MAX_COMPONENT} are allowed");
        let mut wasm = Vec::new();
        file.take(MAX_COMPONENT).read_to_end(&mut wasm).with_context(|| name.clone())?;
        let digest = Digest::from_sha256(Sha256::digest(&wasm).into());
        let world = Facts::read(&wasm).ok().map(|facts| facts.world);
        let refused = judge(&wasm).err().map(|refusal| refusal.to_string());
        let interfaces = Interfaces::read(&wasm).ok();
        Ok(Self { file: name, size, digest, world, interfaces, refused })
    }

    fn print(&self) {
        say::out(&self.file);
        say::out(format_args!("  size     {} bytes", self.size));
        say::out(format_args!("  digest   {}", self.digest));
        if let Some(world) = self.world {
            say::out(format_args!("  world    {world}"));
        }
        if let Some(Interfaces { imports, exports, memory_minimum }) = &self.interfaces {
            let (needs, default) = (ByteSize::bytes(*memory_minimum), Limits::default().memory.get());
            let above = needs > default;
            let note = if above { format!(": set limits.memory, its default is {default}") } else { String::new() };
            say::out(format_args!("  memory   at least {needs}{note}"));
            for export in exports {
                say::out(format_args!("  exports  {export}"));
            }
            for import in imports {
                let offered = self.world.is_none_or(|world| is_offered(import, world));
                say::out(format_args!("  imports  {import}{}", if offered { "" } else { "   <- not offered" }));
            }
        }
        match &self.refused {
            None => say::out("  served   yes"),
            Some(why) => say::out(format_args!("  served   no: {why}")),
        }
    }
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.offered {
            match self.output {
                Output::Text => facts::offered().iter().for_each(say::out),
                Output::Json => say::json(&facts::offered())?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        let (store, registries) = (self.store.path()?, self.registry.location());
        let mut good = true;
        for thing in self.things {
            let seen = match (File::open(&thing), thing.parse()) {
                (Ok(file), _) => Seen::read(thing, file).map(Either::File),
                (Err(_), Ok(image)) => SeenImage::read(image, &store, &registries).map(Either::Image),
                (Err(error), Err(reference)) => Err(anyhow::anyhow!("{thing}: no file: {error}; and {reference}")),
            };
            match seen {
                Ok(seen) => {
                    good &= seen.components().iter().all(|component| component.refused.is_none());
                    match (self.output, &seen) {
                        (Output::Text, Either::Image(image)) => image.print(),
                        (Output::Text, Either::File(file)) => file.print(),
                        (Output::Json, _) => say::json(&seen)?,
                    }
                }
                Err(error) => {
                    say::err(format_args!("error: {error:#}"));
                    good = false;
                }
            }
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// One of the two things that can be looked at.
#[derive(Serialize)]
#[serde(untagged)]
enum Either {
    File(Seen),
    Image(SeenImage),
}

impl Either {
    fn components(&self) -> &[Seen] {
        match self {
            Self::File(file) => std::slice::from_ref(file),
            Self::Image(image) => &image.components,
        }
    }
}
