//! What an API server may do to control: it is busy, has forgotten, says nothing, is away, or is reached by one replica only. What is bound
//! serves on, and a change that comes meanwhile is served afterwards.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{
    api_proxy::{ApiFault, ApiProxy},
    control::{Access, Plane},
    eventually, is_soak,
    netns::Netns,
    service::Service,
    world::{AGAIN, SOON, World},
};
use serde_json::json;

/// Longer than a watch that hangs is waited for, 75 s.
const HANGS: Duration = Duration::from_secs(150);

/// Control behind a proxy, and a pod whose sidecar serves.
struct Faulty {
    world: World,
    proxy: ApiProxy,
    cart: Netns,
}

impl Faulty {
    async fn start() -> Result<Self> {
        let mut plane = Plane::start().await?;
        let proxy = ApiProxy::start(&plane.api)?;
        plane.reach_api_at(&proxy.url())?;
        let world = World::of(plane).await?;
        publish(&world, "first")?;
        let cart = world.pod("shop", "cart", "faults=8081")?;
        world.answers(&cart, 8081, "/env?name=NAME", "first").await?;
        Ok(Self { world, proxy, cart })
    }

    /// It serves what it did, now.
    fn serves(&self, what: &str) -> Result<()> {
        let answer = self.cart.get(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081, "/env?name=NAME")?;
        ensure!(answer.contains(what), "{answer}");
        Ok(())
    }

    async fn made(&self, faults: usize) -> Result<()> {
        eventually("faults", SOON, async || {
            self.serves("first")?;
            ensure!(self.proxy.made() >= faults, "{} faults", self.proxy.made());
            Ok(())
        })
        .await
    }

    async fn changes(&self, time: Duration) -> Result<()> {
        self.world.answers_in(time, &self.cart, 8081, "/env?name=NAME", "second").await
    }
}

fn publish(world: &World, name: &str) -> Result<()> {
    world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": name}]}))
}

#[tokio::test]
async fn one_that_has_forgotten_what_control_knows_is_asked_for_everything() -> Result<()> {
    let faulty = Faulty::start().await?;
    // In place of the change, then in place of the watch that comes after.
    faulty.proxy.fault(2, ApiFault::Expired, |asked| asked.watches("/clustercomponents"));
    publish(&faulty.world, "second")?;
    faulty.changes(SOON).await?;
    eventually("both faults", SOON, async || {
        ensure!(faulty.proxy.made() == 2, "{}", faulty.proxy.made());
        Ok(())
    })
    .await?;
    publish(&faulty.world, "third")?;
    faulty.world.answers_in(AGAIN, &faulty.cart, 8081, "/env?name=NAME", "third").await
}

#[tokio::test]
async fn one_that_is_busy_is_asked_again() -> Result<()> {
    let faulty = Faulty::start().await?;
    faulty.proxy.fault(usize::MAX, ApiFault::Busy, |_| true);
    publish(&faulty.world, "second")?;
    faulty.made(10).await?;
    faulty.proxy.clear();
    faulty.changes(AGAIN).await
}

#[tokio::test]
async fn a_watch_that_hangs_is_begun_again() -> Result<()> {
    let faulty = Faulty::start().await?;
    faulty.proxy.fault(1, ApiFault::Silent, |asked| asked.watches("/clustercomponents"));
    publish(&faulty.world, "second")?;
    faulty.made(1).await?;
    faulty.changes(HANGS).await
}

#[tokio::test]
async fn one_that_was_away_is_followed_again() -> Result<()> {
    let mut world = World::start().await?;
    publish(&world, "first")?;
    let cart = world.pod("shop", "cart", "faults=8081")?;
    world.answers(&cart, 8081, "/env?name=NAME", "first").await?;
    world.plane.api.stop();
    // Longer than a leader that cannot renew its Lease leads.
    let gone = async || {
        ensure!(world.control.log().contains("another replica leads now"), "it leads on");
        Ok(())
    };
    eventually("the end of its leading", SOON, gone).await?;
    world.node.start_host()?;
    world.answers(&cart, 8081, "/env?name=NAME", "first").await?;
    if is_soak() {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    world.answers(&cart, 8081, "/env?name=NAME", "first").await?;
    world.plane.api.restart().await?;
    publish(&world, "second")?;
    world.answers_in(AGAIN, &cart, 8081, "/env?name=NAME", "second").await
}

#[tokio::test]
async fn a_leader_that_does_not_reach_it_leaves_nodes_to_the_other() -> Result<()> {
    let mut faulty = Faulty::start().await?;
    let direct = faulty.world.plane.api.url();
    faulty.world.plane.reach_api_at(&direct)?;
    let second = faulty.world.plane.control("control-1")?;
    let service = Service::start(vec![faulty.world.control.port(), second.port()])?;
    let agent = faulty.world.plane.agent("a")?;
    let access = faulty.world.plane.access(&faulty.world.control, &agent.token)?;
    faulty.world.node.follow(Access { url: format!("https://127.0.0.1:{}", service.port()), ..access })?;
    faulty.world.node.start_host()?;
    faulty.world.answers(&faulty.cart, 8081, "/env?name=NAME", "first").await?;
    faulty.proxy.fault(usize::MAX, ApiFault::Silent, |_| true);
    faulty.world.plane.until_led_by("control-1").await.with_context(|| second.log())?;
    faulty.serves("first")?;
    publish(&faulty.world, "second")?;
    faulty.changes(AGAIN).await.with_context(|| second.log())?;
    ensure!(faulty.world.control.log().contains("\"leading\":\"Nobody\""), "{}", faulty.world.control.log());
    Ok(())
}
