//! Control's wall clock is wrong, and becomes so while it leads: it leads on, alone, and nodes keep their streams.

use anyhow::{Result, ensure};
use pillion_tests::{
    clock::Clock,
    control::Plane,
    eventually,
    world::{AGAIN, SOON, World},
};
use serde_json::json;

#[tokio::test]
async fn a_clock_that_jumps_neither_ends_streams_nor_makes_two_leaders() -> Result<()> {
    let (ours, theirs) = (Clock::new()?, Clock::new()?);
    let mut plane = Plane::start().await?;
    plane.clock = Some(ours);
    let mut world = World::of(plane).await?;
    // Years ahead from the beginning: to it, the Lease was last renewed long ago.
    theirs.set("+4000d")?;
    let ours = world.plane.clock.replace(theirs);
    let second = world.plane.control("control-1")?;
    let started = async || {
        ensure!(second.log().starts_with(r#"{"timestamp":"203"#), "its clock is right: {}", second.log());
        Ok(())
    };
    eventually("a start", SOON, started).await?;
    let publish = |name: &str| world.publish("faults", "faults:1", json!({"env": [{"name": "NAME", "value": name}]}));
    publish("right")?;
    let cart = world.pod("shop", "cart", "faults=8081")?;
    world.answers(&cart, 8081, "/env?name=NAME", "right").await?;
    for jump in ["+1h", "-1h"] {
        if let Some(clock) = &ours {
            clock.set(jump)?;
        }
        // Longer than the other waits for a Lease that is not renewed.
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        publish(jump)?;
        world.answers_in(AGAIN, &cart, 8081, "/env?name=NAME", jump).await?;
        world.plane.until_led_by("control-0").await?;
    }
    let log = world.control.log();
    ensure!(log.matches("a node has its stream").count() == 1, "its stream has ended: {log}");
    ensure!(!log.contains("\"leading\":\"Nobody\"") && !second.log().contains("\"leading\":\"Yes\""), "{log}");
    Ok(())
}
