//! What there is of us in a cluster. What may not be looked at is said so, and keeps nobody from the rest.

use http::{Request, header::DATE};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{Event, Node, Pod},
        node::v1::RuntimeClass,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::version::Info,
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{Api, Client, CustomResourceExt, ResourceExt, api::ListParams, client::Body};
use pillion_protocol::annotation::is_ours;

use super::workloads::{self, Workload};
use crate::{
    leader::LEASE,
    resource::{ClusterComponent, Component},
    watch::LIVING,
};

/// Objects that one answer has.
const PAGE: u32 = 500;

/// Something that was looked at, or why it could not be.
pub type Looked<T> = Result<T, String>;

/// Where the release is.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "place", multiple = true)]
pub struct Place {
    /// The namespace of control and the agent
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "pillion-system")]
    pub namespace: String,
    /// The DaemonSet of the agent
    #[arg(long, value_name = "NAME", default_value = "pillion-agent")]
    pub agent_daemonset: String,
    /// The Deployment of control
    #[arg(long, value_name = "NAME", default_value = "pillion-control")]
    pub control_deployment: String,
}

/// What there is in a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it was looked for.
    pub place: Place,
    /// When, as the API server says.
    pub now: Timestamp,
    /// The API server's version.
    pub version: Info,
    /// The definitions of our resources that are there.
    pub definitions: Looked<Vec<String>>,
    /// Control.
    pub control: Looked<Option<Deployment>>,
    /// Which replica serves.
    pub lease: Looked<Option<Lease>>,
    /// The agent.
    pub agent: Looked<Option<DaemonSet>>,
    /// The agent's pods.
    pub agents: Looked<Vec<Pod>>,
    /// What the kubelet says of those that are not ready.
    pub agent_events: Looked<Vec<Event>>,
    /// All nodes.
    pub nodes: Looked<Vec<Node>>,
    /// How pods may be run.
    pub runtime_classes: Looked<Vec<RuntimeClass>>,
    /// Pods that have not ended, and have annotations, labels or a readiness gate of ours.
    pub pods: Looked<Vec<Pod>>,
    /// What makes pods and has the same, by kind.
    pub workloads: Vec<(&'static str, Looked<Vec<Workload>>)>,
    /// Components of namespaces.
    pub components: Looked<Vec<Component>>,
    /// Components of the cluster.
    pub cluster_components: Looked<Vec<ClusterComponent>>,
}

impl Cluster {
    /// Looks at everything.
    ///
    /// # Errors
    ///
    /// The API server cannot be reached at all.
    pub async fn look(client: &Client, place: Place) -> kube::Result<Self> {
        let (version, now) = tokio::try_join!(client.apiserver_version(), now(client))?;
        let namespace = &place.namespace;
        let agent: Looked<Option<DaemonSet>> =
            one(&Api::namespaced(client.clone(), namespace), &place.agent_daemonset).await;
        let selector = agent.as_ref().ok().and_then(|agent| labels(agent.as_ref()?)).unwrap_or_default();
        let in_namespace = Api::<Pod>::namespaced(client.clone(), namespace);
        let living = ListParams::default().fields(LIVING);
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        let there = async || {
            let mut there = Vec::new();
            for name in [Component::crd_name(), ClusterComponent::crd_name()] {
                there.extend(one(&definitions, name).await?.map(|found| found.name_any()));
            }
            Ok(there)
        };
        Ok(Self {
            now,
            version,
            definitions: there().await,
            control: one(&Api::namespaced(client.clone(), namespace), &place.control_deployment).await,
            lease: one(&Api::namespaced(client.clone(), namespace), LEASE).await,
            agent_events: all(
                &Api::namespaced(client.clone(), namespace),
                ListParams::default().fields("involvedObject.kind=Pod,reason=Unhealthy"),
                |_| true,
            )
            .await,
            agents: all(&in_namespace, ListParams::default().labels(&selector), |_| true).await,
            agent,
            nodes: all(&Api::all(client.clone()), ListParams::default(), |_| true).await,
            runtime_classes: all(&Api::all(client.clone()), ListParams::default(), |_| true).await,
            pods: all(&Api::all(client.clone()), living, is_pod_ours).await,
            workloads: workloads::look(client).await,
            components: all(&Api::all(client.clone()), ListParams::default(), |_| true).await,
            cluster_components: all(&Api::all(client.clone()), ListParams::default(), |_| true).await,
            place,
        })
    }
}

fn is_pod_ours(pod: &Pod) -> bool {
    let gates = pod.spec.iter().filter_map(|spec| spec.readiness_gates.as_ref()).flatten();
    let mut gates = gates.map(|gate| &gate.condition_type);
    pod.annotations().keys().chain(pod.labels().keys()).any(|key| is_ours(key)) || gates.any(|gate| is_ours(gate))
}

/// What the API server's clock says: those who write there have the cluster's time, whoever asks may have another.
async fn now(client: &Client) -> kube::Result<Timestamp> {
    let request = Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
    let answer = client.send(request).await?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
    let told = date.and_then(|date| rfc2822::parse(date).ok());
    Ok(told.map_or_else(Timestamp::now, |told| told.timestamp()))
}

/// By what a DaemonSet knows its pods.
fn labels(agent: &DaemonSet) -> Option<String> {
    let labels = agent.spec.as_ref()?.selector.match_labels.as_ref()?;
    Some(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

async fn one<K>(api: &Api<K>, name: &str) -> Looked<Option<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.get_opt(name).await.map_err(|error| error.to_string())
}

pub(super) async fn all<K>(api: &Api<K>, how: ListParams, is_one: impl Fn(&K) -> bool) -> Looked<Vec<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let (mut found, mut how) = (Vec::new(), how.limit(PAGE));
    loop {
        let page = api.list(&how).await.map_err(|error| error.to_string())?;
        found.extend(page.items.into_iter().filter(&is_one));
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => how = how.continue_token(&next),
            _ => return Ok(found),
        }
    }
}
