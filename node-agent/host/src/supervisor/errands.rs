//! What the worker asks for and may not do itself: compilations and pulls. Each is a child's, on a thread that waits for it.

use std::{collections::hash_map::Entry, os::fd::OwnedFd, sync::Arc, thread};

use pillion_protocol::{component::Image, reference::Reference};

use super::{
    Input, Supervisor, child,
    message::{ToWorker, Wish},
};
use crate::registry::message::{Failure, Pulled, Request, Step, Word};

impl Supervisor {
    pub(super) fn compile(&self, id: u64, descriptors: Vec<OwnedFd>) {
        let (inputs, generation) = (self.inputs(), self.generation);
        let compile = move || {
            let result = child::compile(descriptors);
            _ = inputs.send(Input::Compiled(generation, id, result));
        };
        if let Err(error) = thread::Builder::new().name("compile".into()).spawn(compile) {
            let reason = format!("a thread for the compiler cannot be started: {error}");
            _ = self.inputs.0.send(Input::Compiled(self.generation, id, Err(reason)));
        }
    }

    /// Pulls an artifact, unless that is being done. The worker never learns who we are at a registry, and has nothing pulled that no
    /// component names.
    pub(super) fn pull(&mut self, id: u64, wish: Wish, full: Option<String>) {
        let Wish { reference, namespace } = wish.clone();
        let is_it = |image: &Image| matches!(image, Image::Reference(named) if *named == reference);
        if !self.desired.components.values().any(|component| is_it(&component.spec.image)) {
            let result = Err(failed(&reference, "no component names it any more"));
            return self.tell(&ToWorker::Pulled { id, result });
        }
        match self.pulls.entry(wish.clone()) {
            Entry::Occupied(mut waiting) => return waiting.get_mut().push(id),
            Entry::Vacant(nobody) => _ = nobody.insert(vec![id]),
        }
        let (inputs, asked, pulled) = (self.inputs(), reference.clone(), wish.clone());
        let (registries, credentials) = (self.desired.registries.clone(), Arc::clone(&self.credentials));
        let store = self.desired.settings.store.clone();
        let control = self.desired.control.as_ref();
        let logins = control.map(|control| control.logins(&reference, namespace.as_ref())).unwrap_or_default();
        let pull = move || {
            let request = registries.request(asked.clone(), store, &credentials, &logins);
            let result = request.and_then(|request| {
                child::pull(&Request { impatient: true, full, proof: namespace, ..request }, warn(&asked))
            });
            _ = inputs.send(Input::Pulled(pulled, Box::new(result)));
        };
        if let Err(error) = thread::Builder::new().name("pull".into()).spawn(pull) {
            let failure = failed(&reference, format!("a thread for the pull cannot be started: {error}"));
            _ = self.inputs.0.send(Input::Pulled(wish, Box::new(Err(failure))));
        }
    }

    /// Tells the worker what became of a pull. A worker that came meanwhile has asked anew.
    pub(super) fn pulled(&mut self, wish: &Wish, result: Result<Pulled, Failure>) {
        for id in self.pulls.remove(wish).unwrap_or_default() {
            self.tell(&ToWorker::Pulled { id, result: result.clone() });
        }
    }
}

fn warn(image: &Reference) -> impl FnMut(&Word) {
    move |word| {
        if let Word::Warning(warning) = word {
            tracing::warn!(%image, warning, "a pull goes another way");
        }
    }
}

fn failed(reference: &Reference, problem: impl ToString) -> Failure {
    let (image, registry) = (reference.to_string(), reference.registry().to_owned());
    Failure { image, registry, step: Step::Pull, problem: problem.to_string(), passes: true }
}
