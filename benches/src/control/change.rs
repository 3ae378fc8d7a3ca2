//! From a change of a component's image to an answer of the new one inside a pod: the API server, control, the stream, a pull, a compilation.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::StreamExt;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, WatchEvent, WatchParams},
};
use pillion_tests::{netns::Netns, registry::Artifact, world::World};
use serde_json::{Value, json};

use super::cluster;
use crate::{
    figures::{Unit, percentile},
    prime,
    report::{Row, Section, Series, Target},
    setup::Setup,
};

/// Changes in one run: enough for a 99th percentile.
const CHANGES: usize = 100;

/// How long a change may take.
const SERVED: Duration = Duration::from_secs(30);

/// How often the pod is asked.
const LOOK: Duration = Duration::from_millis(1);

/// What became of changes, in seconds after the API server's answer to each.
#[derive(Default)]
struct Sample {
    /// Until the pod had the new one's answer.
    served: Vec<f64>,
    /// Until somebody who watches was told.
    told: Vec<f64>,
}

/// When a watch has told of images.
type Told = Arc<Mutex<HashMap<String, Instant>>>;

pub(super) async fn measure(setup: &Setup, section: &mut Section) -> anyhow::Result<()> {
    let world = World::start().await?;
    let changes = setup.either(CHANGES, 10);
    let count = setup.runs * changes;
    for (number, component) in prime::distinct(setup, count + 1)?.enumerate() {
        Artifact::wasm(component).push(&world.registry, &format!("small:{number}")).await?;
    }
    world.publish("small", "small:0", json!({}))?;
    let netns = world.pod("shop", "cart", "small=8081")?;
    world.answers(&netns, 8081, "/", &text(0)).await?;
    let client = cluster::client(&world.plane).await?;
    let api = cluster::components(client);
    let mut samples = Vec::new();
    for run in 0..setup.runs {
        eprintln!("control: {changes} changes, run {} of {}", run + 1, setup.runs);
        let (mut sample, told) = (Sample::default(), watch(&api).await?);
        for number in 1..=changes {
            change(&world, &api, &netns, &told, run * changes + number, &mut sample).await?;
        }
        samples.push(sample);
    }
    let series = |name: &str, of: fn(&Sample) -> &Vec<f64>, share: f64| {
        Series::new(name, samples.iter().map(|sample| percentile(of(sample), share)).collect())
    };
    let reproduce = || "pillion-bench control".to_owned();
    for (what, share) in [("change to answer, p50", 0.5), ("change to answer, p99", 0.99)] {
        let (served, told) =
            (series("served", |of| &of.served, share), series("a watch is told", |of| &of.told, share));
        let row = Row::new(what, Unit::Seconds, &served, &told, reproduce());
        section.rows.push(if share > 0.9 { row.aim(Target::AtMost(1.0)) } else { row });
    }
    section.notes.push(format!(
        "change: {changes} a run; from the API server's answer to the write of another image to that image's answer inside a pod, asked for \
         every millisecond; each image is another small component, which is resolved, pulled and compiled meanwhile"
    ));
    Ok(())
}

fn text(number: usize) -> String {
    String::from_utf8_lossy(&prime::answer(number)).into_owned()
}

async fn change(
    world: &World,
    api: &Api<DynamicObject>,
    netns: &Netns,
    told: &Told,
    number: usize,
    sample: &mut Sample,
) -> anyhow::Result<()> {
    let image = world.image(&format!("small:{number}"));
    let patch = Patch::Merge(json!({"spec": {"image": image}}));
    api.patch("small", &PatchParams::default(), &patch).await?;
    let written = Instant::now();
    let expected = text(number);
    loop {
        if netns.get(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081, "/").is_ok_and(|answer| answer.ends_with(&expected)) {
            break;
        }
        ensure!(written.elapsed() < SERVED, "{image} is not served: {}", world.logs());
        tokio::time::sleep(LOOK).await;
    }
    sample.served.push(written.elapsed().as_secs_f64());
    let told = told.lock().unwrap_or_else(PoisonError::into_inner).get(&image).copied();
    let told = told.with_context(|| format!("no watch has told of {image}"))?;
    sample.told.push(told.saturating_duration_since(written).as_secs_f64());
    Ok(())
}

/// Watches components as control does, for as long as the runtime lives.
async fn watch(api: &Api<DynamicObject>) -> anyhow::Result<Told> {
    let told = Told::default();
    let version = api.list(&kube::api::ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut events = api.watch(&WatchParams::default().timeout(290), &version).await?.boxed();
    let noted = Arc::clone(&told);
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            if let WatchEvent::Modified(component) = event
                && let Some(image) = component.data.pointer("/spec/image").and_then(Value::as_str)
            {
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.entry(image.to_owned()).or_insert_with(Instant::now);
            }
        }
    });
    Ok(told)
}
