//! Which replica serves nodes and writes: the one that holds the Lease.
//!
//! The Lease is changed only as it was last seen (by its resourceVersion), so that of two replicas who want it one gets it. That its holder is gone is
//! told by the time in which it has not changed, by this replica's own clock: others' clocks may say what they like. Who cannot renew it in
//! time stops leading by itself, before another one begins.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::control::{Control, Leading};

/// The Lease's name.
pub const LEASE: &str = "pillion-control";

/// A holder that has not renewed it for so long is gone.
const HELD: Duration = Duration::from_secs(15);

/// How long before that its holder stops by itself.
const RESERVE: Duration = Duration::from_secs(5);

/// How long one answer of the API server's may take.
const ANSWER: Duration = Duration::from_secs(3);

/// How often it is renewed, or looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Follows the Lease until `ending`, and gives it up then.
pub async fn follow(client: Client, control: Arc<Control>, mut ending: watch::Receiver<bool>) {
    let api = Api::<Lease>::namespaced(client, &control.settings.namespace);
    let identity = control.settings.identity.clone();
    let mut candidate = Candidate { api, identity, seen: None };
    let mut held_until = Instant::now();
    while !*ending.borrow() {
        let asked = Instant::now();
        match timeout(ANSWER, candidate.ask(asked)).await {
            Ok(Ok(Leading::Yes)) => {
                held_until = asked + HELD - RESERVE;
                lead(&control, Leading::Yes);
            }
            Ok(Ok(other)) => lead(&control, other),
            Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be asked for"),
            Err(_) => tracing::warn!("the Lease was asked for in vain: the API server does not answer"),
        }
        if is_led(&control) && Instant::now() >= held_until {
            lead(&control, Leading::Nobody);
        }
        // Whoever waits for it to be free does not ask all at once.
        let pause = LOOK.mul_f64(0.75 + fastrand::f64() / 2.0);
        let left = held_until.saturating_duration_since(Instant::now());
        let pause = if is_led(&control) { pause.min(left) } else { pause };
        _ = timeout(pause, ending.wait_for(|ending| *ending)).await;
    }
    if is_led(&control) {
        lead(&control, Leading::Nobody);
        if let Err(error) = candidate.step_down().await {
            tracing::warn!(%error, "the Lease cannot be given up: it is free in {} s", HELD.as_secs());
        }
    }
}

/// Who would hold the Lease.
struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// The Lease as it was when it last changed, and when that was seen.
    seen: Option<(Option<LeaseSpec>, Instant)>,
}

impl Candidate {
    /// Takes the Lease, or renews it, if that may be; gives who holds it.
    async fn ask(&mut self, now: Instant) -> kube::Result<Leading> {
        let Some(lease) = self.api.get_opt(LEASE).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(LEASE.into());
            lease.spec = Some(taken(None, &self.identity));
            return self.changed(self.api.create(&PostParams::default(), &lease).await);
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != lease.spec) {
            self.seen = Some((lease.spec.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        match may_take(lease.spec.as_ref(), &self.identity, now.saturating_duration_since(since)) {
            Ok(()) => {
                let spec = Some(taken(lease.spec.as_ref(), &self.identity));
                self.changed(self.api.replace(LEASE, &PostParams::default(), &Lease { spec, ..lease }).await)
            }
            Err(holder) => Ok(Leading::Other(holder)),
        }
    }

    /// What a change of the Lease came to.
    fn changed(&self, result: kube::Result<Lease>) -> kube::Result<Leading> {
        match result {
            Ok(_) => Ok(Leading::Yes),
            // Somebody else has changed it since it was seen.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Leading::Nobody),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease up.
    async fn step_down(&self) -> kube::Result<()> {
        let lease = self.api.get(LEASE).await?;
        if holder(lease.spec.as_ref()) == Some(&self.identity) {
            let spec = lease.spec.clone().map(|spec| LeaseSpec { holder_identity: None, ..spec });
            self.changed(self.api.replace(LEASE, &PostParams::default(), &Lease { spec, ..lease }).await)?;
        }
        Ok(())
    }
}

fn holder(spec: Option<&LeaseSpec>) -> Option<&String> {
    spec?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

/// Whether the Lease may be taken, which has not changed for this long; else, who holds it.
fn may_take(spec: Option<&LeaseSpec>, identity: &str, unchanged: Duration) -> Result<(), String> {
    match holder(spec) {
        Some(holder) if holder != identity && unchanged < HELD => Err(holder.clone()),
        _ => Ok(()),
    }
}

/// The Lease as it is when it is held by this replica.
fn taken(before: Option<&LeaseSpec>, identity: &str) -> LeaseSpec {
    let now = Some(MicroTime(Timestamp::now()));
    let before = before.cloned().unwrap_or_default();
    let is_renewed = before.holder_identity.as_deref() == Some(identity);
    LeaseSpec {
        holder_identity: Some(identity.into()),
        lease_duration_seconds: i32::try_from(HELD.as_secs()).ok(),
        renew_time: now.clone(),
        acquire_time: if is_renewed { before.acquire_time } else { now },
        lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!is_renewed)),
        ..LeaseSpec::default()
    }
}

fn is_led(control: &Control) -> bool {
    *control.leading.borrow() == Leading::Yes
}

fn lead(control: &Control, now: Leading) {
    let changed = control.leading.send_if_modified(|leading| {
        let changed = *leading != now;
        leading.clone_from(&now);
        changed
    });
    if changed {
        tracing::info!(leading = ?now, "who serves nodes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_from_who_does_not_renew_it() {
        let held = taken(None, "a");
        let second = Duration::from_secs(1);
        assert_eq!(may_take(None, "b", Duration::ZERO), Ok(()));
        assert_eq!(may_take(Some(&held), "a", Duration::ZERO), Ok(()), "it is its own");
        assert_eq!(may_take(Some(&held), "b", HELD - second), Err("a".into()));
        assert_eq!(may_take(Some(&held), "b", HELD), Ok(()));
        let given_up = LeaseSpec { holder_identity: None, ..held };
        assert_eq!(may_take(Some(&given_up), "b", Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_renewal_is_no_transition() {
        let first = taken(None, "a");
        let renewed = taken(Some(&first), "a");
        assert_eq!((first.lease_transitions, renewed.lease_transitions), (Some(1), Some(1)));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(taken(Some(&renewed), "b").lease_transitions, Some(2));
    }
}
