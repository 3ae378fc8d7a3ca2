//! What control tells this node, through the follower: what the worker and the keeper hear of it, and what control hears back.
//!
//! It is kept, so that a host which starts while control is away serves as it did.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    process::Child,
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use pillion_protocol::{
    id::ComponentId,
    keeper::FromHost,
    login::Login,
    name::Name,
    pod::{Pod, PodUid},
    reference::Reference,
    stream::{ComponentReport, PodReport, Report, ToNode, WantedPod},
    text,
};

use super::{BindingKey, Input, Supervisor, child, message::ToWorker, report};
use crate::{
    catalog::{
        kept::Kept,
        told::{Change, Told, Verdict},
    },
    follower::message::{Settings, Start, Word},
};

/// How long changes are gathered before they are written and reported.
const GATHER: Duration = Duration::from_millis(100);

/// A follower that ends is started again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// The side of the supervisor that control is on.
pub struct Control {
    settings: Settings,
    kept: Kept,
    told: Told,
    follower: Option<Sender<Report>>,
    /// What of pods that have gone no keeper has heard.
    unheard: Vec<FromHost>,
    /// Why pods have not what they should, as the keeper has said.
    failed: BTreeMap<PodUid, String>,
    /// When what has changed is written and reported.
    due: Option<Instant>,
    /// What was told is kept.
    is_written: bool,
    /// What the last report had no room for.
    left_out: Option<String>,
}

impl Control {
    /// What was known when this host ended, or nothing.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn open(settings: Settings, kept: Kept) -> anyhow::Result<Self> {
        let mut told = kept.read()?;
        told.doubt();
        let (unheard, failed) = (Vec::new(), BTreeMap::new());
        Ok(Self { settings, kept, told, follower: None, unheard, failed, due: None, is_written: true, left_out: None })
    }

    /// The components that it has told.
    pub fn components(&self) -> impl Iterator<Item = (&ComponentId, &pillion_protocol::component::ComponentSpec)> {
        self.told.components().map(|(id, _, spec)| (id, spec))
    }

    /// Something that is to be written or reported has changed.
    fn soon(&mut self) {
        self.due.get_or_insert(Instant::now() + GATHER);
    }

    /// Who we may be at the registry of an artifact, as control says.
    pub fn logins(&self, reference: &Reference, namespace: Option<&Name>) -> Vec<Option<Login>> {
        self.told.logins(reference, namespace)
    }

    /// See [`Told::is_unproven`].
    pub fn is_unproven(&self, id: &ComponentId) -> bool {
        self.told.is_unproven(id)
    }
}

impl Supervisor {
    /// Starts the follower, if this host follows control. One that cannot be started is started later: what is served goes on.
    pub(super) fn start_follower(&mut self) {
        if let Err(error) = self.try_to_start_follower() {
            tracing::error!(error = format!("{error:#}"), "control cannot be followed now; it is tried again");
            let inputs = self.inputs();
            let again = move || {
                thread::sleep(AGAIN);
                _ = inputs.send(Input::FollowerGone);
            };
            if thread::Builder::new().name("again".into()).spawn(again).is_err() {
                tracing::error!("nor can a thread be started that would try again: control is not followed any more");
            }
        }
    }

    fn try_to_start_follower(&mut self) -> anyhow::Result<()> {
        let inputs = self.inputs();
        let Some(control) = &mut self.desired.control else { return Ok(()) };
        let start = Start { settings: control.settings.clone(), known: control.told.known() };
        let mut child = child::follower().context("the follower cannot be started")?;
        let (reports, to_bring) = channel::<Report>();
        let mut stdin = child.stdin.take().context("the follower has no standard input")?;
        let mut begin = serde_json::to_vec(&start)?;
        begin.push(b'\n');
        thread::Builder::new().name("to-follower".into()).spawn(move || {
            let mut tell = |text: &[u8]| stdin.write_all(text).and_then(|()| stdin.flush());
            let mut told = tell(&begin);
            while let (Ok(()), Ok(report)) = (&told, to_bring.recv()) {
                // Only the latest counts.
                let report = to_bring.try_iter().last().unwrap_or(report);
                told = serde_json::to_vec(&report).map_err(io::Error::from).and_then(|mut text| {
                    text.push(b'\n');
                    tell(&text)
                });
            }
        })?;
        thread::Builder::new().name("from-follower".into()).spawn(move || {
            hear_follower(&mut child, &inputs);
            _ = child.kill();
            let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::warn!(status, "the follower of control ended; another one is started");
            thread::sleep(AGAIN);
            _ = inputs.send(Input::FollowerGone);
        })?;
        control.follower = Some(reports);
        control.due = Some(Instant::now());
        Ok(())
    }

    pub(super) fn hear_control(&mut self, told: ToNode) {
        if let ToNode::Hello { control, version, .. } = &told {
            tracing::info!(control, version, "control is there");
        }
        let Some(control) = &mut self.desired.control else { return };
        if told.key().is_some() || told == ToNode::Complete {
            control.is_written = false;
            control.soon();
        }
        let changes = control.told.hear(told);
        for change in changes {
            self.follow(change);
        }
    }

    fn follow(&mut self, change: Change) {
        match change {
            Change::Component(id, spec) => self.change_component(id, spec),
            Change::ComponentGone(id) => self.remove_component(id),
            Change::Pod(wanted) => {
                self.tell_desired(&wanted);
                self.tell_verdicts(&wanted.pod.uid);
            }
            Change::PodEnded(uid) => {
                self.failures_of(&uid, None);
                self.tell_gone(FromHost::Ended(uid));
            }
            Change::PodDeleted(uid) => {
                self.failures_of(&uid, None);
                self.tell_gone(FromHost::Deleted(uid));
                self.forget_deleted();
            }
            Change::Complete => self.tell(&ToWorker::Complete),
        }
    }

    /// Tells the keeper of a pod that has gone, or the next one, if there is none.
    fn tell_gone(&mut self, gone: FromHost) {
        let told = self.keeper.as_ref().is_some_and(|keeper| keeper.send(&gone, &[]).is_ok());
        if let Some(control) = self.desired.control.as_mut().filter(|_| !told) {
            control.unheard.push(gone);
        }
    }

    /// Forgets pods that the API has no more and whose endpoints are closed.
    pub(super) fn forget_deleted(&mut self) {
        let bindings = &self.desired.bindings;
        let is_bound = |uid: &PodUid| bindings.keys().any(|(of, _)| of.as_ref() == Some(uid));
        let Some(control) = &mut self.desired.control else { return };
        let changes = control.told.forget_deleted(is_bound);
        control.is_written = false;
        control.soon();
        for change in changes {
            self.follow(change);
        }
    }

    /// Whether a binding's pod may have its component.
    pub(super) fn verdict(&self, uid: &PodUid, name: &Name) -> Verdict {
        // A folder says what there is, and it is for everybody.
        self.desired.control.as_ref().map_or(Verdict::Served, |control| control.told.verdict(uid, name))
    }

    /// Everything that is wanted was told: what is not known is known not to be.
    pub(super) fn is_complete(&self) -> bool {
        self.desired.control.as_ref().is_none_or(|control| control.told.complete)
    }

    fn tell_verdicts(&mut self, uid: &PodUid) {
        let of_pod = |(of, _): &&BindingKey| of.as_ref() == Some(uid);
        let keys: Vec<(BindingKey, Name)> = (self.desired.bindings.iter())
            .filter(|(key, _)| of_pod(key))
            .map(|(key, bound)| (key.clone(), bound.binding.name.clone()))
            .collect();
        for (key, name) in keys {
            let verdict = self.verdict(uid, &name);
            let Some(bound) = self.desired.bindings.get_mut(&key) else { continue };
            if bound.binding.verdict != verdict {
                bound.binding.verdict = verdict.clone();
                self.tell(&ToWorker::Verdict(uid.clone(), key.1, verdict));
            }
        }
    }

    /// Tells the keeper what a pod is to have.
    fn tell_desired(&self, wanted: &WantedPod) {
        let desired = FromHost::Desired { pod: wanted.pod.clone(), sidecars: wanted.sidecars.clone(), netns: None };
        if let Some(keeper) = &self.keeper
            && keeper.send(&desired, &[]).is_err()
        {
            // It is gone, and the next one is told everything.
            _ = keeper.socket().shutdown(std::net::Shutdown::Both);
        }
    }

    /// Tells a keeper that is new what pods are to have.
    pub(super) fn introduce_pods(&mut self) {
        let Some(control) = &mut self.desired.control else { return };
        let unheard = std::mem::take(&mut control.unheard);
        let wanted: Vec<WantedPod> = control.told.pods().cloned().collect();
        for gone in unheard {
            self.tell_gone(gone);
        }
        for wanted in &wanted {
            self.tell_desired(wanted);
        }
    }

    /// A port of a pod accepts connections. What kept it from that is past when all that it names do.
    pub(super) fn bound_of(&mut self, uid: &PodUid) {
        let bound = |port| self.desired.bindings.contains_key(&(Some(uid.clone()), port));
        let control = self.desired.control.as_ref();
        let wanted = control.and_then(|control| control.told.pods().find(|wanted| wanted.pod.uid == *uid));
        if wanted.is_none_or(|wanted| wanted.sidecars.iter().all(|sidecar| bound(sidecar.port))) {
            self.failures_of(uid, None);
        }
        self.report_soon();
    }

    /// Why a pod has not what it should; `None` if it has.
    pub(super) fn failures_of(&mut self, uid: &PodUid, why: Option<String>) {
        let Some(control) = &mut self.desired.control else { return };
        let why = why.as_deref().map(text::reason);
        let before = match &why {
            Some(why) => control.failed.insert(uid.clone(), why.clone()),
            None => control.failed.remove(uid),
        };
        if before != why {
            control.soon();
        }
    }

    /// Something that control is to hear has changed.
    pub(super) fn report_soon(&mut self) {
        if let Some(control) = &mut self.desired.control {
            control.soon();
        }
    }

    /// When what has changed is to be written and reported.
    pub(super) fn report_due(&self) -> Option<Instant> {
        self.desired.control.as_ref()?.due
    }

    /// Writes and reports what has changed.
    pub(super) fn report(&mut self) {
        let report = self.make_report();
        let Some(control) = &mut self.desired.control else { return };
        control.due = None;
        if control.left_out != report.left_out {
            match &report.left_out {
                Some(left_out) => tracing::warn!(left_out, "a report to control has no room for everything"),
                None => tracing::info!("a report to control has room for everything again"),
            }
            control.left_out.clone_from(&report.left_out);
        }
        // One that drains knows less than the host in its place.
        if !control.is_written && !self.terminating {
            match control.kept.write(&control.told) {
                Ok(()) => control.is_written = true,
                Err(error) => {
                    control.due = Some(Instant::now() + AGAIN);
                    tracing::error!(
                        error = format!("{error:#}"),
                        "what control has told cannot be kept for the next start"
                    );
                }
            }
        }
        if let Some(follower) = &control.follower {
            _ = follower.send(report);
        }
    }

    fn make_report(&self) -> Report {
        let Some(control) = &self.desired.control else { return Report::default() };
        let of_component = |(id, version, _): (&ComponentId, &_, _)| {
            let known = self.desired.components.get(id).filter(|known| !known.changed && known.fate.is_some())?;
            let digest = known.served.as_ref().map(|served| served.version);
            let outbound = known.served.as_ref().map(|served| served.outbound.clone()).unwrap_or_default();
            let (version, failure) = (Clone::clone(version), known.failure.clone());
            let report = ComponentReport { version, digest, failure, outbound };
            Some((id.clone(), report))
        };
        let mut pods: BTreeMap<PodUid, PodReport> = BTreeMap::new();
        for ((uid, port), bound) in &self.desired.bindings {
            let (Some(uid), Some(endpoint)) = (uid, &bound.endpoint) else { continue };
            let pod = pods.entry(uid.clone()).or_default();
            pod.bound.insert(*port);
            pod.late |= endpoint.late;
        }
        for (uid, why) in &control.failed {
            pods.entry(uid.clone()).or_default().failure = Some(why.clone());
        }
        let components = control.told.components().filter_map(of_component).collect();
        report::fit(Report { components, pods, left_out: None })
    }

    /// What a pod's binding is to its component.
    pub(super) fn component_of(&self, pod: &Pod, name: &Name) -> ComponentId {
        let namespace = self.desired.control.as_ref().and_then(|_| pod.namespace.parse().ok());
        ComponentId { namespace, name: name.clone() }
    }
}

/// Hands on what the follower says, until its end.
fn hear_follower(child: &mut Child, inputs: &Sender<Input>) {
    let Some(stdout) = child.stdout.take() else { return };
    // It is ours, and has bounded each line.
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Word::Told(told)) => {
                if inputs.send(Input::Told(told)).is_err() {
                    return;
                }
            }
            Ok(Word::Misunderstood(why)) => {
                tracing::error!(why, "control says what this host does not understand; it goes on with the rest");
            }
            Ok(Word::Away(why)) => tracing::warn!(why, "control is away: everything is served as it was"),
            // Its words could quote a secret.
            Err(error) => tracing::error!(column = error.column(), "the follower says what is not understood"),
        }
    }
}
