//! Whether a pod's network is one that its node can listen in, as far as it is known which one that is.

use std::collections::BTreeSet;

use super::{ApiUid, Catalog, ListedPod};

/// Handlers of runtime classes that give a pod a network stack of its own: what listens in its namespace on the node, nothing in it reaches.
const ISOLATING: [&str; 3] = ["runsc", "gvisor", "kata"];

/// Whether pods of a runtime class with this handler have a network stack of their own.
pub fn isolates(handler: &str) -> bool {
    ISOLATING.iter().any(|isolating| handler.contains(isolating))
}

impl Catalog {
    /// What runs the pods of a runtime class. Gives the pods that this matters to.
    pub fn set_runtime_class(&mut self, class: &str, handler: String) -> BTreeSet<ApiUid> {
        let before = self.runtime_classes.insert(class.to_owned(), handler.clone());
        if before == Some(handler) {
            return BTreeSet::new();
        }
        let of_class = |(_, pod): &(&ApiUid, &ListedPod)| pod.runtime_class.as_deref() == Some(class);
        self.pods.iter().filter(of_class).map(|(uid, _)| ApiUid::clone(uid)).collect()
    }

    /// Why none of a pod's sidecars can be reached in it, if that is so.
    pub fn unreachable(&self, pod: &ListedPod) -> Option<String> {
        if pod.host_network {
            return Some(
                "the pod has the node's network (hostNetwork), where ports of pods would be in each other's way".into(),
            );
        }
        if pod.doubt.is_some() {
            return pod.doubt.clone();
        }
        let class = pod.runtime_class.as_deref()?;
        let handler = self.runtime_classes.get(class).map_or(class, String::as_str);
        isolates(handler).then(|| {
            format!("the runtime class {class:?} (handler {handler:?}) gives the pod a network stack of its own, which nothing of the node's reaches")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::pod, *};

    #[test]
    fn the_handler_of_the_class_counts() {
        let mut catalog = Catalog::default();
        let (uid, mut cart) = pod("shop", "cart", "a", "clock=8081");
        cart.runtime_class = Some("sandboxed".into());
        catalog.set_pod(ApiUid::clone(&uid), cart.clone());
        assert_eq!(catalog.unreachable(&cart), None);
        assert_eq!(catalog.view("a").resources.len(), 1);
        assert_eq!(catalog.set_runtime_class("sandboxed", "runsc".into()), BTreeSet::from([uid]));
        assert!(catalog.unreachable(&cart).unwrap().contains("\"sandboxed\" (handler \"runsc\")"));
        assert!(catalog.view("a").resources.is_empty(), "the node could do nothing");
        assert!(catalog.set_runtime_class("sandboxed", "runsc".into()).is_empty(), "nothing has changed");
        catalog.set_runtime_class("sandboxed", "runc".into());
        assert_eq!(catalog.unreachable(&cart), None);
    }
}
