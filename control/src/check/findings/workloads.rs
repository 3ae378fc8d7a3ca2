//! What makes pods: what it says where nothing reads it.

use pillion_protocol::annotation::{self, SIDECARS};

use super::{Cluster, Finding, gates, seen};
use crate::{
    check::{Said, Workload},
    strays::{self, Stray},
};

pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
    let of_kind = |(kind, looked)| {
        seen(&format!("what each {kind} says"), looked, |all: &Vec<Workload>| all.iter().flat_map(of_one).collect())
    };
    cluster.workloads.iter().map(|(kind, looked)| (kind, looked)).flat_map(of_kind).collect()
}

fn of_one(of: &Workload) -> Vec<Finding> {
    let about = || of.about.clone();
    let Some(template) = &of.template else {
        // Pods that somebody has made otherwise may be as they should.
        let advice = format!(
            "sidecars are named in the annotation {SIDECARS} of each pod, or of the template that it is made of"
        );
        let own = of.own.iter().flat_map(|own| strays::of_other(&own.annotations, &own.labels));
        return own.map(|stray| Finding::warning(about(), stray.found(), advice.clone())).collect();
    };
    let names = annotation::sidecars_in(&template.annotations).is_some();
    let finding = if names { Finding::warning } else { Finding::problem };
    let own = of.own.iter().flat_map(|own| {
        let strays = strays::of_other(&own.annotations, &own.labels).into_iter();
        strays.filter(|stray| !is_there_too(stray, own, template))
    });
    let own = own.map(|stray| {
        let advice = format!("sidecars are named in the annotation {SIDECARS} of its pods: {}.annotations", of.path);
        finding(about(), format!("{} of its own", stray.found()), advice)
    });
    let of_pods = strays::of_pod(&template.annotations, &template.labels).into_iter();
    let of_pods = of_pods.map(|stray| finding(about(), format!("{} of its pods", stray.found()), stray.advice()));
    own.chain(of_pods).chain(gates::findings(&of.about, &of.gates, names)).collect()
}

/// What is written at everything, as kustomize does it, is where it belongs, too, or is told there.
fn is_there_too(stray: &Stray, own: &Said, template: &Said) -> bool {
    match stray {
        Stray::Annotation(key) => {
            let text = own.annotations.get(&**key);
            text.is_some() && text == template.annotations.get(&**key)
        }
        Stray::Label(key) => template.labels.contains_key(&**key),
        Stray::WaitAlone => false,
    }
}
