//! What a cluster changes on the machine outside of its folder, and how all of it is undone.
//!
//! [`end`] needs nothing but the folder: so it also ends a cluster whose test was killed and could not do it itself.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    api::Kind,
    mount::{self, State},
    network::{self, CNI_CACHE, NAMESPACES, entries},
    sandbox,
};
use crate::process;

/// What the kubelet sets, and for a whole cluster a CNI plugin, so that pods reach each other through the node.
const SETTINGS: [&str; 7] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
];

/// Where the kubelet listens for device plugins, and links containers' logs, whatever it is told.
const KUBELET: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";
const LOGS: &str = "/var/log/containers";

/// The cluster's programs, besides plugins, which are in its folder.
const PROGRAMS: [&str; 10] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "coredns",
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
];

/// What is as it was before the cluster, by names in a file.
const BEFORE: &str = "before.json";

/// How long processes that were killed may take to be gone.
const END: Duration = Duration::from_secs(10);

/// Makes the node's link, and writes down in `folder` what has to be put back.
pub(super) fn prepare(folder: &Path, kind: Kind) -> Result<()> {
    ensure!(
        UnixStream::connect(KUBELET).is_err(),
        "a kubelet runs on this machine: it and a test's would be in each other's way"
    );
    if kind == Kind::Whole {
        network::has_no_services()?;
    }
    let settings: BTreeMap<_, _> = SETTINGS.iter().filter_map(|name| Some((*name, setting(name)?))).collect();
    fs::create_dir_all(NAMESPACES)?;
    let namespaces = mount::state(NAMESPACES);
    let before = json!({"settings": settings, "services": kind == Kind::Whole, "namespaces": namespaces.name()});
    fs::write(folder.join(BEFORE), before.to_string())?;
    // As on hosts with systemd: a container that mounts this folder sees namespaces that are made later.
    mount::share(NAMESPACES, namespaces)?;
    if kind == Kind::Whole {
        network::let_pods_through()?;
    }
    network::make_link()
}

/// Ends a cluster by its folder. Whatever is gone already is no fault.
pub(super) fn end(folder: &Path) {
    let bundles = sandbox::bundles(folder);
    let deadline = Instant::now() + END;
    end_processes(folder);
    for bundle in &bundles {
        remove_container(bundle, deadline);
    }
    network::remove();
    mount::remove_below(folder);
    put_back(folder);
    remove_traces(folder);
    _ = fs::remove_dir_all(folder);
}

/// Ends the programs that run in a folder.
pub(super) fn end_processes(folder: &Path) {
    let deadline = Instant::now() + END;
    loop {
        let left = processes(folder);
        for pid in &left {
            _ = process::signal(*pid, Signal::KILL);
        }
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The cluster's programs, and those that they started: each names the folder in its arguments.
fn processes(folder: &Path) -> Vec<u32> {
    let folder = folder.to_string_lossy().into_owned();
    let is_ours = |pid: &u32| {
        let arguments = process::arguments(*pid);
        let program = arguments.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        arguments.contains(&folder) && (PROGRAMS.contains(&name) || program.starts_with(&folder))
    };
    let pids = entries("/proc").into_iter().filter_map(|entry| entry.file_name()?.to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

/// Ends a container whose shim is gone, and removes what runc and the shim keep outside of the folder.
fn remove_container(bundle: &Path, deadline: Instant) {
    let Some(id) = bundle.file_name() else { return };
    let is_in_it = |pid: &u32| {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        cgroups.is_ok_and(|cgroups| cgroups.contains(&*id.to_string_lossy()))
    };
    if let Some(first) = sandbox::first_process(bundle).ok().filter(is_in_it) {
        _ = process::signal(first, Signal::KILL);
        while process::runs(first) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
    let socket = fs::read_to_string(bundle.join("address")).unwrap_or_default();
    _ = fs::remove_file(socket.trim_start_matches("unix://"));
}

/// Where the kubelet has pods' cgroups: in one hierarchy, or in one for each controller.
fn cgroups() -> Vec<PathBuf> {
    let mut roots = entries("/sys/fs/cgroup");
    roots.push("/sys/fs/cgroup".into());
    roots.into_iter().map(|root| root.join("kubepods")).collect()
}

/// Removes a cgroup with all in it, as far as no process is there.
fn remove_cgroup(cgroup: &Path) {
    for inner in entries(&cgroup.to_string_lossy()).iter().filter(|inner| inner.is_dir()) {
        remove_cgroup(inner);
    }
    _ = fs::remove_dir(cgroup);
}

/// Removes what the programs leave in folders that cannot be chosen, and these folders where nothing else is in them.
fn remove_traces(folder: &Path) {
    for link in entries(LOGS) {
        if fs::read_link(&link).is_ok_and(|to| to.starts_with(folder)) {
            _ = fs::remove_file(link);
        }
    }
    if UnixStream::connect(KUBELET).is_err() {
        _ = fs::remove_file(KUBELET);
    }
    let empty =
        [LOGS, CNI_CACHE, NAMESPACES, "/run/containerd/s", "/var/lib/kubelet/device-plugins"].map(PathBuf::from);
    let parents = ["/var/lib/cni", "/run/containerd", "/var/lib/kubelet"].map(PathBuf::from);
    for folder in empty.into_iter().chain(parents) {
        _ = fs::remove_dir(folder);
    }
    cgroups().iter().for_each(|cgroup| remove_cgroup(cgroup));
}

fn put_back(folder: &Path) {
    let before = fs::read(folder.join(BEFORE)).unwrap_or_default();
    let Ok(before) = serde_json::from_slice::<Value>(&before) else { return };
    if before.get("services") == Some(&json!(true)) {
        network::remove_services();
    }
    for (name, value) in before.get("settings").and_then(Value::as_object).into_iter().flatten() {
        if let Some(value) = value.as_str().filter(|value| setting(name).is_some_and(|now| now != *value)) {
            _ = fs::write(Path::new("/proc/sys").join(name), value);
        }
    }
    if let Some(state) = before.get("namespaces").and_then(Value::as_str).and_then(State::named) {
        mount::put_back(NAMESPACES, state);
    }
}

fn setting(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}
