//! ConfigMaps and Secrets that components refer to. One is read when a component refers to it, and again when it may have changed; nothing of
//! any other is kept.
//!
//! Of ConfigMaps the metadata is watched. Secrets are not: control may read only those that a namespace lets it read, one by one, so they
//! are read again every few seconds.

mod known;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};
use pillion_protocol::id::ComponentId;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{MissedTickBehavior, interval, timeout},
};

use self::known::{Known, SourceId};
use crate::{
    control::Control,
    resource::{Access, Kind, Map, Source, Spec, Unread, Values},
    watch,
};

/// How long the API server may take for one of them.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait before one that could not be read is read again.
const AGAIN: Duration = Duration::from_secs(2);

/// How often Secrets are read.
const SECRETS: Duration = Duration::from_secs(10);

/// Publishes components with what they refer to.
pub struct References {
    client: Client,
    control: Arc<Control>,
    /// Held while one is read: what was read later is published later.
    known: Mutex<Known>,
}

impl References {
    /// Knows none yet.
    pub fn new(client: Client, control: Arc<Control>) -> Self {
        Self { client, control, known: Mutex::default() }
    }

    /// A component is new or has changed; `resolved` is what its status has of its image.
    pub async fn publish(&self, id: ComponentId, spec: &Spec, access: Option<Access>, resolved: Option<&str>) {
        if id.namespace.is_none() {
            // It may refer to nothing, and waits for nobody.
            let accepted = spec.accepted(&Values::none());
            return self.control.accept(id, accepted, access, resolved);
        }
        let mut known = self.known.lock().await;
        for source in known.refer(&id, Some(spec)) {
            self.read(&mut known, &source).await;
        }
        let accepted = spec.accepted(&known.values(&id, spec));
        self.control.accept(id, accepted, access, resolved);
    }

    /// A component is no more.
    pub async fn remove(&self, id: ComponentId) {
        self.known.lock().await.refer(&id, None);
        self.control.remove(id);
    }

    /// Reads those again that may have changed, for as long as the process lives.
    pub async fn follow(&self) {
        let api: Api<PartialObjectMeta<ConfigMap>> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watch::events(api, watch::config()));
        let [mut again, mut secrets] = [AGAIN, SECRETS].map(interval);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        secrets.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed: Vec<SourceId> = tokio::select! {
                event = events.next() => match event {
                    None => return,
                    Some(Event::Apply(map) | Event::Delete(map)) => {
                        let source = Source { kind: Kind::ConfigMap, name: map.name_any() };
                        map.namespace().map(|namespace| (namespace, source)).into_iter().collect()
                    }
                    Some(Event::Init | Event::InitApply(_)) => continue,
                    // What has changed or ended before the list is not told.
                    Some(Event::InitDone) => self.known.lock().await.of_kind(Kind::ConfigMap),
                },
                _ = secrets.tick() => self.known.lock().await.of_kind(Kind::Secret),
                _ = again.tick() => self.known.lock().await.take_unread(),
            };
            for source in changed {
                self.read_again(&source).await;
            }
        }
    }

    async fn read_again(&self, source: &SourceId) {
        let mut known = self.known.lock().await;
        if !known.is_referred_to(source) {
            return;
        }
        if !self.read(&mut known, source).await {
            return;
        }
        for (id, spec) in known.referring_to(source) {
            let accepted = spec.accepted(&known.values(id, spec));
            // Only Components refer to any, and those have no access.
            self.control.accept(id.clone(), accepted, None, None);
        }
    }

    /// Gives whether it is otherwise than before.
    async fn read(&self, known: &mut MutexGuard<'_, Known>, id: &SourceId) -> bool {
        let (namespace, Source { kind, name }) = id;
        let map = match kind {
            Kind::ConfigMap => self.get(namespace, name, |map: ConfigMap| map.data.unwrap_or_default()).await,
            // Its authority's key is there, which it may read.
            Kind::Secret if *namespace == self.control.settings.namespace => Err(Unread::Own),
            Kind::Secret => {
                let texts = |secret: Secret| {
                    let data = secret.data.unwrap_or_default().into_iter();
                    // What is no text can be no value.
                    data.filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?))).collect()
                };
                self.get(namespace, name, texts).await
            }
        };
        if let Err(Unread::Failed(error)) = &map {
            tracing::warn!(namespace, %kind, name, error, "a reference cannot be read; it is tried again");
        }
        known.set(id, map)
    }

    async fn get<K>(&self, namespace: &str, name: &str, texts: impl FnOnce(K) -> Texts) -> Map
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        match timeout(ANSWER, api.get_opt(name)).await {
            Ok(Ok(found)) => Ok(found.map(texts)),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                Err(Unread::Forbidden { control: self.control.settings.namespace.clone(), error: status.message })
            }
            Ok(Err(error)) => Err(Unread::Failed(error.to_string())),
            Err(_) => Err(Unread::Failed("no answer".to_owned())),
        }
    }
}

/// What a ConfigMap or a Secret says.
type Texts = std::collections::BTreeMap<String, String>;
