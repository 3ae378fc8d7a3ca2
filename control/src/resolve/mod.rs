//! What components' tags lead to. It is found out once for the cluster, by the replica that leads, before any node hears of the component:
//! so all nodes serve the same, and what no node can serve none pulls.
//!
//! Registries are asked by a child process, the resolver of the program `pillion`: it parses what strangers say, confined, and control does
//! not. What an image was found to be is kept in the component's status, so that the next replica that leads asks nobody again.

mod images;
mod resolver;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use pillion_protocol::{
    id::ComponentId,
    name::Name,
    resolution::{Question, Resolution},
};
use tokio::sync::{Semaphore, mpsc};

pub use self::{
    images::{Image, Images},
    resolver::Resolver,
};
use crate::control::Control;

/// So many registries are asked at once.
const ASKED: usize = 6;

/// So many for components of one namespace, so that one whose registries do not answer leaves room for others.
const OF_NAMESPACE: usize = 2;

/// How long to wait before one is asked again that could not say: ever longer, up to this.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// Asks while this replica leads, for as long as the process lives.
pub async fn follow(control: Arc<Control>) {
    loop {
        control.until_leading(true).await;
        let (sender, mut answers) = mpsc::unbounded_channel();
        let mut asking = Asking::new(Arc::clone(&control), sender);
        control.ask_registries_for_all();
        loop {
            tokio::select! {
                ids = control.unresolved() => ids.into_iter().for_each(|id| asking.ask(id)),
                Some((question, resolution)) = answers.recv() => asking.hear(&question, &resolution),
                () = control.until_leading(false) => break,
            }
        }
    }
}

/// How long to wait after so many failures, one or more. `jitter` is from 0 to 1: those that failed together do not come back together.
fn pause(failures: u32, jitter: f64) -> Duration {
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST).mul_f64(0.5 + jitter / 2.0)
}

/// Questions that are being asked. Several components may have the same.
struct Asking {
    control: Arc<Control>,
    of: HashMap<Question, BTreeSet<ComponentId>>,
    all: Arc<Semaphore>,
    of_namespaces: HashMap<Option<Name>, Arc<Semaphore>>,
    answers: mpsc::UnboundedSender<(Question, Resolution)>,
}

impl Asking {
    fn new(control: Arc<Control>, answers: mpsc::UnboundedSender<(Question, Resolution)>) -> Self {
        let all = Arc::new(Semaphore::new(ASKED));
        Self { control, of: HashMap::new(), all, of_namespaces: HashMap::new(), answers }
    }

    fn ask(&mut self, id: ComponentId) {
        let Some(question) = self.control.images().question(&id) else { return };
        let namespace = id.namespace.clone();
        let of = self.of.entry(question.clone()).or_default();
        of.insert(id);
        if of.len() > 1 {
            return;
        }
        let of_namespace =
            self.of_namespaces.entry(namespace).or_insert_with(|| Arc::new(Semaphore::new(OF_NAMESPACE)));
        let (of_namespace, all) = (Arc::clone(of_namespace), Arc::clone(&self.all));
        let (control, answers) = (Arc::clone(&self.control), self.answers.clone());
        tokio::spawn(async move {
            // Neither is ever closed. Nobody hears once this replica leads no more.
            let (Ok(_one), Ok(_place)) = (of_namespace.acquire().await, all.acquire().await) else { return };
            if !answers.is_closed() {
                let resolution = resolver::ask(&control.settings.resolver, &question).await;
                // As above.
                _ = answers.send((question, resolution));
            }
        });
    }

    fn hear(&mut self, question: &Question, resolution: &Resolution) {
        let (mut open, mut failures) = (Vec::new(), 0);
        for id in self.of.remove(question).unwrap_or_default() {
            if let Some(of_this) = self.control.resolve(&id, question, resolution.clone()) {
                failures = failures.max(of_this);
                open.push(id);
            }
        }
        let (Resolution::Refused(why) | Resolution::Unread(why)) = resolution else { return };
        if open.is_empty() {
            return;
        }
        tracing::warn!(image = %question.image, components = ?open, why, "an image is not resolved; its registry is asked again");
        let (pause, control) = (pause(failures, fastrand::f64()), Arc::clone(&self.control));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            control.ask_registries_for(open);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_asked_ever_more_seldom() {
        let seconds = [1, 2, 3, 11, 1_000].map(|failures| pause(failures, 1.0).as_secs());
        assert_eq!(seconds, [5, 10, 20, 300, 300]);
        assert_eq!(pause(2, 0.0).as_secs(), 5, "half of it is by chance");
    }
}
