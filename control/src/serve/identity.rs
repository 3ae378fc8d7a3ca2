//! Who a token's bearer is: a pod of our agent, on a node.
//!
//! Any pod can have a token with our audience made. So it is not enough that the API server knows the token: it must be of the agent's
//! service account, bound to a pod that lives and is the agent's DaemonSet's, and the node is that pod's. Nothing is taken from the
//! request but the token.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, header};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::{catalog::NodeName, control::Control, settings::Settings};

/// A pod of the agent, on a node, and for how long its token is good.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) node: NodeName,
    pub(super) pod_uid: String,
    pub(super) token: TokenHash,
    pub(super) lasts: Duration,
}

/// The SHA-256 of a token: enough to know it again.
pub type TokenHash = [u8; 32];

/// Why nobody is known to be behind a token.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// No token, or none that is good.
    #[error("{0}")]
    Nobody(String),
    /// It is somebody's who is not the agent.
    #[error("{0}")]
    Other(String),
    /// The API server does not answer.
    #[error("the API server does not say in time who this is")]
    Late,
    /// The API server cannot be asked.
    #[error("the API server cannot be asked who this is: {0}")]
    Unasked(kube::Error),
}

impl From<kube::Error> for IdentityError {
    fn from(error: kube::Error) -> Self {
        Self::Unasked(error)
    }
}

fn nobody<T>(why: impl Into<String>) -> Result<T, IdentityError> {
    Err(IdentityError::Nobody(why.into()))
}

fn other<T>(why: impl Into<String>) -> Result<T, IdentityError> {
    Err(IdentityError::Other(why.into()))
}

/// The token of a request.
pub(super) fn token(headers: &HeaderMap) -> Result<&str, IdentityError> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match value.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(token) if !token.is_empty() => Ok(token),
        _ => nobody("there is no bearer token"),
    }
}

pub(super) fn hash(token: &str) -> TokenHash {
    Sha256::digest(token).into()
}

/// How long the API server may take to say whose a token is.
const ANSWER: Duration = Duration::from_secs(10);

/// Finds out whose a token is.
pub(super) async fn identify(client: &Client, control: &Control, token: &str) -> Result<Identity, IdentityError> {
    // Strangers' tokens are as many as they like: they wait for each other only, unless they know of an agent's pod.
    let is_likely = pod_claimed(token).is_some_and(|uid| control.is_agent(&uid));
    let reviews = if is_likely { &control.likely_reviews } else { &control.reviews };
    let _room = reviews.acquire().await;
    timeout(ANSWER, ask(client, control, token)).await.unwrap_or(Err(IdentityError::Late))
}

async fn ask(client: &Client, control: &Control, token: &str) -> Result<Identity, IdentityError> {
    let settings = &control.settings;
    let spec = TokenReviewSpec { audiences: Some(vec![settings.audience.clone()]), token: Some(token.into()) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let review = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let claimed = claimed(review.status.unwrap_or_default(), settings)?;
    let pod = Api::<Pod>::namespaced(client.clone(), &settings.namespace).get_opt(&claimed.pod).await?;
    let node = node_of(pod.as_ref(), &claimed, settings)?;
    Ok(Identity {
        node: node.into(),
        pod_uid: claimed.pod_uid,
        token: hash(token),
        lasts: lasts(token, SystemTime::now()),
    })
}

/// What a token says of its bearer, as the API server has found it to be.
#[derive(Debug, PartialEq, Eq)]
struct Claimed {
    pod: String,
    pod_uid: String,
    /// Before Kubernetes 1.30 it is not in the token.
    node: Option<String>,
}

fn claimed(review: TokenReviewStatus, settings: &Settings) -> Result<Claimed, IdentityError> {
    if review.authenticated != Some(true) {
        return nobody(format!("the token is not good: {}", review.error.unwrap_or_else(|| "nobody knows it".into())));
    }
    // An API server that knows nothing of audiences would have checked none.
    if !review.audiences.unwrap_or_default().contains(&settings.audience) {
        return nobody(format!("the token is not for the audience {:?}", settings.audience));
    }
    let user = review.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let expected = format!("system:serviceaccount:{}:{}", settings.namespace, settings.agent_service_account);
    if username != expected {
        return other(format!("{username:?} is not the agent: expected {expected:?}"));
    }
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| {
        extra.get(&format!("authentication.kubernetes.io/{key}")).and_then(|values| values.first()).cloned()
    };
    match (one("pod-name"), one("pod-uid")) {
        (Some(pod), Some(pod_uid)) => Ok(Claimed { pod, pod_uid, node: one("node-name") }),
        _ => other("the token is bound to no pod: expected a projected one"),
    }
}

/// Whether these are the owners of a pod of the agent's DaemonSet.
pub(crate) fn is_of_agent(owners: &[OwnerReference], settings: &Settings) -> bool {
    owners.iter().any(|owner| {
        owner.controller == Some(true) && owner.kind == "DaemonSet" && owner.name == settings.agent_daemonset
    })
}

/// The node of the agent's pod that a token is bound to.
fn node_of(pod: Option<&Pod>, claimed: &Claimed, settings: &Settings) -> Result<String, IdentityError> {
    let name = &claimed.pod;
    let Some(pod) = pod.filter(|pod| pod.uid().as_ref() == Some(&claimed.pod_uid)) else {
        return other(format!("the pod {name:?} that the token is bound to is no more"));
    };
    if !is_of_agent(pod.owner_references(), settings) {
        return other(format!("the pod {name:?} is not of the DaemonSet {:?}", settings.agent_daemonset));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return other(format!("the pod {name:?} has ended"));
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    match (node, &claimed.node) {
        (Some(node), None) => Ok(node),
        (Some(node), Some(told)) if node == *told => Ok(node),
        (node, told) => other(format!("the pod {name:?} is on the node {node:?}, and the token says {told:?}")),
    }
}

/// What a token says of itself, which nobody has found to be true.
fn claims(token: &str) -> Option<Value> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// The UID of the pod that a token says it is bound to.
fn pod_claimed(token: &str) -> Option<String> {
    Some(claims(token)?.pointer("/kubernetes.io/pod/uid")?.as_str()?.to_owned())
}

/// For how long a token is good that the API server has just found good. One that does not say is asked for again soon.
fn lasts(token: &str, now: SystemTime) -> Duration {
    const UNSAID: Duration = Duration::from_secs(300);
    const LEAST: Duration = Duration::from_secs(60);
    let expires = claims(token).and_then(|claims| claims.get("exp")?.as_u64());
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The API server has just found it good, whatever our clock says.
    expires.map_or(UNSAID, |expires| Duration::from_secs(expires).saturating_sub(now).max(LEAST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        Settings::of_test(&["--namespace", "pillion-system"])
    }

    fn review(change: impl FnOnce(&mut Value)) -> Result<Claimed, IdentityError> {
        let mut status = json!({
            "authenticated": true, "audiences": ["pillion.dev/control"],
            "user": {"username": "system:serviceaccount:pillion-system:pillion-agent", "extra": {
                "authentication.kubernetes.io/pod-name": ["agent-x"],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
                "authentication.kubernetes.io/node-name": ["a"],
            }},
        });
        change(&mut status);
        claimed(serde_json::from_value(status).unwrap(), &settings())
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T, IdentityError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_token_is_the_agents_only_with_all_that_makes_it_so() {
        let claimed = review(|_| {}).unwrap();
        assert_eq!(claimed, Claimed { pod: "agent-x".into(), pod_uid: "u-1".into(), node: Some("a".into()) });
        let refused = |pointer: &'static str, value: Value| {
            refusal(review(|status| *status.pointer_mut(pointer).unwrap() = value))
        };
        assert!(refused("/authenticated", json!(false)).contains("not good"));
        assert!(refused("/audiences", json!(["other"])).contains("not for the audience \"pillion.dev/control\""));
        assert!(refused("/audiences", json!(null)).contains("not for the audience"));
        let stranger = "system:serviceaccount:shop:pillion-agent";
        assert!(refused("/user/username", json!(stranger)).contains("is not the agent"));
        assert!(refused("/user/extra", json!({})).contains("bound to no pod"));
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "agent-x", "uid": "u-1", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "pillion-agent", "uid": "d", "controller": true},
            ]},
            "spec": {"nodeName": "a", "containers": []}, "status": {"phase": "Running"},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_node_is_that_of_a_living_pod_of_the_daemonset() {
        let claimed =
            |node: Option<&str>| Claimed { pod: "agent-x".into(), pod_uid: "u-1".into(), node: node.map(Into::into) };
        let settings = settings();
        assert_eq!(node_of(Some(&pod(|_| {})), &claimed(Some("a")), &settings).unwrap(), "a");
        assert_eq!(node_of(Some(&pod(|_| {})), &claimed(None), &settings).unwrap(), "a", "before 1.30");
        let refused = |pod: Option<&Pod>| refusal(node_of(pod, &claimed(Some("a")), &settings));
        assert!(refused(None).contains("is no more"));
        assert!(refused(Some(&pod(|pod| pod["metadata"]["uid"] = json!("u-2")))).contains("is no more"));
        assert!(
            refused(Some(&pod(|pod| pod["metadata"]["ownerReferences"] = json!([])))).contains("not of the DaemonSet")
        );
        assert!(refused(Some(&pod(|pod| pod["status"]["phase"] = json!("Failed")))).contains("has ended"));
        assert!(refused(Some(&pod(|pod| pod["spec"]["nodeName"] = json!("b")))).contains("the token says"));
    }

    #[test]
    fn a_token_says_whose_it_is_before_anybody_is_asked() {
        let token = |claims: &str| format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let bound = token(r#"{"kubernetes.io": {"pod": {"name": "agent-x", "uid": "u-1"}}}"#);
        assert_eq!(pod_claimed(&bound).as_deref(), Some("u-1"));
        for other in [token("{}"), token("x"), "opaque".into(), String::new(), "a.b.c".into()] {
            assert_eq!(pod_claimed(&other), None, "{other}");
        }
    }

    #[test]
    fn a_token_lasts_until_it_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let token = |claims: &str| format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(lasts(&token(r#"{"exp": 1600}"#), now), Duration::from_secs(600));
        assert_eq!(lasts(&token(r#"{"exp": 900}"#), now), Duration::from_secs(60), "our clock is ahead");
        assert_eq!(lasts("opaque", now), Duration::from_secs(300));
    }
}
