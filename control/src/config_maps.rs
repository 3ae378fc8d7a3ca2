//! ConfigMaps that components refer to. One is read when a component refers to it, and again when it changes; of all others only the
//! metadata ever travels, and nothing is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};
use pillion_protocol::id::ComponentId;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    catalog::Published,
    control::Control,
    resource::{Access, Map, Spec, Values},
    watch,
};

/// How long the API server may take for one of them.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait before one that could not be read is read again.
const AGAIN: Duration = Duration::from_secs(2);

/// Publishes components with the values that they refer to.
pub struct ConfigMaps {
    client: Client,
    control: Arc<Control>,
    /// Held while one is read: what was read later is published later.
    known: Mutex<Known>,
}

/// A ConfigMap's namespace and name.
type MapId = (String, String);

#[derive(Default)]
struct Known {
    maps: BTreeMap<MapId, Referred>,
    /// Those that refer to a ConfigMap.
    components: BTreeMap<ComponentId, Spec>,
    /// Those that could not be read when they last were to be.
    unread: BTreeSet<MapId>,
}

/// A ConfigMap that components refer to.
#[derive(Default)]
struct Referred {
    by: BTreeSet<ComponentId>,
    /// `None` before it is read.
    map: Option<Map>,
}

impl ConfigMaps {
    /// Knows none yet.
    pub fn new(client: Client, control: Arc<Control>) -> Self {
        Self { client, control, known: Mutex::default() }
    }

    /// A component is new or has changed.
    pub async fn publish(&self, id: ComponentId, spec: &Spec, access: Option<Access>) {
        let mut known = self.known.lock().await;
        for map in known.refer(&id, Some(spec)) {
            self.read(&mut known, &map).await;
        }
        let accepted = spec.accepted(&known.values(&id, spec));
        self.control.publish(id, Some(Published::new(accepted, access)));
    }

    /// A component is no more.
    pub async fn remove(&self, id: ComponentId) {
        self.known.lock().await.refer(&id, None);
        self.control.publish(id, None);
    }

    /// Reads those again that change, for as long as the process lives.
    pub async fn follow(&self) {
        let api: Api<PartialObjectMeta<ConfigMap>> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watch::events(api, watch::config()));
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                event = events.next() => match event {
                    None => return,
                    Some(Event::Apply(map) | Event::Delete(map)) => map.namespace().map(|of| (of, map.name_any())).into_iter().collect(),
                    Some(Event::Init | Event::InitApply(_)) => continue,
                    // What has changed or ended before the list is not told.
                    Some(Event::InitDone) => self.known.lock().await.maps.keys().cloned().collect(),
                },
                _ = again.tick() => std::mem::take(&mut self.known.lock().await.unread),
            };
            for map in changed {
                self.read_again(&map).await;
            }
        }
    }

    async fn read_again(&self, map: &MapId) {
        let mut known = self.known.lock().await;
        if !known.maps.contains_key(map) {
            return;
        }
        self.read(&mut known, map).await;
        for (id, spec) in known.referring_to(map) {
            let accepted = spec.accepted(&known.values(id, spec));
            // Only Components refer to any, and those have no access.
            self.control.publish(id.clone(), Some(Published::new(accepted, None)));
        }
    }

    async fn read(&self, known: &mut MutexGuard<'_, Known>, id: &MapId) {
        let (namespace, name) = id;
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let answer = timeout(ANSWER, api.get_opt(name)).await.map_err(|_| "no answer".to_owned());
        let map = answer.and_then(|answer| answer.map_err(|error| error.to_string()));
        if let Err(error) = &map {
            tracing::warn!(namespace, config_map = name, error, "a ConfigMap cannot be read; it is tried again");
        }
        known.set(id, map.map(|map| map.map(|map| map.data.unwrap_or_default())));
    }
}

impl Known {
    /// What a component refers to from now on. Gives those of them that are not read yet.
    fn refer(&mut self, id: &ComponentId, spec: Option<&Spec>) -> Vec<MapId> {
        let Some(namespace) = id.namespace.as_ref().map(ToString::to_string) else { return Vec::new() };
        let maps = |spec: &Spec| -> BTreeSet<MapId> {
            spec.config_maps().into_iter().map(|name| (namespace.clone(), name)).collect()
        };
        let now = spec.map(maps).unwrap_or_default();
        let before = self.components.remove(id).as_ref().map(maps).unwrap_or_default();
        for map in before.difference(&now) {
            self.unrefer(id, map);
        }
        if let Some(spec) = spec.filter(|_| !now.is_empty()) {
            self.components.insert(id.clone(), spec.clone());
        }
        for map in &now {
            self.maps.entry(map.clone()).or_default().by.insert(id.clone());
        }
        now.into_iter().filter(|map| self.maps.get(map).is_some_and(|referred| referred.map.is_none())).collect()
    }

    fn unrefer(&mut self, id: &ComponentId, map: &MapId) {
        let Some(referred) = self.maps.get_mut(map) else { return };
        referred.by.remove(id);
        if referred.by.is_empty() {
            self.maps.remove(map);
        }
    }

    fn referring_to(&self, map: &MapId) -> impl Iterator<Item = (&ComponentId, &Spec)> {
        let by = self.maps.get(map).map(|referred| &referred.by);
        by.into_iter().flatten().filter_map(|id| self.components.get_key_value(id))
    }

    /// One that was read before and cannot be now stays as it was.
    fn set(&mut self, id: &MapId, map: Map) {
        let Some(referred) = self.maps.get_mut(id) else { return };
        if map.is_err() {
            self.unread.insert(id.clone());
        }
        if map.is_ok() || !matches!(referred.map, Some(Ok(_))) {
            referred.map = Some(map);
        }
    }

    fn values(&self, id: &ComponentId, spec: &Spec) -> Values {
        let Some(namespace) = &id.namespace else { return Values::none() };
        let known = |name: String| {
            let map = self.maps.get(&(namespace.to_string(), name.clone()))?.map.clone()?;
            Some((name, map))
        };
        Values::of_namespace(namespace.as_str(), spec.config_maps().into_iter().filter_map(known).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(map: &str) -> Spec {
        let from = json!({"configMapKeyRef": {"name": map, "key": "k"}});
        serde_json::from_value(json!({"image": "r.example/a:1", "env": [{"name": "V", "valueFrom": from}]})).unwrap()
    }

    fn id(text: &str) -> ComponentId {
        text.parse().unwrap()
    }

    #[test]
    fn a_map_is_kept_while_somebody_refers_to_it() {
        let mut known = Known::default();
        let map = ("shop".to_owned(), "settings".to_owned());
        assert_eq!(known.refer(&id("shop/a"), Some(&spec("settings"))), std::slice::from_ref(&map));
        known.set(&map, Ok(None));
        assert!(known.refer(&id("shop/b"), Some(&spec("settings"))).is_empty(), "it is read");
        assert_eq!(known.referring_to(&map).count(), 2);
        known.refer(&id("shop/a"), Some(&spec("other")));
        known.refer(&id("shop/b"), None);
        assert_eq!(known.maps.keys().map(|(_, name)| name).collect::<Vec<_>>(), ["other"]);
        known.set(&map, Ok(None));
        assert_eq!(known.components.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_any_more_stays_as_it_was() {
        let mut known = Known::default();
        let map = ("shop".to_owned(), "settings".to_owned());
        known.refer(&id("shop/a"), Some(&spec("settings")));
        known.set(&map, Err("forbidden".into()));
        assert!(
            spec("settings")
                .accepted(&known.values(&id("shop/a"), &spec("settings")))
                .unwrap_err()
                .contains("forbidden")
        );
        known.set(&map, Ok(Some([("k".to_owned(), "v".to_owned())].into())));
        known.set(&map, Err("no answer".into()));
        assert!(spec("settings").accepted(&known.values(&id("shop/a"), &spec("settings"))).is_ok());
        assert!(known.unread.contains(&map), "it is read again");
    }
}
