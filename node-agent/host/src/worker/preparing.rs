//! The way of a component from being wanted to being decided: looked up, pulled and compiled where that is needed. What takes long never
//! holds up what does not.

use std::sync::Arc;

use super::{
    Worker,
    prepare::{Failure, Preparation, Prepared},
    pull::PullEnd,
};
use crate::{
    scheduler::cores,
    supervisor::message::{FromWorker, Wish},
};

/// Artifacts that are pulled at once.
pub(super) const PULLS: usize = 8;

/// Whether an artifact may be pulled beside these: a registry has at most half of the places that others leave, so that one that hangs
/// holds up nobody who asks another.
fn may_pull(wish: &Wish, begun: &[Wish]) -> bool {
    let registry = wish.reference.registry();
    let own = begun.iter().filter(|begun| begun.reference.registry() == registry).count();
    let free = PULLS.saturating_sub(begun.len() - own);
    own < free.div_ceil(2)
}

impl Worker {
    pub(super) fn start_preparations(&mut self) {
        while self.looking_up.len() < cores()
            && let Some(preparation) = self.to_look_up.pop_front()
        {
            self.looking_up.spawn(Arc::clone(&self.preparer).look_up(preparation));
        }
        while let Some((wish, first)) = self.to_pull.begin(may_pull) {
            let (preparer, component) = (Arc::clone(&self.preparer), first.id.clone());
            self.pulling.spawn(async move {
                let pulled = preparer.pull(wish.clone(), component).await;
                (wish, pulled)
            });
        }
        while let Some((artifact, first)) = self.to_compile.begin(|_, _| true) {
            let (preparer, component) = (Arc::clone(&self.preparer), first.id.clone());
            let shared = Arc::clone(&self.shared);
            self.compiling.spawn(async move {
                let mut compiled = Arc::clone(&preparer).compile(artifact.clone(), component).await;
                if compiled.is_ok() {
                    compiled = preparer.load_first(&artifact, &shared.cache).await;
                }
                (artifact, compiled)
            });
        }
    }

    /// The artifact that a preparation has waited for is there, or not.
    pub(super) fn pulled(&mut self, mut preparation: Preparation, end: &PullEnd) {
        self.grown = true;
        preparation.pulled = true;
        match end {
            PullEnd::Here(version) => preparation.version = Some(*version),
            // What the tag led to before is better than nothing, but not better than what is served.
            PullEnd::Failed(failure, Some(known))
                if !self.states.is_served(&preparation.id) && self.preparer.may_serve(&preparation, *known) =>
            {
                tracing::warn!(component = %preparation.id, %known, "{}; what the tag led to before is served", failure.message);
                preparation.version = Some(*known);
            }
            PullEnd::Failed(failure, _) => return self.fail(preparation, failure.clone()),
        }
        match self.states.refusal(&preparation) {
            Some(failure) => self.fail(preparation, failure),
            None => self.to_look_up.push_back(preparation),
        }
    }

    /// The code that a preparation has waited for is made, or not.
    pub(super) fn compiled(&mut self, mut preparation: Preparation, result: &Result<(), Failure>) {
        self.grown = true;
        preparation.compiled = true;
        match result {
            Ok(()) => self.to_look_up.push_back(preparation),
            Err(failure) => self.fail(preparation, failure.clone()),
        }
    }

    fn fail(&mut self, preparation: Preparation, failure: Failure) {
        let result = Err(failure.of(&preparation.spec.image));
        self.prepared(Prepared { preparation, result });
    }

    /// Keeps the store within its quota.
    pub(super) async fn make_room(&mut self) {
        let mut bound = self.states.bound();
        bound.extend(self.to_compile.keys().map(|artifact| artifact.digest));
        bound.extend(self.to_compile.waiting().filter_map(|waiting| waiting.version));
        self.room_due = false;
        self.grown = !Arc::clone(&self.preparer).make_room(bound).await;
    }

    pub(super) fn prepared(&mut self, prepared: Prepared) {
        let Prepared { preparation, result } = &prepared;
        if let Err(failure) = result
            && !self.states.is_served(&preparation.id)
            && let Some(known) = self.preparer.before(preparation)
        {
            tracing::warn!(component = %preparation.id, %known, "{}; what the tag led to before is served", failure.message);
            let again = Preparation { version: Some(known), compiled: false, ..prepared.preparation };
            return self.to_look_up.push_back(again);
        }
        let component = prepared.preparation.id.clone();
        let result = match &prepared.result {
            Ok(outcome) => Ok(outcome.version.served()),
            Err(failure) => Err(failure.message.clone()),
        };
        let Some(events) = self.states.decide(prepared) else { return };
        self.preparer.send(&FromWorker::Decided { component, result }, &[]);
        for event in events {
            self.preparer.report(event);
        }
    }
}
