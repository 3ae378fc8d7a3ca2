//! What an endpoint serves: a version of its component, with the endpoint's own places and logs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pillion_protocol::{
    component::{ComponentSpec, Limits},
    digest::Digest,
};
use wasmtime_wasi_config::WasiConfigVariables;

use super::Endpoint;
use crate::{
    guest::{Surroundings, logs::Logs, reuse::Reuse},
    outbound::Outbound,
    scheduler::admission::Admission,
    store::NativeCode,
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
    /// The component's digest.
    pub digest: Digest,
    /// Its native code.
    pub native: Arc<NativeCode>,
    /// Its settings.
    pub spec: Arc<ComponentSpec>,
}

/// A version as one endpoint serves it.
pub(super) struct Serving {
    pub(super) version: Arc<Version>,
    pub(super) surroundings: Surroundings,
    pub(super) admission: Admission,
    pub(super) reuse: Option<Arc<Reuse>>,
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
        let ComponentSpec { env, config, limits, allowed_outbound_hosts, instances, .. } = &*version.spec;
        let pairs = |variables: &[pillion_protocol::component::Variable]| {
            variables.iter().map(|v| (v.name.clone(), v.value.clone())).collect::<Vec<_>>()
        };
        let surroundings = Surroundings {
            env: pairs(env),
            config: Arc::new(WasiConfigVariables::from_iter(pairs(config))),
            outbound: Outbound::new(allowed_outbound_hosts),
            logs: Logs::new(endpoint.component.as_str(), endpoint.binding.as_str(), endpoint.pod.as_ref()),
        };
        let admission = Admission::new(limits.concurrency.get(), limits.queue.get());
        let reuse = Reuse::new(instances.requests_each());
        Self { surroundings, admission, reuse, version }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.version.spec.limits
    }
}
