//! Instances of p3 components that asked to serve several requests, one after another.
//!
//! An opt-in, `spec.instances.reuse`: what one request leaves in an instance's memory, the next one finds.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wasmtime::Store;
use wasmtime_wasi_http::p3::bindings::Service;

use super::{Guest, call::tick_with};
use crate::scheduler::run::Run;

/// The most instances that wait.
const WAITING: usize = 16;

/// How long an instance waits for its next request.
const IDLE: Duration = Duration::from_secs(1);

/// The instances of one binding that wait for their next request.
#[derive(Default)]
pub struct Reuse {
    requests_each: u32,
    /// The one that waited least is taken first: its pages are warm, and the others can go.
    waiting: Mutex<Vec<(Instant, Instance)>>,
}

/// A p3 instance with its store.
pub(super) struct Instance {
    pub(super) store: Store<Guest>,
    pub(super) service: Service,
    served: u32,
}

impl Instance {
    pub(super) fn new(store: Store<Guest>, service: Service) -> Self {
        Self { store, service, served: 0 }
    }

    pub(super) fn for_run(mut self, run: &Arc<Run>) -> Self {
        tick_with(&mut self.store, run);
        self.store.data_mut().memory.begin_anew();
        self
    }
}

impl Reuse {
    /// For instances that serve so many requests each; `None` if that is one.
    pub fn new(requests_each: u32) -> Option<Arc<Self>> {
        (requests_each > 1).then(|| Arc::new(Self { requests_each, waiting: Mutex::default() }))
    }

    pub(super) fn take(&self) -> Option<Instance> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop().map(|(_, instance)| instance)
    }

    /// Keeps an instance for the next request, for at most [`IDLE`]. One that has served its share is dropped, and one that leaks: a later
    /// request would run out of what it has leaked.
    pub(super) fn park(self: Arc<Self>, mut instance: Instance) {
        instance.served += 1;
        if instance.served >= self.requests_each || instance.store.data_mut().leaks() {
            return;
        }
        let until = Instant::now() + IDLE;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING {
            drop(waiting);
            return drop(instance);
        }
        waiting.push((until, instance));
        drop(waiting);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let over: Vec<_> = waiting.extract_if(.., |(until, _)| *until <= now).collect();
            // Freeing an instance takes a while: not under the lock.
            drop(waiting);
            drop(over);
        });
    }
}
