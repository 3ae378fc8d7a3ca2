//! Having an artifact pulled, and what it is good for when that fails: a registry that is away does not end what was served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pillion_protocol::{digest::Digest, id::ComponentId, quantity::ByteSize, reference::Reference};

use super::prepare::{Failure, Preparer, locked};
use crate::{
    registry::message::Pulled,
    store::Held,
    supervisor::message::{Event, FromWorker, Reason, Wish},
};

/// A registry that could not be asked is left alone for so long by those that have something to serve.
const AWAY: Duration = Duration::from_secs(30);

/// What became of a pull.
pub(super) enum PullEnd {
    /// This version is in the store.
    Here(Digest),
    /// Nothing new is; what the tag led to before may be.
    Failed(Failure, Option<Digest>),
}

impl Preparer {
    /// What the tag led to, while its registry cannot be asked.
    pub(super) fn known_while_away(&self, reference: &Reference) -> Option<Digest> {
        let since = locked(&self.away).get(reference.registry()).copied()?;
        if since.elapsed() > AWAY {
            return None;
        }
        self.library.tag(reference)
    }

    /// Has an artifact pulled, for a component among others.
    pub(super) async fn pull(self: Arc<Self>, wish: Wish, component: ComponentId) -> PullEnd {
        let reference = wish.reference.clone();
        // Since it was queued, its registry may have turned out to be away.
        if let Some(known) = self.known_while_away(&reference) {
            return PullEnd::Here(known);
        }
        let (id, receiver) = self.ask(&self.pulls);
        self.report(Event::Pulling { component: component.clone(), image: reference.clone() });
        self.send(&FromWorker::Pull { id, wish, full: self.full() }, &[]);
        let Ok(answer) = receiver.await else {
            return PullEnd::Failed(Failure::new(Reason::Image, "the supervisor is gone"), None);
        };
        match answer {
            Ok(pulled) => {
                locked(&self.away).remove(reference.registry());
                self.report(pulled_event(component, reference, &pulled, false));
                PullEnd::Here(pulled.digest)
            }
            Err(failure) => {
                let known = self.library.tag(&reference).filter(|version| self.library.image(*version).is_some());
                let message = Failure::new(Reason::Image, &failure);
                match known {
                    Some(known) if failure.passes => {
                        locked(&self.away).insert(reference.registry().to_owned(), Instant::now());
                        tracing::warn!(%component, %known, "{failure}; what the tag led to before is served");
                        self.report(pulled_event(component, reference, &Pulled::here(known), true));
                        PullEnd::Here(known)
                    }
                    known => PullEnd::Failed(message, known),
                }
            }
        }
    }

    /// Why nothing may be added to the store, if that is so.
    fn full(&self) -> Option<String> {
        let Held { bytes, .. } = *locked(&self.held);
        let [held, quota] = [bytes, self.quota].map(ByteSize::bytes);
        (bytes > self.quota)
            .then(|| format!("the store is full: all of its {held} are in use, its quota is {quota} (--store-quota)"))
    }
}

fn pulled_event(component: ComponentId, image: Reference, pulled: &Pulled, stale: bool) -> Event {
    Event::Pulled {
        component,
        image,
        digest: pulled.digest,
        bytes: pulled.bytes,
        stale,
        resolve_seconds: pulled.resolve.as_secs_f64(),
        pull_seconds: pulled.pull.as_secs_f64(),
        verify_seconds: pulled.verify.as_secs_f64(),
    }
}
