//! Takes the agent off every node, before its DaemonSet is deleted; and the resources' definitions out of the cluster, where that is asked for.
//!
//! Only on a node can its CNI configuration be changed, so the DaemonSet itself does it: its pods become such that take the plugin off, remove
//! the agent's folders, and then wait to be deleted.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus},
    core::v1::{Container, PodSpec},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::wait::delete::delete_and_finalize,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::resource::{ClusterComponent, Component};

/// How often it is looked how far nodes are.
const LOOK: Duration = Duration::from_secs(1);

/// How the agent is taken off.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "taking-off", multiple = true)]
pub struct Uninstall {
    /// The namespace of the agent
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "pillion-system")]
    namespace: String,
    /// The DaemonSet of the agent
    #[arg(long, value_name = "NAME", default_value = "pillion-agent")]
    agent_daemonset: String,
    /// Also deletes the definitions of Component and ClusterComponent, and with them every component of the cluster
    #[arg(long)]
    crds: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Step {
    /// There is no agent.
    NoAgent {
        /// Where none is.
        namespace: String,
        /// What it would be called.
        daemonset: String,
    },
    /// Nodes that the agent was taken off.
    Nodes {
        /// So many.
        done: i32,
        /// Of so many.
        nodes: i32,
    },
    /// A definition was deleted.
    Deleted {
        /// Its name.
        definition: String,
        /// So many components went with it.
        components: usize,
    },
    /// A definition stays.
    Kept {
        /// Its name.
        definition: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent { namespace, daemonset } => {
                write!(
                    f,
                    "there is no DaemonSet {daemonset:?} in the namespace {namespace:?}: no node has an agent of it"
                )
            }
            Self::Nodes { done, nodes } => write!(f, "taken off {done} of {nodes} nodes"),
            Self::Deleted { definition, components } => {
                write!(f, "deleted the definition {definition}, and {components} of them with it")
            }
            Self::Kept { definition } => {
                write!(f, "the definition {definition} stays, with all of them; --crds deletes both")
            }
        }
    }
}

impl Uninstall {
    /// Takes the agent off every node, waits until that is done, and deletes the definitions, if that is wanted. Says each step.
    ///
    /// # Errors
    ///
    /// The API server refuses, or the DaemonSet is not the agent's.
    pub async fn run(&self, client: Client, mut say: impl FnMut(Step)) -> Result<()> {
        self.take_off(client.clone(), &mut say).await?;
        self.define_no_more::<Component>(&client, &mut say).await?;
        self.define_no_more::<ClusterComponent>(&client, &mut say).await
    }

    async fn define_no_more<K: CustomResourceExt>(&self, client: &Client, say: &mut impl FnMut(Step)) -> Result<()> {
        let definition = K::crd_name().to_owned();
        if !self.crds {
            say(Step::Kept { definition });
            return Ok(());
        }
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        if definitions.get_opt(&definition).await?.is_none() {
            return Ok(());
        }
        let resources =
            Api::<PartialObjectMeta<kube::core::DynamicObject>>::all_with(client.clone(), &K::api_resource());
        let components = resources.list_metadata(&ListParams::default()).await?.items.len();
        // It goes when the last of its components has.
        let gone = delete_and_finalize(definitions, &definition, &DeleteParams::default()).await;
        gone.with_context(|| format!("the definition {definition} cannot be deleted"))?;
        say(Step::Deleted { definition, components });
        Ok(())
    }

    /// Definitions are not deleted under an agent that is elsewhere.
    async fn ensure_no_other(&self, client: &Client) -> Result<()> {
        if !self.crds {
            return Ok(());
        }
        let agents = ListParams::default().labels("app.kubernetes.io/name=pillion,app.kubernetes.io/component=agent");
        let agents = Api::<DaemonSet>::all(client.clone()).list(&agents).await?.items;
        let elsewhere = agents.iter().filter_map(|agent| agent.metadata.namespace.as_deref()).collect::<Vec<_>>();
        ensure!(elsewhere.is_empty(), "there is an agent in {elsewhere:?}: say --namespace");
        Ok(())
    }

    async fn take_off(&self, client: Client, say: &mut impl FnMut(Step)) -> Result<()> {
        let name = &self.agent_daemonset;
        let api = Api::<DaemonSet>::namespaced(client.clone(), &self.namespace);
        let Some(agent) = api.get_opt(name).await? else {
            self.ensure_no_other(&client).await?;
            say(Step::NoAgent { namespace: self.namespace.clone(), daemonset: name.clone() });
            return Ok(());
        };
        let pod = agent.spec.and_then(|spec| spec.template.spec).context("the DaemonSet has no pods")?;
        let mut agent = if is_removal(&pod) {
            // Somebody has begun before.
            api.get(name).await?
        } else {
            let patch = removal(&pod).with_context(|| format!("the DaemonSet {name:?}"))?;
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?
        };
        let mut said = None;
        loop {
            let far = progress(agent.metadata.generation, agent.status.as_ref());
            if said != Some(far) {
                say(Step::Nodes { done: far.done, nodes: far.nodes });
                said = Some(far);
            }
            if far.complete {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
            match api.get_opt(name).await {
                Ok(Some(now)) => agent = now,
                Ok(None) => return Ok(()),
                Err(error) => tracing::warn!(%error, "it cannot be seen how far nodes are; it is tried again"),
            }
        }
    }
}

/// Whether pods are such already that take the agent off.
pub(crate) fn is_removal(pod: &PodSpec) -> bool {
    let names =
        |containers: &[Container]| containers.iter().map(|container| container.name.clone()).collect::<Vec<_>>();
    names(&pod.containers) == ["stay"]
        && names(pod.init_containers.as_deref().unwrap_or_default()) == ["plugin", "remove"]
}

/// A change of the DaemonSet: its containers become such that take the agent off their node. They have the image, the mounts and the rights of the
/// container that installs the plugin and of the one that makes folders.
fn removal(pod: &PodSpec) -> Result<Value> {
    let container = |containers: &[Container], name: &str| {
        containers
            .iter()
            .find(|container| container.name == name)
            .cloned()
            .with_context(|| format!("it has no container {name:?}"))
    };
    let cni = container(&pod.containers, "cni")?;
    let folders = container(pod.init_containers.as_deref().unwrap_or_default(), "folders")?;
    let args = cni.args.clone().unwrap_or_default();
    let places: Vec<_> =
        args.into_iter().filter(|arg| arg.starts_with("--bin-dir=") || arg.starts_with("--conf-dir=")).collect();
    ensure!(places.len() == 2, "its container \"cni\" does not say --bin-dir=… and --conf-dir=…");
    let becomes = |container: &Container, name: &str, command: &[&str], args: Vec<String>| {
        let mut container = container.clone();
        container.name = name.into();
        container.command = Some(command.iter().map(ToString::to_string).collect());
        container.args = Some(args);
        // No init container may have one.
        container.readiness_probe = None;
        // Another user's folders are removed by it, too.
        container.security_context.get_or_insert_default().capabilities.get_or_insert_default().add =
            Some(vec!["DAC_OVERRIDE".into()]);
        container
    };
    let plugin = becomes(&cni, "plugin", &["/pillion-keeper", "uninstall-cni"], places);
    let remove = becomes(&folders, "remove", &["/pillion-keeper", "remove-folders"], Vec::new());
    let stay = becomes(&folders, "stay", &["/pillion-keeper", "remove-folders"], vec!["--stay".into()]);
    Ok(json!({"spec": {
        // Nothing is handed over any more.
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
        "minReadySeconds": 0,
        "template": {"spec": {"initContainers": [plugin, remove], "containers": [stay]}},
    }}))
}

/// How far nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    done: i32,
    nodes: i32,
    complete: bool,
}

fn progress(generation: Option<i64>, status: Option<&DaemonSetStatus>) -> Progress {
    let Some(status) = status.filter(|status| status.observed_generation >= generation) else {
        return Progress { done: 0, nodes: 0, complete: false };
    };
    let nodes = status.desired_number_scheduled;
    // Ready is who has done both, and of the newer kind are only those.
    let done = status.updated_number_scheduled.unwrap_or_default().min(status.number_ready);
    Progress { done, nodes, complete: done >= nodes && status.number_misscheduled == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> PodSpec {
        serde_json::from_value(json!({
            "initContainers": [{"name": "folders", "image": "i", "args": ["--host-uid=1"], "volumeMounts": [{"name": "run", "mountPath": "/run/pillion"}]}],
            "containers": [
                {"name": "keeper", "image": "i"},
                {"name": "cni", "image": "i", "readinessProbe": {"periodSeconds": 5}, "args": ["--plugin=/pillion-cni", "--bin-dir=/b", "--conf-dir=/c", "--cni-socket=/s"]},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn pods_become_such_that_take_the_agent_off() {
        let patch = removal(&agent()).unwrap();
        let spec = &patch["spec"]["template"]["spec"];
        assert_eq!(spec["initContainers"][0]["args"], json!(["--bin-dir=/b", "--conf-dir=/c"]));
        assert!(spec["initContainers"][0].get("readinessProbe").is_none(), "the API server refuses it");
        assert_eq!(spec["initContainers"][1]["command"], json!(["/pillion-keeper", "remove-folders"]));
        assert_eq!(spec["initContainers"][1]["volumeMounts"][0]["name"], "run");
        assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][0]["args"], json!(["--stay"]));
        assert!(is_removal(&serde_json::from_value(spec.clone()).unwrap()), "nothing is left to be changed");
        assert!(!is_removal(&agent()));
    }

    #[test]
    fn a_daemonset_that_is_not_the_agents_is_left_alone() {
        let mut other = agent();
        other.containers.clear();
        assert!(removal(&other).unwrap_err().to_string().contains("no container \"cni\""));
    }

    #[test]
    fn it_is_complete_when_every_node_has_done_it() {
        let status = |observed, updated, ready| DaemonSetStatus {
            observed_generation: Some(observed),
            desired_number_scheduled: 3,
            updated_number_scheduled: Some(updated),
            number_ready: ready,
            ..DaemonSetStatus::default()
        };
        let complete = |status: DaemonSetStatus| progress(Some(2), Some(&status)).complete;
        assert!(!complete(status(1, 3, 3)), "it is still about what was before");
        assert!(!complete(status(2, 2, 3)) && !complete(status(2, 3, 2)));
        assert!(complete(status(2, 3, 3)));
    }
}
