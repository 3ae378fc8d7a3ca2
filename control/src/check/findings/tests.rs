use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::check::{Place, Said, Workload};

fn read<T: serde::de::DeserializeOwned>(text: Value) -> T {
    serde_json::from_value(text).unwrap()
}

/// One where nothing is wrong.
fn well() -> Cluster {
    let now: k8s_openapi::jiff::Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
    let node = json!({"metadata": {"name": "a"}, "status": {"nodeInfo": {
        "kernelVersion": "6.8.0-31-generic", "containerRuntimeVersion": "containerd://1.7.2", "operatingSystem": "linux",
        "architecture": "amd64", "bootID": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
    }}});
    let agent = json!({"metadata": {"name": "pillion-agent-a", "uid": "u"}, "spec": {"nodeName": "a", "containers": []}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let status = json!({
        "currentNumberScheduled": 1, "desiredNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1, "updatedNumberScheduled": 1,
    });
    let template = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "pillion:1"}]}});
    Cluster {
        place: Place {
            namespace: "pillion-system".into(),
            agent_daemonset: "pillion-agent".into(),
            control_deployment: "pillion-control".into(),
        },
        now,
        version: read(json!({
            "buildDate": "", "compiler": "", "gitCommit": "", "gitTreeState": "", "gitVersion": "v1.34.4", "goVersion": "", "major": "1",
            "minor": "34", "platform": "",
        })),
        definitions: Ok(vec!["components.pillion.dev".into(), "clustercomponents.pillion.dev".into()]),
        control: Ok(Some(read(
            json!({"metadata": {}, "spec": {"replicas": 2, "selector": {}, "template": template}, "status": {"readyReplicas": 2}}),
        ))),
        lease: Ok(Some(read(
            json!({"metadata": {}, "spec": {"holderIdentity": "control-0", "renewTime": "2026-01-01T00:00:08.000000Z"}}),
        ))),
        agent: Ok(Some(read(
            json!({"metadata": {}, "spec": {"selector": {}, "template": template}, "status": status}),
        ))),
        agents: Ok(vec![read(agent)]),
        agent_events: Ok(vec![
            event("Readiness probe failed: it begins", "2026-01-01T00:00:01Z"),
            event(
                "Readiness probe failed: pillion-keeper: the entry is not in 10-net.conflist",
                "2026-01-01T00:00:03Z",
            ),
        ]),
        nodes: Ok(vec![read(node)]),
        runtime_classes: Ok(vec![read(json!({"metadata": {"name": "sandboxed"}, "handler": "runsc"}))]),
        pods: Ok(vec![pod("clock=8081", json!({}))]),
        workloads: vec![("Deployment", Ok(vec![workload("Deployment shop/cart", &["sidecars"], &["sidecars"])]))],
        components: Ok(vec![]),
        cluster_components: Ok(vec![component("Ready", "True", "Ready", "1 nodes serve it")]),
    }
}

fn pod(sidecars: &str, more: Value) -> Pod {
    let mut spec = json!({"containers": []});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let metadata = json!({"name": "cart", "namespace": "shop", "annotations": {"pillion.dev/sidecars": sidecars}});
    read(json!({"metadata": metadata, "spec": spec}))
}

/// Something that makes pods, with annotations of its own and of its pods.
fn workload(about: &str, own: &[&str], template: &[&str]) -> Workload {
    let said = |keys: &[&str]| Said {
        annotations: keys.iter().map(|key| (format!("pillion.dev/{key}"), "clock=8081".into())).collect(),
        ..Said::default()
    };
    let (own, template) = (vec![said(own)], Some(said(template)));
    Workload { about: about.into(), own, template, path: "spec.template.metadata", gates: Vec::new() }
}

fn event(message: &str, at: &str) -> k8s_openapi::api::core::v1::Event {
    read(json!({"metadata": {}, "involvedObject": {"uid": "u"}, "message": message, "lastTimestamp": at}))
}

fn component(kind: &str, status: &str, reason: &str, message: &str) -> crate::resource::ClusterComponent {
    let condition =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ""});
    read(json!({
        "apiVersion": "pillion.dev/v1alpha1", "kind": "ClusterComponent", "metadata": {"name": "clock"},
        "spec": {"image": "r.example/clock:1"}, "status": {"conditions": [condition]},
    }))
}

#[test]
fn where_nothing_is_wrong_nothing_is_said_to_be() {
    let findings = well().findings();
    assert!(findings.iter().all(|finding| finding.level == Level::Ok && finding.advice.is_none()), "{findings:#?}");
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    type Change = fn(&mut Cluster);
    let node = |cluster: &mut Cluster, kernel: &str, runtime: &str| {
        for node in cluster.nodes.iter_mut().flatten() {
            let info = node.status.as_mut().unwrap().node_info.as_mut().unwrap();
            (info.kernel_version, info.container_runtime_version) = (kernel.into(), runtime.into());
        }
    };
    let table: [(Change, Level, &str); 25] = [
        (
            |of| {
                for component in of.cluster_components.iter_mut().flatten() {
                    component.spec.access = Some(crate::resource::Access::default());
                }
            },
            Level::Problem,
            "it may not have clock",
        ),
        (|of| of.version.git_version = "v1.29.0".into(), Level::Problem, "v1.29.0"),
        (|of| of.definitions = Ok(vec![]), Level::Problem, "0 of 2"),
        (|of| of.control = Ok(None), Level::Problem, "there is no Deployment \"pillion-control\""),
        (|of| of.control = Err("forbidden".into()), Level::Unknown, "forbidden"),
        (|of| of.lease = Ok(None), Level::Problem, "there is none"),
        (|of| of.now = "2026-01-01T00:10:00Z".parse().unwrap(), Level::Problem, "has not renewed its Lease for 592 s"),
        (|of| of.agent = Ok(None), Level::Problem, "there is no DaemonSet \"pillion-agent\""),
        (|of| of.agents = Ok(vec![]), Level::Warning, "nodes without a ready agent: a"),
        (
            |of| {
                let agent = &mut of.agents.as_mut().unwrap()[0];
                agent.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "False".into();
            },
            Level::Problem,
            "the agent on a: Readiness probe failed: pillion-keeper: the entry is not in 10-net.conflist",
        ),
        (|of| of.agents = Err("no answer".into()), Level::Unknown, "nodes without a ready agent: no answer"),
        (
            |of| {
                let agent = of.agent.as_mut().unwrap().as_mut().unwrap();
                let pod = agent.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
                *pod = read(json!({
                    "initContainers": [{"name": "plugin"}, {"name": "remove"}], "containers": [{"name": "stay"}],
                }));
            },
            Level::Problem,
            "taken off the nodes",
        ),
        (
            |of| {
                let agent = of.agent.as_mut().unwrap().as_mut().unwrap();
                agent.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image =
                    Some("pillion:2".into());
            },
            Level::Warning,
            "control is of pillion:1, the agent of pillion:2",
        ),
        (
            |of| {
                of.runtime_classes = Err("no answer".into());
                of.pods = Ok(vec![pod("clock=8081", json!({"runtimeClassName": "sandboxed"}))]);
            },
            Level::Unknown,
            "its runtime class: no answer",
        ),
        (
            |of| {
                of.pods = Ok(vec![pod("clock=8081, other=8082", json!({}))]);
                of.cluster_components.as_mut().unwrap()[0].spec.access = Some(crate::resource::Access::default());
            },
            Level::Problem,
            "it may not have clock",
        ),
        (|of| of.pods = Ok(vec![pod("clock", json!({}))]), Level::Problem, "\"clock\""),
        (|of| of.pods = Ok(vec![pod("clock=8081", json!({"hostNetwork": true}))]), Level::Problem, "hostNetwork"),
        (
            |of| of.pods = Ok(vec![pod("clock=8081", json!({"runtimeClassName": "sandboxed"}))]),
            Level::Problem,
            "\"sandboxed\"",
        ),
        (
            |of| of.pods = Ok(vec![pod("clock=8081", json!({"runtimeClassName": "kata-qemu"}))]),
            Level::Problem,
            "\"kata-qemu\"",
        ),
        (|of| of.pods = Ok(vec![pod("other=8081", json!({}))]), Level::Problem, "it names what is not there: other"),
        (
            |of| of.cluster_components = Ok(vec![component("Ready", "False", "Failed", "a: no such image")]),
            Level::Problem,
            "Failed: a: no such image",
        ),
        (
            |of| of.cluster_components = Ok(vec![component("Ready", "False", "Preparing", "0 of 1")]),
            Level::Warning,
            "Preparing",
        ),
        (|of| of.cluster_components = Ok(vec![component("Ready", "Unknown", "NotBound", "")]), Level::Ok, ""),
        (
            |of| of.cluster_components = Ok(vec![component("Resolved", "False", "ImageRefused", "a tar")]),
            Level::Problem,
            "ImageRefused: a tar",
        ),
        (
            |of| of.cluster_components = Ok(vec![component("Resolved", "False", "Unread", "HTTP 401")]),
            Level::Warning,
            "Unread: HTTP 401",
        ),
    ];
    for (change, level, expected) in table {
        let mut cluster = well();
        change(&mut cluster);
        let findings = cluster.findings();
        let worst = findings.iter().max_by_key(|finding| finding.level).unwrap();
        assert!(worst.level == level && worst.to_string().contains(expected), "{expected}: {findings:#?}");
    }
    for (kernel, runtime, level) in [
        ("5.10.0-28-amd64", "containerd://1.7.2", Level::Problem),
        ("5.15.0-91-generic", "containerd://1.7.2", Level::Warning),
        ("6.8.0", "docker://24.0.7", Level::Warning),
        ("6.8.0", "cri-o://1.28.4", Level::Warning),
        ("6.8.0", "cri-o://1.31.0", Level::Ok),
    ] {
        let mut cluster = well();
        node(&mut cluster, kernel, runtime);
        let worst = cluster.findings().into_iter().map(|finding| finding.level).max();
        assert_eq!(worst, Some(level), "{kernel} {runtime}");
    }
}

#[test]
fn what_stands_where_nothing_reads_it_is_found_with_where_it_belongs() {
    let gate = |gate: &str, template: &[&str]| Workload {
        gates: vec!["other".into(), gate.into()],
        ..workload("Deployment shop/cart", &[], template)
    };
    let labelled = |own: &[&str], template: &[&str]| {
        let mut workload = workload("StatefulSet shop/cart", &[], &["sidecars"]);
        let keys = |keys: &[&str]| keys.iter().map(|key| (format!("pillion.dev/{key}"), String::new())).collect();
        workload.own[0].labels = keys(own);
        workload.template.as_mut().unwrap().labels = keys(template);
        workload
    };
    let cron_job =
        Workload { path: "spec.jobTemplate.spec.template.metadata", ..workload("CronJob shop/a", &["sidecars"], &[]) };
    let mut otherwise = workload("Deployment shop/cart", &["sidecars"], &["sidecars"]);
    otherwise.own[0].annotations.values_mut().for_each(|text| *text = "clock=9999".into());
    let namespace = Workload { template: None, ..workload("Namespace shop", &["inject"], &[]) };
    let table = [
        (workload("Deployment shop/cart", &[], &["sidecars", "wait"]), &[][..]),
        (
            workload("Deployment shop/cart", &["sidecars"], &[]),
            &[
                "PROBLEM  Deployment shop/cart: nothing reads the annotation pillion.dev/sidecars of its own",
                "spec.template.metadata.annotations",
            ],
        ),
        (otherwise, &["warning  Deployment shop/cart: nothing reads the annotation pillion.dev/sidecars of its own"]),
        (cron_job, &["PROBLEM  CronJob shop/a: ", "spec.jobTemplate.spec.template.metadata.annotations"]),
        (
            workload("Job shop/a", &[], &["sidecar"]),
            &[
                "PROBLEM  Job shop/a: nothing reads the annotation pillion.dev/sidecar of its pods",
                "those of a pod are",
            ],
        ),
        (
            workload("Job shop/a", &[], &["wait"]),
            &["PROBLEM", "pillion.dev/wait says nothing without pillion.dev/sidecars"],
        ),
        (labelled(&["x"], &[]), &["warning  StatefulSet shop/cart: nothing reads the label pillion.dev/x of its own"]),
        (
            labelled(&["x"], &["x"]),
            &["warning  StatefulSet shop/cart: nothing reads the label pillion.dev/x of its pods"],
        ),
        (gate("pillion.dev/sidecars", &["sidecars"]), &[]),
        (
            gate("pillion.dev/sidecars", &[]),
            &["PROBLEM", "its readiness gate pillion.dev/sidecars opens when sidecars are served, and it names none"],
        ),
        (
            gate("pillion.dev/sidecar", &["sidecars"]),
            &["PROBLEM", "nothing opens its readiness gate pillion.dev/sidecar"],
        ),
        (
            namespace,
            &[
                "warning  Namespace shop: nothing reads the annotation pillion.dev/inject",
                "of each pod, or of the template",
            ],
        ),
    ];
    for (workload, expected) in table {
        let cluster = Cluster { workloads: vec![("of a kind", Ok(vec![workload]))], ..well() };
        let findings = cluster.findings().into_iter().filter(|finding| finding.level != Level::Ok);
        let found: Vec<_> = findings.map(|finding| finding.to_string()).collect();
        assert_eq!(found.len(), usize::from(!expected.is_empty()), "{expected:?}: {found:?}");
        assert!(expected.iter().all(|expected| found[0].contains(expected)), "{expected:?}: {found:?}");
    }
    let cluster = Cluster { workloads: vec![("Job", Err("jobs.batch is forbidden".into()))], ..well() };
    let findings = cluster.findings();
    assert!(
        findings
            .iter()
            .any(|of| of.level == Level::Unknown
                && of.to_string().contains("what each Job says: jobs.batch is forbidden"))
    );
}

#[test]
fn what_a_pod_says_in_vain_is_found() {
    let said = |annotations: Value, labels: Value, spec: Value| -> Pod {
        let mut pod = json!({"metadata": {"name": "cart", "namespace": "shop", "annotations": annotations, "labels": labels}, "spec": {"containers": []}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        read(pod)
    };
    let none = || json!({});
    let clock = || json!({"pillion.dev/sidecars": "clock=8081"});
    let port = || json!({"containers": [{"name": "main", "ports": [{"containerPort": 8081}]}]});
    let mut ready = said(clock(), none(), port());
    ready.status = Some(read(json!({"conditions": [{"type": "Ready", "status": "True"}]})));
    let gate = || json!({"readinessGates": [{"conditionType": "pillion.dev/sidecars"}]});
    let table = [
        (said(clock(), none(), gate()), ""),
        (
            said(json!({"pillion.dev/sidecar": "clock=8081"}), none(), none()),
            "PROBLEM  pod shop/cart: nothing reads the annotation pillion.dev/sidecar",
        ),
        (said(none(), clock(), none()), "PROBLEM  pod shop/cart: nothing reads the label pillion.dev/sidecars"),
        (
            said(clock(), json!({"pillion.dev/team": "a"}), none()),
            "warning  pod shop/cart: nothing reads the label pillion.dev/team",
        ),
        (said(none(), none(), gate()), "PROBLEM  pod shop/cart: its readiness gate"),
        (said(json!({"pillion.dev/sidecars": " "}), none(), none()), ""),
        (
            said(clock(), none(), port()),
            "PROBLEM  pod shop/cart: the sidecar clock and a container have one port: port 8081 is a containerPort of the container \"main\"",
        ),
        (ready, "warning  pod shop/cart: the sidecar clock and a container have one port"),
    ];
    for (pod, expected) in table {
        let cluster = Cluster { pods: Ok(vec![pod]), ..well() };
        let findings = cluster.findings().into_iter().filter(|finding| finding.level != Level::Ok);
        let found: Vec<_> = findings.map(|finding| finding.to_string()).collect();
        assert_eq!(found.len(), usize::from(!expected.is_empty()), "{expected}: {found:?}");
        assert!(found.iter().all(|found| found.starts_with(expected)), "{expected}: {found:?}");
    }
}
