//! Which replica serves nodes and writes: the one that holds the Lease.
//!
//! Who cannot renew it in time stops leading by itself, before another one can begin: what the network does to one replica, nobody
//! tells it.

use std::{sync::Arc, time::Duration};

use kube::Client;
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::control::{Control, Leading};

/// The Lease's name.
pub const LEASE: &str = "pillion-control";

/// For how long it is held.
const HELD: Duration = Duration::from_secs(15);

/// How long before that its holder stops by itself.
const RESERVE: Duration = Duration::from_secs(5);

/// How long one answer of the API server's may take.
const ANSWER: Duration = Duration::from_secs(3);

/// How often it is renewed, or looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Follows the Lease until `ending`, and gives it up then.
pub async fn follow(client: Client, control: Arc<Control>, mut ending: watch::Receiver<bool>) {
    let params =
        LeaseLockParams { holder_id: control.settings.identity.clone(), lease_name: LEASE.into(), lease_ttl: HELD };
    let lease = LeaseLock::new(client, &control.settings.namespace, params);
    let mut held_until = Instant::now();
    while !*ending.borrow() {
        let asked = Instant::now();
        match timeout(ANSWER, lease.try_acquire_or_renew()).await {
            Ok(Ok(LeaseLockResult::Acquired(_))) => {
                held_until = asked + HELD - RESERVE;
                lead(&control, Leading::Yes);
            }
            Ok(Ok(LeaseLockResult::NotAcquired(lease))) => {
                let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
                lead(&control, if holder.is_empty() { Leading::Nobody } else { Leading::Other(holder) });
            }
            Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be asked for"),
            Err(_) => tracing::warn!("the Lease was asked for in vain: the API server does not answer"),
        }
        if is_led(&control) && Instant::now() >= held_until {
            lead(&control, Leading::Nobody);
        }
        // Whoever waits for it to be free does not ask all at once.
        let pause = LOOK.mul_f64(0.75 + fastrand::f64() / 2.0);
        let pause =
            if is_led(&control) { pause.min(held_until.saturating_duration_since(Instant::now())) } else { pause };
        _ = timeout(pause, ending.wait_for(|ending| *ending)).await;
    }
    if is_led(&control) {
        lead(&control, Leading::Nobody);
        if let Err(error) = lease.step_down().await {
            tracing::warn!(%error, "the Lease cannot be given up: it is free in {} s", HELD.as_secs());
        }
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
