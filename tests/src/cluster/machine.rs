//! What a cluster changes on the machine outside of its folder, and how all of it is undone.
//!
//! [`end`] needs nothing but the folder: so it also ends a cluster whose test was killed and could not do it itself.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{run, sandbox};
use crate::process;

/// The link of the node and its pods. There is one of this name on a machine.
pub(super) const BRIDGE: &str = "pillion-test0";
/// The CNI network's name, and the addresses in it.
pub(super) const NETWORK: &str = "pillion-test";
pub(super) const POD_ADDRESSES: &str = "10.213.77.0/24";
pub(super) const NODE_ADDRESS: &str = "10.213.77.1";

/// Where containerd puts pods' network namespaces.
const NAMESPACES: &str = "/run/netns";

/// What the kubelet sets.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Where the kubelet listens for device plugins, links containers' logs, and the CNI library keeps results, whatever they are told.
const KUBELET: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";
const LOGS: &str = "/var/log/containers";
const CNI_CACHE: &str = "/var/lib/cni/results";

/// The cluster's programs, besides plugins, which are in its folder.
const PROGRAMS: [&str; 6] = ["etcd", "kube-apiserver", "kubelet", "containerd", "containerd-shim-runc-v2", "runc"];

/// How long processes that were killed may take to be gone.
const END: Duration = Duration::from_secs(10);

/// Makes the node's link, and writes down in `folder` what has to be put back.
pub(super) fn prepare(folder: &Path) -> Result<()> {
    ensure!(
        UnixStream::connect(KUBELET).is_err(),
        "a kubelet runs on this machine: it and a test's would be in each other's way"
    );
    let settings: BTreeMap<_, _> = SETTINGS.iter().filter_map(|name| Some((*name, setting(name)?))).collect();
    fs::create_dir_all(NAMESPACES)?;
    let mounted = mounts().iter().any(|at| at == NAMESPACES);
    fs::write(folder.join("before.json"), json!({"settings": settings, "mounted": mounted}).to_string())?;
    if !mounted {
        // As on hosts with systemd: a container that mounts this folder sees namespaces that are made later.
        run(Command::new("mount").args(["--bind", "--make-rshared", NAMESPACES, NAMESPACES]))?;
    }
    // Not every kernel has dummy links; a bridge is one that it needs anyway.
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Ends a cluster by its folder. Whatever is gone already is no fault.
pub(super) fn end(folder: &Path) {
    let bundles = sandbox::bundles(folder);
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
    for bundle in &bundles {
        remove_container(bundle, deadline);
    }
    remove_network();
    for at in mounts().iter().rev().filter(|at| Path::new(at).starts_with(folder)) {
        _ = run(Command::new("umount").args(["--lazy", at]));
    }
    put_back(folder);
    remove_traces(folder);
    _ = fs::remove_dir_all(folder);
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

/// Removes pods' network namespaces and their links.
fn remove_network() {
    let beginning = format!("inet {}", POD_ADDRESSES.trim_end_matches("0/24"));
    for netns in entries(NAMESPACES) {
        let mut show = Command::new("nsenter");
        show.arg(format!("--net={}", netns.display())).args(["ip", "-4", "-oneline", "address"]);
        if run(&mut show).is_ok_and(|addresses| addresses.contains(&beginning)) {
            _ = run(Command::new("umount").arg("--lazy").arg(&netns));
            _ = fs::remove_file(netns);
        }
    }
    // Whoever holds a namespace open, as a keeper does, holds the other end of its link.
    for port in entries(&format!("/sys/class/net/{BRIDGE}/brif")) {
        if let Some(name) = port.file_name().and_then(|name| name.to_str()) {
            _ = ip(&["link", "delete", name]);
        }
    }
    _ = ip(&["link", "delete", BRIDGE]);
    remove_results();
}

/// Removes what the CNI library keeps of sandboxes that were in the network: a file for it, and one for their loopback device.
fn remove_results() {
    let files = entries(CNI_CACHE);
    let name = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let id = |name: String| Some(name.strip_prefix(NETWORK)?.strip_prefix('-')?.rsplit_once('-')?.0.to_owned());
    let ids: Vec<String> = files.iter().filter_map(|file| id(name(file))).collect();
    for file in files.iter().filter(|file| ids.iter().any(|id| name(file).contains(id))) {
        _ = fs::remove_file(file);
    }
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
    let before = fs::read(folder.join("before.json")).unwrap_or_default();
    let Ok(before) = serde_json::from_slice::<Value>(&before) else { return };
    for (name, value) in before.get("settings").and_then(Value::as_object).into_iter().flatten() {
        if let Some(value) = value.as_str().filter(|value| setting(name).is_some_and(|now| now != *value)) {
            _ = fs::write(Path::new("/proc/sys").join(name), value);
        }
    }
    if before.get("mounted") == Some(&json!(false)) {
        _ = run(Command::new("umount").args(["--lazy", NAMESPACES]));
    }
}

fn entries(folder: &str) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn setting(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}

/// Where something is mounted, in the order of mounting.
fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect()
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}
