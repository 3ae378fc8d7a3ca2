//! What an endpoint serves: a version of its component, with the endpoint's own places and logs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pillion_protocol::{
    component::{ComponentSpec, Limits},
    digest::Digest,
};

use super::{
    Endpoint,
    app::{self, App, Own},
};
use crate::{
    guest::{Surroundings, config::Config, logs::Logs, reuse::Reuse},
    outbound::{Caller, Outbound, named},
    scheduler::admission::Admission,
    store::NativeCode,
    supervisor::message,
};

/// What is known of a component.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being stored, compiled or checked; requests are held for so long, its `limits.headTimeout`.
    Preparing(Duration),
    /// It can be served.
    Ready(Arc<Version>),
    /// It cannot be served, for this reason.
    Failed(Arc<str>),
}

/// One version of a component: its code and its settings, which never change. A new one replaces it as a whole; requests in
/// flight finish on the old.
#[derive(Debug)]
pub struct Version {
    /// The digest of the component's file, or of the artifact's manifest.
    pub digest: Digest,
    /// Its settings.
    pub spec: Arc<ComponentSpec>,
    /// Its code: one part, or those of an application.
    pub parts: Box<[Part]>,
    /// The Spin application that the parts are of.
    pub app: Option<Box<App>>,
}

/// A WebAssembly component of a version.
#[derive(Debug)]
pub struct Part {
    /// Its digest.
    pub digest: Digest,
    /// Its native code.
    pub native: Arc<NativeCode>,
    /// What its application says of it.
    pub own: Option<Box<Own>>,
}

impl Version {
    /// What it is, in short.
    pub fn served(&self) -> message::Served {
        let parts = self.parts.iter().map(|part| part.digest).collect();
        message::Served { version: self.digest, parts, outbound: self.outbound() }
    }

    /// Where its guests may call out to, in words, as far as people are shown it.
    pub fn outbound(&self) -> Vec<String> {
        match &self.app {
            Some(app) => app.outbound().to_vec(),
            None => app::fit_to_be_shown(named(&self.spec.allowed_outbound_hosts).iter().map(ToString::to_string)),
        }
    }
}

/// A version as one endpoint serves it.
pub(super) struct Serving {
    pub(super) version: Arc<Version>,
    pub(super) admission: Admission,
    /// One for each of the version's parts.
    places: Box<[Place]>,
}

/// Where instances of one part live.
struct Place {
    surroundings: Surroundings,
    reuse: Option<Arc<Reuse>>,
}

/// The part that answers a request, with what its instances are given.
#[derive(Clone, Copy)]
pub(super) struct Answering<'a> {
    pub(super) part: &'a Part,
    pub(super) surroundings: &'a Surroundings,
    pub(super) reuse: Option<&'a Arc<Reuse>>,
}

/// The version that an endpoint serves now. It is made at the first request: what nobody calls has none.
#[derive(Default)]
pub(super) struct Served(Mutex<Option<Arc<Serving>>>);

impl Served {
    pub(super) fn of(&self, version: &Arc<Version>, endpoint: &Endpoint) -> Arc<Serving> {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*served {
            Some(serving) if Arc::ptr_eq(&serving.version, version) => Arc::clone(serving),
            _ => {
                let serving = Arc::new(Serving::new(Arc::clone(version), endpoint));
                *served = Some(Arc::clone(&serving));
                serving
            }
        }
    }
}

impl Serving {
    fn new(version: Arc<Version>, endpoint: &Endpoint) -> Self {
        let ComponentSpec { limits, instances, .. } = &*version.spec;
        let admission = Admission::new(limits.concurrency.get(), limits.queue.get());
        let place = |part: &Part| {
            let reuse = Reuse::new(instances.requests_each());
            Place { surroundings: surroundings(part, &version.spec, endpoint), reuse }
        };
        Self { admission, places: version.parts.iter().map(place).collect(), version }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.version.spec.limits
    }

    /// The part of this index.
    pub(super) fn answering(&self, part: usize) -> Option<Answering<'_>> {
        let Place { surroundings, reuse } = self.places.get(part)?;
        Some(Answering { part: self.version.parts.get(part)?, surroundings, reuse: reuse.as_ref() })
    }
}

fn surroundings(part: &Part, spec: &ComponentSpec, endpoint: &Endpoint) -> Surroundings {
    let origin = match &part.own {
        None => Arc::clone(&endpoint.origin),
        Some(own) => Arc::new(endpoint.origin.part(&own.id)),
    };
    let (caller, logs) = (Caller::new(Arc::clone(&origin)), Logs::new(endpoint.shared.lines.account(origin)));
    match &part.own {
        None => {
            let pairs = |variables: &[pillion_protocol::component::Variable]| {
                variables.iter().map(|v| (v.name.clone(), v.value.clone())).collect::<Vec<_>>()
            };
            Surroundings {
                env: pairs(&spec.env),
                config: Arc::new(Config::new(pairs(&spec.config))),
                outbound: Outbound::new(&named(&spec.allowed_outbound_hosts), caller),
                logs,
            }
        }
        Some(own) => {
            let settings = &own.settings;
            Surroundings {
                env: settings.env.clone(),
                config: Arc::new(Config::new(settings.config.clone())),
                outbound: Outbound::new(&settings.allowed_outbound_hosts, caller),
                logs,
            }
        }
    }
}
