//! What makes pods, as far as it has something of ours in its metadata or in that of its pods.

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{Namespace, PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use pillion_protocol::annotation::is_ours;

use super::cluster::{Looked, all};
use crate::strays::Keys;

/// Where most workloads have their pods' metadata.
const TEMPLATE: &str = "spec.template.metadata";

/// Something that makes pods, or has them.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Its kind, namespace and name.
    pub about: String,
    /// What it says itself; with what the jobs say that it makes, if it does.
    pub own: Vec<Said>,
    /// What its pods say, if it is what makes them.
    pub template: Option<Said>,
    /// Where they say it.
    pub path: &'static str,
    /// Conditions without which its pods are not ready.
    pub gates: Vec<String>,
}

/// What metadata say that may be for us.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The annotations.
    pub annotations: Keys,
    /// The labels.
    pub labels: Keys,
}

impl Said {
    fn new(metadata: &ObjectMeta) -> Self {
        let keys = |keys: &Option<Keys>| keys.clone().unwrap_or_default();
        Self { annotations: keys(&metadata.annotations), labels: keys(&metadata.labels) }
    }

    fn is_ours(&self) -> bool {
        self.annotations.keys().chain(self.labels.keys()).any(|key| is_ours(key))
    }
}

impl Workload {
    fn new(kind: &str, own: &ObjectMeta, template: Option<&PodTemplateSpec>) -> Self {
        let place = own.namespace.iter().chain(&own.name).map(String::as_str).collect::<Vec<_>>().join("/");
        let said = |template: &PodTemplateSpec| template.metadata.as_ref().map(Said::new).unwrap_or_default();
        let gates = template.and_then(|template| template.spec.as_ref()?.readiness_gates.as_ref());
        Self {
            about: format!("{kind} {place}"),
            own: vec![Said::new(own)],
            template: template.map(said),
            path: TEMPLATE,
            gates: gates.into_iter().flatten().map(|gate| gate.condition_type.clone()).collect(),
        }
    }

    fn is_ours(&self) -> bool {
        self.own.iter().chain(&self.template).any(Said::is_ours) || self.gates.iter().any(|gate| is_ours(gate))
    }
}

/// Looks at all of them, each kind for itself: somebody may see some of them only. Those that another makes have its metadata.
pub(super) async fn look(client: &Client) -> Vec<(&'static str, Looked<Vec<Workload>>)> {
    vec![
        of_kind(client, |of: &Deployment| Some(&of.spec.as_ref()?.template)).await,
        of_kind(client, |of: &StatefulSet| Some(&of.spec.as_ref()?.template)).await,
        of_kind(client, |of: &DaemonSet| Some(&of.spec.as_ref()?.template)).await,
        of_kind(client, |of: &ReplicaSet| of.spec.as_ref()?.template.as_ref()).await,
        of_kind(client, |of: &ReplicationController| of.spec.as_ref()?.template.as_ref()).await,
        of_kind(client, |of: &Job| Some(&of.spec.as_ref()?.template)).await,
        cron_jobs(client).await,
        of_kind(client, |_: &Namespace| None).await,
    ]
}

async fn of_kind<K>(
    client: &Client,
    template: impl Fn(&K) -> Option<&PodTemplateSpec>,
) -> (&'static str, Looked<Vec<Workload>>)
where
    K: Resource<DynamicType = ()> + k8s_openapi::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let workload = |of: &K| Workload::new(K::KIND, of.meta(), template(of));
    (K::KIND, listed(client, workload).await)
}

async fn cron_jobs(client: &Client) -> (&'static str, Looked<Vec<Workload>>) {
    let workload = |of: &CronJob| {
        let job = of.spec.as_ref().map(|spec| &spec.job_template);
        let template = job.and_then(|job| Some(&job.spec.as_ref()?.template));
        let mut workload = Workload::new("CronJob", &of.metadata, template);
        workload.own.extend(job.and_then(|job| job.metadata.as_ref()).map(Said::new));
        workload.path = "spec.jobTemplate.spec.template.metadata";
        workload
    };
    ("CronJob", listed(client, workload).await)
}

/// All of a kind that have something of ours and are not made by another.
async fn listed<K>(client: &Client, workload: impl Fn(&K) -> Workload) -> Looked<Vec<Workload>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let is_made = |of: &K| of.owner_references().iter().any(|owner| owner.controller == Some(true));
    let is_one = |of: &K| !is_made(of) && workload(of).is_ours();
    let found = all(&Api::<K>::all(client.clone()), ListParams::default(), is_one).await?;
    Ok(found.iter().map(&workload).collect())
}
