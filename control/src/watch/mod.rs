//! The Kubernetes watches that feed the catalog.
//!
//! Of most pods nothing is kept, and only their metadata ever travels: those with the annotation are asked for whole (`pods`, `whole`) until
//! they have a node. A watch that ends is begun again; what a new list does not have is no more.

mod pods;
mod seen;
mod whole;

use std::{collections::BTreeSet, sync::Arc};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use pillion_protocol::id::ComponentId;

use crate::{
    control::Control,
    references::References,
    resource::{Access, ClusterComponent, Component, ComponentStatus, Spec},
};

/// Pods that have ended are none to us.
pub(crate) const LIVING: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// A watch is begun again after so many seconds, whatever comes: one that hangs is not noticed otherwise.
const WATCH: u32 = 60;

/// Follows what there is, for as long as the process lives.
pub async fn follow(client: Client, control: Arc<Control>) {
    let references = References::new(client.clone(), Arc::clone(&control));
    let components = Api::<Component>::all(client.clone());
    let cluster_components = Api::<ClusterComponent>::all(client.clone());
    tokio::join!(
        follow_components(
            components,
            &references,
            |component| (&component.spec.spec, None, component.status.as_ref()),
            |_, _| (),
            || control.list_is_complete(|listed| listed.components = true),
        ),
        follow_components(
            cluster_components,
            &references,
            |component| (&component.spec.spec, component.spec.access.clone(), component.status.as_ref()),
            |id, component| control.set_final(&id.name, component.is_some_and(|component| component.spec.is_final)),
            || control.list_is_complete(|listed| listed.cluster_components = true),
        ),
        references.follow(),
        follow_runtime_classes(Api::all(client.clone()), &control),
        pods::follow(client, Arc::clone(&control)),
    );
}

/// Runtime classes of which it matters what they are. One that is deleted keeps its pods as they are.
async fn follow_runtime_classes(api: Api<RuntimeClass>, control: &Control) {
    let mut events = std::pin::pin!(events(api, config()));
    while let Some(event) = events.next().await {
        match event {
            Event::InitApply(class) | Event::Apply(class) => {
                control.set_runtime_class(&class.name_any(), class.handler)
            }
            Event::InitDone => control.list_is_complete(|listed| listed.runtime_classes = true),
            Event::Init | Event::Delete(_) => {}
        }
    }
}

/// How things are watched.
pub(crate) fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH)
}

/// A watch that is begun again whatever ends it, ever more slowly.
pub(crate) fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    watcher::watcher(api, config)
        .default_backoff()
        .inspect_err(|error| tracing::warn!(%error, "a watch of the API server's is begun again"))
        .filter_map(|event| async { event.ok() })
}

async fn follow_components<K>(
    api: Api<K>,
    references: &References,
    read: impl Fn(&K) -> (&Spec, Option<Access>, Option<&ComponentStatus>),
    overrule: impl Fn(&ComponentId, Option<&K>),
    complete: impl Fn(),
) where
    K: Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let mut events = std::pin::pin!(events(api, config()));
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(ref component) | Event::Apply(ref component) => {
                let Some(id) = id_of(component) else { continue };
                let (spec, access, status) = read(component);
                // Before it is published: nobody's comes before it in between.
                overrule(&id, Some(component));
                let resolved = status.and_then(|status| status.resolved_image.as_deref());
                references.publish(id.clone(), spec, access, resolved).await;
                known.insert(id.clone());
                if matches!(event, Event::InitApply(_)) {
                    listed.insert(id);
                }
            }
            Event::Delete(component) => {
                let Some(id) = id_of(&component) else { continue };
                known.remove(&id);
                overrule(&id, None);
                references.remove(id).await;
            }
            Event::InitDone => {
                for id in known.extract_if(.., |id| !listed.contains(id)) {
                    overrule(&id, None);
                    references.remove(id).await;
                }
                complete();
            }
        }
    }
}

/// A component whose name is none of ours cannot be named by a pod.
fn id_of(component: &impl ResourceExt) -> Option<ComponentId> {
    let name = component.name_any().parse().ok()?;
    match component.namespace() {
        Some(namespace) => Some(ComponentId::in_namespace(namespace.parse().ok()?, name)),
        None => Some(ComponentId::from(name)),
    }
}
