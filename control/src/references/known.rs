//! Who refers to what, and what was read of it. Decides, and does no IO.

use std::collections::{BTreeMap, BTreeSet};

use pillion_protocol::id::ComponentId;

use crate::resource::{Kind, Map, Source, Spec, Unread, Values};

/// A ConfigMap or a Secret, with its namespace.
pub type SourceId = (String, Source);

/// Who refers to what, and what was read of it.
#[derive(Default)]
pub struct Known {
    sources: BTreeMap<SourceId, Referred>,
    /// Those that refer to one.
    components: BTreeMap<ComponentId, Spec>,
    /// Those that could not be read when they last were to be.
    unread: BTreeSet<SourceId>,
}

/// Something that components refer to.
#[derive(Default)]
struct Referred {
    by: BTreeSet<ComponentId>,
    /// `None` before it is read.
    map: Option<Map>,
}

impl Known {
    /// What a component refers to from now on. Gives those of them that are not read yet.
    pub fn refer(&mut self, id: &ComponentId, spec: Option<&Spec>) -> Vec<SourceId> {
        let Some(namespace) = id.namespace.as_ref().map(ToString::to_string) else { return Vec::new() };
        let sources = |spec: &Spec| -> BTreeSet<SourceId> {
            spec.sources().into_iter().map(|source| (namespace.clone(), source)).collect()
        };
        let now = spec.map(sources).unwrap_or_default();
        let before = self.components.remove(id).as_ref().map(sources).unwrap_or_default();
        for source in before.difference(&now) {
            self.unrefer(id, source);
        }
        if let Some(spec) = spec.filter(|_| !now.is_empty()) {
            self.components.insert(id.clone(), spec.clone());
        }
        for source in &now {
            self.sources.entry(source.clone()).or_default().by.insert(id.clone());
        }
        let is_unread = |source: &SourceId| self.sources.get(source).is_some_and(|referred| referred.map.is_none());
        now.into_iter().filter(is_unread).collect()
    }

    fn unrefer(&mut self, id: &ComponentId, source: &SourceId) {
        let Some(referred) = self.sources.get_mut(source) else { return };
        referred.by.remove(id);
        if referred.by.is_empty() {
            self.sources.remove(source);
        }
    }

    /// Whether a component refers to it.
    pub fn is_referred_to(&self, source: &SourceId) -> bool {
        self.sources.contains_key(source)
    }

    /// The components that refer to it.
    pub fn referring_to(&self, source: &SourceId) -> impl Iterator<Item = (&ComponentId, &Spec)> {
        let by = self.sources.get(source).map(|referred| &referred.by);
        by.into_iter().flatten().filter_map(|id| self.components.get_key_value(id))
    }

    /// All of one kind that components refer to.
    pub fn of_kind(&self, kind: Kind) -> Vec<SourceId> {
        self.sources.keys().filter(|(_, source)| source.kind == kind).cloned().collect()
    }

    /// Those that are to be read again because they could not be.
    pub fn take_unread(&mut self) -> Vec<SourceId> {
        std::mem::take(&mut self.unread).into_iter().collect()
    }

    /// Something was read, or could not be. One that was read before and fails now stays as it was; one that may not be read any more does not.
    /// Gives whether it is otherwise than before.
    pub fn set(&mut self, id: &SourceId, map: Map) -> bool {
        let Some(referred) = self.sources.get_mut(id) else { return false };
        let failed = matches!(map, Err(Unread::Failed(_)));
        if failed {
            self.unread.insert(id.clone());
        }
        if failed && matches!(referred.map, Some(Ok(_))) || referred.map.as_ref() == Some(&map) {
            return false;
        }
        referred.map = Some(map);
        true
    }

    /// What a component may refer to, as far as it is known.
    pub fn values(&self, id: &ComponentId, spec: &Spec) -> Values {
        let Some(namespace) = &id.namespace else { return Values::none() };
        let known = |source: Source| {
            let map = self.sources.get(&(namespace.to_string(), source.clone()))?.map.clone()?;
            Some((source, map))
        };
        Values::of_namespace(namespace.as_str(), spec.sources().into_iter().filter_map(known).collect())
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

    fn settings() -> SourceId {
        ("shop".to_owned(), Source { kind: Kind::ConfigMap, name: "settings".to_owned() })
    }

    #[test]
    fn a_source_is_kept_while_somebody_refers_to_it() {
        let (mut known, map) = (Known::default(), settings());
        assert_eq!(known.refer(&id("shop/a"), Some(&spec("settings"))), std::slice::from_ref(&map));
        known.set(&map, Ok(None));
        assert!(known.refer(&id("shop/b"), Some(&spec("settings"))).is_empty(), "it is read");
        assert_eq!(known.referring_to(&map).count(), 2);
        known.refer(&id("shop/a"), Some(&spec("other")));
        known.refer(&id("shop/b"), None);
        let names: Vec<_> = known.of_kind(Kind::ConfigMap).into_iter().map(|(_, source)| source.name).collect();
        assert_eq!(names, ["other"]);
        known.set(&map, Ok(None));
        assert_eq!(known.components.len(), 1);
    }

    #[test]
    fn what_fails_stays_as_it_was_and_what_is_forbidden_does_not() {
        let (mut known, map) = (Known::default(), settings());
        let (id, spec) = (id("shop/a"), spec("settings"));
        known.refer(&id, Some(&spec));
        let accepted = |known: &Known| spec.accepted(&known.values(&id, &spec)).map_err(|error| error.message);
        known.set(&map, Err(Unread::Failed("no answer".into())));
        assert!(accepted(&known).unwrap_err().contains("no answer"));
        known.set(&map, Ok(Some([("k".to_owned(), "v".to_owned())].into())));
        known.set(&map, Err(Unread::Failed("no answer".into())));
        assert!(accepted(&known).is_ok());
        assert_eq!(known.take_unread(), std::slice::from_ref(&map), "it is read again");
        known.set(&map, Err(Unread::Forbidden { control: "pillion-system".into(), error: "no".into() }));
        assert!(accepted(&known).is_err());
    }
}
