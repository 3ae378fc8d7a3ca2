//! Pods that name sidecars.

use k8s_openapi::api::{
    core::v1::{Pod, PodSpec},
    node::v1::RuntimeClass,
};
use kube::ResourceExt;
use pillion_protocol::annotation::{self, SIDECARS, Sidecar, Sidecars};

use super::{Cluster, Finding, gates, named, release::is_ready, seen, unseen};
use crate::{catalog, claims, strays};

pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
    let about = "pods with sidecars";
    seen(about, &cluster.pods, |pods| {
        let found: Vec<_> = pods.iter().flat_map(|pod| of_one(cluster, pod)).collect();
        let named = pods.iter().filter(|pod| names(pod).is_some()).count();
        if found.is_empty() { vec![Finding::ok(about, format!("{named}"))] } else { found }
    })
}

/// What a pod's annotation says.
fn names(pod: &Pod) -> Option<&str> {
    annotation::sidecars_in(pod.annotations())
}

/// What is wrong with a pod's sidecars, and what it says in vain.
fn of_one(cluster: &Cluster, pod: &Pod) -> Vec<Finding> {
    let about = format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let names = names(pod).is_some();
    let finding = if names { Finding::warning } else { Finding::problem };
    let strays = strays::of_pod(pod.annotations(), pod.labels()).into_iter();
    let strays = strays.map(|stray| finding(about.clone(), stray.found(), stray.advice()));
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref()).into_iter().flatten();
    let gates: Vec<_> = gates.map(|gate| gate.condition_type.clone()).collect();
    strays.chain(gates::findings(&about, &gates, names)).chain(of_sidecars(cluster, pod, &about)).collect()
}

/// What keeps a pod from having what it names.
fn of_sidecars(cluster: &Cluster, pod: &Pod, about: &str) -> Vec<Finding> {
    let (Some(text), Some(spec)) = (names(pod), &pod.spec) else { return Vec::new() };
    let problem = |found: String, advice| vec![Finding::problem(about, found, advice)];
    match text.parse::<Sidecars>() {
        Err(error) => problem(format!("annotation {SIDECARS}: {error}"), "correct the annotation"),
        Ok(_) if spec.host_network == Some(true) => problem(
            "it has the node's network (hostNetwork)".into(),
            "only a pod with a network of its own can have sidecars",
        ),
        Ok(sidecars) => match (spec.runtime_class_name.as_deref(), &cluster.runtime_classes) {
            (Some(_), Err(error)) => unseen(&format!("{about}: its runtime class"), error),
            (Some(class), Ok(classes)) if isolates(classes, class) => problem(
                format!("its runtime class {class:?} keeps its network from the node"),
                "gVisor and Kata pods cannot have sidecars: use another runtime class",
            ),
            _ => [of_names(cluster, pod, about, &sidecars), of_ports(pod, spec, about, &sidecars)].concat(),
        },
    }
}

/// Ports that its containers say are theirs. A container that listens at the pod's address alone is ready all the same.
fn of_ports(pod: &Pod, spec: &PodSpec, about: &str, sidecars: &Sidecars) -> Vec<Finding> {
    let claims = claims::of(spec);
    let finding = if is_ready(pod) { Finding::warning } else { Finding::problem };
    let conflict = |sidecar: &Sidecar| {
        let claim = claims::of_port(&claims, sidecar)?;
        let found = format!("the sidecar {} and a container have one port: {claim}", sidecar.name);
        Some(finding(about.to_owned(), found, claim.advice()))
    };
    sidecars.iter().filter_map(conflict).collect()
}

/// What is not there, and what is not for the pod.
fn of_names(cluster: &Cluster, pod: &Pod, about: &str, sidecars: &Sidecars) -> Vec<Finding> {
    // That one of these could not be looked at is told with the components.
    let (Ok(components), Ok(of_cluster)) = (&cluster.components, &cluster.cluster_components) else {
        return Vec::new();
    };
    let namespace = pod.namespace();
    let shared = |name: &str| of_cluster.iter().find(|of| of.name_any() == name);
    let is_final = |name: &str| shared(name).is_some_and(|of| of.spec.is_final);
    let own = |name: &str| {
        !is_final(name) && components.iter().any(|of| of.name_any() == name && of.namespace() == namespace)
    };
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let is_closed = |name: &str| {
        let access = shared(name).and_then(|of| of.spec.access.as_ref());
        access.is_some_and(|access| !access.allows(namespace.as_deref().unwrap_or_default(), account))
    };
    // A component of its namespace comes before the cluster's, unless that is final.
    let others = || sidecars.iter().map(|sidecar| sidecar.name.as_str()).filter(|name| !own(name));
    let missing = named(others().filter(|name| shared(name).is_none()));
    let closed = named(others().filter(|name| is_closed(name)));
    let missing = (!missing.is_empty()).then(|| {
        let advice = "make a Component in its namespace, or a ClusterComponent, of that name";
        Finding::problem(about, format!("it names what is not there: {missing}"), advice)
    });
    let closed = (!closed.is_empty()).then(|| {
        let advice = "allow its namespace or its service account in spec.access, or correct the annotation";
        Finding::problem(about, format!("it may not have {closed}"), advice)
    });
    missing.into_iter().chain(closed).collect()
}

fn isolates(classes: &[RuntimeClass], class: &str) -> bool {
    let of_name = classes.iter().find(|of| of.name_any() == class);
    catalog::isolates(of_name.map_or(class, |of| &of.handler))
}
