//! Finds pods' network namespaces by their processes, for pods that no CNI plugin was asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use pillion_protocol::pod::{PodUid, SandboxId};

/// Where runtimes keep namespaces. A path here outlives the pod's processes.
const RUNTIME_FOLDERS: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Where a pod's namespace was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The container id of its oldest process: its sandbox.
    pub sandbox: SandboxId,
    /// A path that leads to the namespace while the sandbox lives.
    pub netns: PathBuf,
}

/// The pod uses the node's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNetwork;

/// A process of a pod.
struct Process {
    number: u32,
    /// In clock ticks after boot.
    started: u64,
    container: SandboxId,
}

/// Finds the namespaces of these pods by the node's `proc`. Pods without a process are left out.
///
/// Another process's namespace can be looked at with CAP_SYS_PTRACE only.
/// `is_node` knows the node's own.
pub fn find(
    proc: &Path,
    is_node: impl Fn(&Metadata) -> bool,
    pods: &BTreeMap<PodUid, Option<PathBuf>>,
) -> BTreeMap<PodUid, Result<Found, HostNetwork>> {
    let oldest = oldest_processes(proc, &pods.keys().collect());
    let look = |uid: &PodUid, process: Process| {
        let own = proc.join(process.number.to_string()).join("ns/net");
        let found = fs::metadata(&own).ok()?;
        if is_node(&found) {
            return Some(Err(HostNetwork));
        }
        let hint = pods.get(uid).cloned().flatten();
        let kept = RUNTIME_FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let mut paths = hint.into_iter().chain(kept.map(|entry| entry.path()));
        let netns = paths.find(|path| fs::metadata(path).is_ok_and(|there| is_same(&there, &found))).unwrap_or(own);
        Some(Ok(Found { sandbox: process.container, netns }))
    };
    oldest.into_iter().filter_map(|(uid, process)| look(&uid, process).map(|found| (uid, found))).collect()
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn oldest_processes(proc: &Path, pods: &BTreeSet<&PodUid>) -> BTreeMap<PodUid, Process> {
    let mut oldest = BTreeMap::<PodUid, Process>::new();
    let numbers = fs::read_dir(proc).into_iter().flatten().flatten();
    for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let read = |name: &str| fs::read_to_string(proc.join(number.to_string()).join(name)).ok();
        let Some(cgroup) = read("cgroup") else { continue };
        let Some((uid, container)) = owner(&cgroup, pods) else { continue };
        let Some(started) = read("stat").and_then(|stat| start_time(&stat)) else { continue };
        if oldest.get(uid).is_none_or(|known| started < known.started) {
            oldest.insert(uid.clone(), Process { number, started, container });
        }
    }
    oldest
}

/// Which of `pods` a process belongs to, and in which container, by its `/proc/PID/cgroup`. The kubelet names the group of a pod
/// by its UID, with `_` for `-` where systemd makes it; within, the runtime names the container's by its id. What a container names its own groups
/// says nothing: the first group of a pod below the kubelet's counts, whether it is one of `pods` or not.
fn owner<'a>(cgroup: &str, pods: &BTreeSet<&'a PodUid>) -> Option<(&'a PodUid, SandboxId)> {
    cgroup.lines().find_map(|line| {
        let mut groups = line.split('/').skip_while(|group| !group.contains("kubepods"));
        let uid = groups.by_ref().find_map(uid_of_group)?;
        let known = pods.iter().find(|known| known.as_str() == uid || known.as_str().replace('-', "_") == uid)?;
        let container = groups.next()?;
        let container = container.strip_suffix(".scope").unwrap_or(container);
        let id = container.rsplit_once('-').map_or(container, |(_, id)| id);
        Some((*known, id.parse().ok()?))
    })
}

/// The UID in the name of a pod's group: `pod<UID>`, or with systemd `kubepods-burstable-pod<UID>.slice`.
fn uid_of_group(group: &str) -> Option<&str> {
    let (before, uid) = group.strip_suffix(".slice").unwrap_or(group).rsplit_once("pod")?;
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'));
    (is_uid && (before.is_empty() || before.ends_with('-'))).then_some(uid)
}

/// When a process began, by its `/proc/PID/stat`: the 22nd field. The second one, its name, may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_its_pod_by_its_control_group() {
        let uid: PodUid = "0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77".parse().unwrap();
        let hash: PodUid = "c1d3b5d0e4f1a2b3c4d5e6f7a8b9c0d1".parse().unwrap();
        let pods = BTreeSet::from([&uid, &hash]);
        let table = [
            ("12:pids:/kubepods/besteffort/pod0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77/c0ffee\n", Some((&uid, "c0ffee"))),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b6f2d9a_6b7e_4a4f_9f3e_9d2a3c1e5b77.slice/cri-containerd-c0ffee.scope\n",
                Some((&uid, "c0ffee")),
            ),
            ("0::/../../kubepods-podc1d3b5d0e4f1a2b3c4d5e6f7a8b9c0d1.slice/crio-abc.scope\n", Some((&hash, "abc"))),
            (
                "0::/kubepods.slice/kubepods-pod0b6f2d9a_6b7e_4a4f_9f3e_9d2a3c1e5b77.slice/crio-abc.scope/container\n",
                Some((&uid, "abc")),
            ),
            ("0::/kubepods/pod0b6f2d9a/c0ffee\n", None),
            // Groups that containers have made: of a pod without sidecars, and of one with them.
            (
                "0::/kubepods/pod11111111-6b7e-4a4f-9f3e-9d2a3c1e5b77/c0ffee/pod0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77/dead\n",
                None,
            ),
            (
                "0::/kubepods/podc1d3b5d0e4f1a2b3c4d5e6f7a8b9c0d1/abc/kubepods/pod0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77/dead\n",
                Some((&hash, "abc")),
            ),
            ("0::/system.slice/pod0b6f2d9a-6b7e-4a4f-9f3e-9d2a3c1e5b77/dead\n", None),
            ("0::/system.slice/cron.service\n", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(uid, id)| (uid, id.parse::<SandboxId>().unwrap()));
            assert_eq!(owner(text, &pods), expected, "{text}");
        }
    }

    #[test]
    fn a_name_does_not_hide_when_a_process_began() {
        let stat = "7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("7 (a"), None);
    }
}
