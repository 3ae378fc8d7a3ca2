//! What metadata says of a pod, and whether it is believed to be a static pod's copy.
//!
//! A static pod's runtime knows it by its kubelet's hash, which the copy in the API has as an annotation. Whoever may create pods may write
//! that, and an owner as well: so a name for a pod of the node is taken only where no pod of the API can be meant, and from namespaces where
//! only trusted people create pods.

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, core::PartialObjectMeta};
use pillion_protocol::annotation;

/// The annotation by which a static pod's runtime knows it.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The length of a kubelet's hash, an MD5 in hexadecimal digits. UIDs of pods of the API have dashes, so none is such a hash.
const HASH: usize = 32;

/// What metadata says of a pod with the annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) namespace: String,
    pub(super) name: String,
    /// The UID by which its runtime knows it.
    pub(super) runtime_uid: String,
    pub(super) annotation: String,
    /// Why it is not believed to be a static pod's copy, if it says that it is.
    pub(super) doubt: Option<String>,
    /// It is a static pod's copy that was deleted; who has put a finalizer on it does not keep it.
    pub(super) deleted: bool,
}

impl Seen {
    /// What a pod's metadata says, if it has the annotation; `trusted` are the namespaces of static pods.
    pub(super) fn of(pod: &PartialObjectMeta<Pod>, trusted: &[String]) -> Option<Self> {
        let hash = pod.annotations().get(MIRROR);
        let doubt = hash.and_then(|hash| doubt(pod, hash, trusted));
        let believed = hash.filter(|_| doubt.is_none());
        Some(Self {
            namespace: pod.namespace()?,
            name: pod.name_any(),
            runtime_uid: believed.cloned().or_else(|| pod.uid())?,
            annotation: annotation::sidecars_in(pod.annotations())?.to_owned(),
            doubt,
            deleted: believed.is_some() && pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// Why a pod with this hash is not believed to be a static pod's copy.
fn doubt(pod: &PartialObjectMeta<Pod>, hash: &str, trusted: &[String]) -> Option<String> {
    let is_hash = hash.len() == HASH && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let namespace = pod.namespace().unwrap_or_default();
    let why = if !is_hash {
        format!("its value is not a kubelet's hash, {HASH} of 0-9 a-f")
    } else if !pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "Node") {
        "no node owns the pod".to_owned()
    } else if !trusted.contains(&namespace) {
        format!(
            "static pods of the namespace {namespace:?} are served only if control.staticPodNamespaces of the chart names it"
        )
    } else {
        return None;
    };
    Some(format!("the annotation {MIRROR} says that this is a static pod's copy, and is not believed: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn seen(change: impl FnOnce(&mut Value)) -> Seen {
        let mut metadata = json!({
            "name": "proxy-a", "namespace": "kube-system", "uid": "0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77",
            "annotations": {"kubernetes.io/config.mirror": HASH, "pillion.dev/sidecars": "clock=8081"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n", "controller": true}],
        });
        change(&mut metadata);
        let pod = json!({"apiVersion": "v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        Seen::of(&serde_json::from_value(pod).unwrap(), &["kube-system".to_owned()]).unwrap()
    }

    #[test]
    fn a_mirror_pod_is_believed_only_where_it_can_be_a_kubelets() {
        let real = seen(|_| {});
        assert_eq!((real.runtime_uid.as_str(), real.doubt), (HASH, None));
        let doubted = |change: &dyn Fn(&mut Value)| {
            let seen = seen(change);
            assert_eq!(seen.runtime_uid, "0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77", "it is who the API says it is");
            seen.doubt.unwrap()
        };
        let hashes = [
            // Another pod's UID, with and without its dashes, as systemd's groups have it, and as a pod of the API cannot have it.
            "9d2a3c1e-6b7e-4a4f-9f3e-0b6f2d9a5b77",
            "9d2a3c1e_6b7e_4a4f_9f3e_0b6f2d9a5b77",
            "0123456789ABCDEF0123456789ABCDEF",
            "0123456789abcdef0123456789abcde",
            "0123456789abcdef0123456789abcdef0",
            "",
        ];
        for hash in hashes {
            let why = doubted(&|pod| pod["annotations"]["kubernetes.io/config.mirror"] = json!(hash));
            assert!(why.contains("not a kubelet's hash, 32 of 0-9 a-f"), "{hash}: {why}");
        }
        assert!(doubted(&|pod| pod["ownerReferences"] = json!([])).contains("no node owns the pod"));
        assert!(doubted(&|pod| pod["ownerReferences"][0]["controller"] = json!(false)).contains("no node owns"));
        let why = doubted(&|pod| pod["namespace"] = json!("shop"));
        assert!(why.contains("the namespace \"shop\"") && why.contains("control.staticPodNamespaces"), "{why}");
    }

    #[test]
    fn only_a_static_pods_copy_is_gone_as_soon_as_it_is_deleted() {
        let delete = |pod: &mut Value| pod["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(seen(delete).deleted);
        let ordinary = seen(|pod| {
            delete(pod);
            pod["annotations"].as_object_mut().unwrap().remove("kubernetes.io/config.mirror");
        });
        assert!(!ordinary.deleted && ordinary.doubt.is_none(), "its preStop hooks run");
    }
}
