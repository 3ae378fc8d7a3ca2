//! What the worker knows: components, their states, the bindings of each. Decides, and does no IO.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use pillion_protocol::{
    annotation::Port,
    component::{ComponentSpec, Image, Limits},
    digest::Digest,
    id::ComponentId,
    pod::PodUid,
};
use tokio::sync::watch;

use super::{
    prepare::{Failure, Outcome, Preparation, Prepared},
    retry::Retry,
};
use crate::{
    endpoint::{Broken, State, Version},
    supervisor::message::{Binding, Event, Reason},
};

/// Components and bindings.
#[derive(Default)]
pub(super) struct States {
    components: HashMap<ComponentId, Known>,
    /// Preparations so far; never counted anew, since one of a component that was removed may still be on its way.
    preparations: u64,
    /// Everything that is wanted was told: a component that is not known now is known not to be.
    complete: bool,
}

struct Known {
    state: watch::Sender<State>,
    bindings: Vec<Binding>,
    /// What is wanted; `None` for a component that was only bound so far.
    wanted: Option<Wanted>,
    /// The native code of what is served was compiled for this worker.
    made_here: bool,
    /// Its artifact could not be pulled, and when that is tried again.
    retry: Option<Retry>,
    /// Why the last preparation came to nothing, and of which version of an artifact that is true for good.
    refused: Option<(Option<Digest>, Failure)>,
}

struct Wanted {
    spec: Arc<ComponentSpec>,
    generation: u64,
    /// What became of it is known.
    decided: bool,
}

impl Known {
    fn new(state: State) -> Self {
        Self {
            state: watch::Sender::new(state),
            bindings: Vec::new(),
            wanted: None,
            made_here: false,
            retry: None,
            refused: None,
        }
    }

    fn fail_unknown(&self, id: &ComponentId) -> Vec<Event> {
        let failure = Failure { reason: Reason::Unknown, message: unknown(id) };
        self.state.send_replace(State::Failed(failure.message.as_str().into()));
        self.bindings.iter().map(|binding| failed(binding, &failure, None)).collect()
    }
}

impl States {
    /// A component is wanted like this. Even if its settings are the same, its file may have changed.
    pub(super) fn want(&mut self, id: ComponentId, spec: Arc<ComponentSpec>) -> Preparation {
        let preparing = State::Preparing(spec.limits.head_timeout.get().get());
        let known = self.components.entry(id.clone()).or_insert_with(|| Known::new(preparing.clone()));
        self.preparations += 1;
        let generation = self.preparations;
        if known.wanted.is_none() {
            known.state.send_replace(preparing);
        }
        if known.wanted.as_ref().is_none_or(|wanted| wanted.spec != spec) {
            known.refused = None;
        }
        known.wanted = Some(Wanted { spec: Arc::clone(&spec), generation, decided: false });
        Preparation {
            id,
            spec,
            generation,
            began: Instant::now(),
            anew: false,
            version: None,
            compiled: false,
            pulled: false,
        }
    }

    /// A component's native code cannot be loaded: it has to be made anew, unless that is being done. If the engine refuses what
    /// was made for this very worker, that would not help, and the component cannot be served.
    pub(super) fn broken(&mut self, broken: &Broken) -> Option<Preparation> {
        let Broken { component, why, refused } = broken;
        let known = self.components.get_mut(component)?;
        let wanted = known.wanted.as_ref().filter(|wanted| wanted.decided)?;
        let version = match &*known.state.borrow() {
            State::Ready(version) if version.spec.image == wanted.spec.image => Some(version.digest),
            _ => None,
        };
        if known.made_here && *refused {
            known.state.send_replace(State::Failed(why.as_str().into()));
            return None;
        }
        let spec = Arc::clone(&wanted.spec);
        Some(Preparation { anew: true, version, ..self.want(component.clone(), spec) })
    }

    /// Components whose tags may lead elsewhere by now, unless one of their preparations is on its way.
    pub(super) fn refresh(&mut self) -> Vec<Preparation> {
        let has_tag =
            |spec: &ComponentSpec| matches!(&spec.image, Image::Reference(reference) if reference.digest().is_none());
        let due = |(id, known): (&ComponentId, &Known)| {
            let wanted = known.wanted.as_ref().filter(|wanted| wanted.decided && has_tag(&wanted.spec))?;
            Some((id.clone(), Arc::clone(&wanted.spec)))
        };
        let due: Vec<_> = self.components.iter().filter_map(due).collect();
        due.into_iter().map(|(id, spec)| self.want(id, spec)).collect()
    }

    /// Whether an artifact is to be pulled again some time.
    pub(super) fn has_retries(&self) -> bool {
        self.components.values().any(|known| known.retry.is_some())
    }

    /// Components whose artifacts are to be pulled again now.
    pub(super) fn retries(&mut self, now: Instant) -> Vec<Preparation> {
        let due = |(id, known): (&ComponentId, &Known)| {
            let wanted = known.wanted.as_ref().filter(|wanted| wanted.decided)?;
            known.retry.filter(|retry| retry.at <= now).map(|_| (id.clone(), Arc::clone(&wanted.spec)))
        };
        let due: Vec<_> = self.components.iter().filter_map(due).collect();
        due.into_iter().map(|(id, spec)| self.want(id, spec)).collect()
    }

    /// Whether a version of the component is served.
    pub(super) fn is_served(&self, id: &ComponentId) -> bool {
        self.components.get(id).is_some_and(|known| matches!(*known.state.borrow(), State::Ready(_)))
    }

    /// Why this very version was refused before, by what cannot change.
    pub(super) fn refusal(&self, preparation: &Preparation) -> Option<Failure> {
        let known = self.components.get(&preparation.id)?;
        let (version, failure) = known.refused.as_ref()?;
        let same = known.wanted.as_ref().is_some_and(|wanted| wanted.spec == preparation.spec);
        (version.is_some() && *version == preparation.version && same).then(|| failure.clone())
    }

    /// What is served: the digests of artifacts, of components and of their native code.
    pub(super) fn bound(&self) -> HashSet<Digest> {
        let mut bound = HashSet::new();
        for known in self.components.values() {
            if let State::Ready(version) = &*known.state.borrow() {
                bound.insert(version.digest);
                bound.extend(version.parts.iter().flat_map(|part| [part.digest, part.native.digest()]));
            }
        }
        bound
    }

    /// A binding; gives where its component's state is told. Requests are held until the component is known, or known not to be.
    pub(super) fn bind(&mut self, binding: Binding) -> watch::Receiver<State> {
        let hold = State::Preparing(Limits::default().head_timeout.get().get());
        let known = self.components.entry(binding.component.clone()).or_insert_with(|| Known::new(hold));
        if self.complete && known.wanted.is_none() {
            known.state.send_replace(State::Failed(unknown(&binding.component).into()));
        }
        known.bindings.push(binding);
        known.state.subscribe()
    }

    /// A pod's binding is no more. Names that somebody made up are forgotten with it.
    pub(super) fn unbind(&mut self, pod: &PodUid, port: Port) {
        let is_it = |binding: &Binding| binding.port == port && binding.pod.as_ref().is_some_and(|of| of.uid == *pod);
        self.components.retain(|_, known| {
            known.bindings.retain(|binding| !is_it(binding));
            known.wanted.is_some() || !known.bindings.is_empty()
        });
    }

    /// A component is no more. Requests in flight finish on what they began with.
    pub(super) fn gone(&mut self, id: &ComponentId) -> Vec<Event> {
        let Some(known) = self.components.get_mut(id) else { return Vec::new() };
        known.wanted = None;
        known.fail_unknown(id)
    }

    /// Everything that is wanted was told: what is bound and not wanted is unknown.
    pub(super) fn complete(&mut self) -> Vec<Event> {
        self.complete = true;
        let unknown = self.components.iter().filter(|(_, known)| known.wanted.is_none());
        unknown.flat_map(|(id, known)| known.fail_unknown(id)).collect()
    }

    /// Takes in what became of a preparation; gives what people want to know of it, or `None` if it does not count any more.
    pub(super) fn decide(&mut self, prepared: Prepared) -> Option<Vec<Event>> {
        let Prepared { preparation, result } = prepared;
        let known = self.components.get_mut(&preparation.id)?;
        match &mut known.wanted {
            Some(wanted) if wanted.generation == preparation.generation => wanted.decided = true,
            // A newer one is on its way.
            _ => return None,
        }
        let of_registry = matches!(preparation.spec.image, Image::Reference(_));
        known.retry = match &result {
            Err(Failure { reason: Reason::Image, .. }) if of_registry => {
                Some(Retry::after(known.retry, Instant::now()))
            }
            _ => None,
        };
        let before = known.refused.take();
        if let Err(failure) = &result {
            let lasting = preparation.version.filter(|_| of_registry && failure.reason != Reason::Image);
            known.refused = Some((lasting, failure.clone()));
            // A registry is asked by itself: what was told before, and is not otherwise, nobody has to hear again.
            if of_registry && before.is_some_and(|(_, before)| before == *failure) {
                return Some(Vec::new());
            }
        }
        let now = known.state.borrow().clone();
        if let (State::Ready(now), Ok(Outcome { version, compiled: false })) = (&now, &result)
            && now.digest == version.digest
            && now.spec == version.spec
        {
            return Some(Vec::new());
        }
        let former = match &now {
            State::Ready(now) => Some(&**now),
            State::Preparing(_) | State::Failed(_) => None,
        };
        let events = known.bindings.iter().map(|binding| event(binding, &preparation, &result, former)).collect();
        match (now, result) {
            (_, Ok(outcome)) => {
                known.made_here = outcome.compiled;
                known.state.send_replace(State::Ready(outcome.version));
            }
            // What serves goes on serving: a broken new version does not take the old one's place.
            (State::Ready(_), Err(_)) => {}
            (_, Err(failure)) => _ = known.state.send_replace(State::Failed(failure.message.into())),
        }
        Some(events)
    }

    /// The numbers of bindings that are ready and that failed, if none is being prepared.
    pub(super) fn all_decided(&self) -> Option<(usize, usize)> {
        let (mut ready, mut failed) = (0, 0);
        for known in self.components.values() {
            match &*known.state.borrow() {
                State::Preparing(_) => return None,
                State::Ready(_) => ready += known.bindings.len(),
                State::Failed(_) => failed += known.bindings.len(),
            }
        }
        Some((ready, failed))
    }
}

fn unknown(component: &ComponentId) -> String {
    format!("there is no component {component:?}")
}

fn event(
    binding: &Binding,
    preparation: &Preparation,
    result: &Result<Outcome, Failure>,
    former: Option<&Version>,
) -> Event {
    let Binding { name, component, port, pod, .. } = binding.clone();
    match result {
        Ok(Outcome { version, compiled }) => Event::Ready {
            component,
            binding: name,
            pod,
            port,
            urls: vec![format!("http://localhost:{port}")],
            digest: version.digest,
            replaces: former
                .filter(|former| former.digest != version.digest || former.spec != version.spec)
                .map(|former| former.digest),
            compiled: *compiled,
            seconds: preparation.began.elapsed().as_secs_f64(),
            allowed_outbound_hosts: version.outbound(),
        },
        Err(failure) => failed(binding, failure, former.map(|former| former.digest)),
    }
}

fn failed(binding: &Binding, failure: &Failure, serves: Option<Digest>) -> Event {
    let Binding { name, component, port, pod, .. } = binding.clone();
    let (reason, message) = (failure.reason, failure.message.clone());
    Event::Failed { component, binding: name, pod, port, reason, message, serves }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn binding(component: &str, port: u16) -> Binding {
        let name: pillion_protocol::name::Name = component.parse().unwrap();
        Binding {
            name: name.clone(),
            component: name.into(),
            port: port.try_into().unwrap(),
            pod: None,
            verdict: Default::default(),
        }
    }

    fn spec() -> Arc<ComponentSpec> {
        Arc::new(ComponentSpec::new(pillion_protocol::component::Image::Path("/x.wasm".into())))
    }

    fn unprepared(preparation: &Preparation, message: &str) -> Prepared {
        let result = Err(Failure { reason: Reason::Component, message: message.into() });
        Prepared { preparation: preparation.clone(), result }
    }

    #[test]
    fn a_binding_waits_for_its_component_until_there_is_none() {
        let mut states = States::default();
        let [state, unknown] = ["a", "b"].map(|name| states.bind(binding(name, 8080)));
        let first = states.want("a".parse().unwrap(), spec());
        assert!(matches!(&*state.borrow(), State::Preparing(_)));
        assert!(matches!(&*unknown.borrow(), State::Preparing(_)));
        assert_eq!(states.all_decided(), None);
        let events = states.complete();
        assert!(
            matches!(&events[..], [Event::Failed { reason: Reason::Unknown, message, .. }] if message.contains("\"b\""))
        );
        assert!(matches!(&*unknown.borrow(), State::Failed(_)));
        let events = states.decide(unprepared(&first, "broken")).unwrap();
        assert!(matches!(&events[..], [Event::Failed { message, .. }] if message == "broken"));
        assert!(matches!(&*state.borrow(), State::Failed(why) if &**why == "broken"));
        assert_eq!(states.all_decided(), Some((0, 2)));
    }

    #[test]
    fn broken_native_code_is_made_anew_unless_its_own_engine_refuses_it() {
        let mut states = States::default();
        let name: ComponentId = "a".parse().unwrap();
        let broken = |refused| Broken { component: "a".parse().unwrap(), why: "corrupt".into(), refused };
        let first = states.want(name, spec());
        assert!(states.broken(&broken(false)).is_none(), "it is being made");
        states.decide(unprepared(&first, "x"));
        let again = states.broken(&broken(false)).unwrap();
        assert!(again.anew);
        states.decide(unprepared(&again, "x"));
        states.components.values_mut().for_each(|known| known.made_here = true);
        let again = states.broken(&broken(false)).unwrap();
        assert!(again.anew, "a file that was damaged since is made again");
        states.decide(unprepared(&again, "x"));
        assert!(states.broken(&broken(true)).is_none(), "an engine that refuses it would do so again");
    }

    #[test]
    fn an_artifact_that_cannot_be_pulled_is_tried_again_ever_more_rarely() {
        let mut states = States::default();
        let image = Image::Reference("r.example/a:1".parse().unwrap());
        let mut next = states.want("a".parse().unwrap(), Arc::new(ComponentSpec::new(image)));
        let begin = Instant::now();
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            let result = Err(Failure { reason: Reason::Image, message: "away".into() });
            states.decide(Prepared { preparation: next, result });
            assert!(states.has_retries() && states.retries(begin + Duration::from_secs(seconds - 1)).is_empty());
            next = states.retries(Instant::now() + Duration::from_secs(seconds)).pop().unwrap();
            assert!(states.retries(Instant::now() + Duration::from_secs(seconds)).is_empty(), "it is on its way");
        }
        states.decide(unprepared(&next, "it was pulled, and cannot be served"));
        assert!(!states.has_retries());
    }

    #[test]
    fn what_was_on_its_way_for_a_component_that_was_removed_does_not_count_for_the_next_of_its_name() {
        let mut states = States::default();
        let name: ComponentId = "a".parse().unwrap();
        let old = states.want(name.clone(), spec());
        states.gone(&name);
        let new = states.want(name, spec());
        assert!(states.decide(unprepared(&old, "old")).is_none());
        assert!(states.decide(unprepared(&new, "new")).is_some());
    }

    #[test]
    fn only_the_newest_preparation_counts() {
        let mut states = States::default();
        let state = states.bind(binding("a", 8080));
        let first = states.want("a".parse().unwrap(), spec());
        let second = states.want("a".parse().unwrap(), spec());
        assert!(states.decide(unprepared(&first, "old")).is_none());
        assert!(matches!(&*state.borrow(), State::Preparing(_)));
        assert_eq!(states.decide(unprepared(&second, "new")).map(|events| events.len()), Some(1));
    }
}
