//! What the cluster's programs are told: their configuration files. JSON is YAML.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    image,
    machine::{BRIDGE, NETWORK, NODE_ADDRESS, POD_ADDRESSES},
};

/// Where distributions put the plugins that everybody has.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Writes `containerd.toml`.
pub(super) fn containerd(folder: &Path) -> Result<()> {
    let at = |name: &str| json!(folder.join(name)).to_string();
    // Without CAP_SYS_RESOURCE a container's OOM score cannot be below that of containerd itself. Overlays need a file system that
    // is none itself; copies work on all.
    let text = format!(
        r#"
version = 2
root = {root}
state = {state}
[grpc]
address = {socket}
[debug]
level = "warn"
[plugins."io.containerd.internal.v1.opt"]
path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = {runc}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {bin}
conf_dir = {conf}
"#,
        root = at("containerd/root"),
        state = at("containerd/state"),
        socket = at("containerd.sock"),
        opt = at("containerd/opt"),
        image = image::NAME,
        runc = at("containerd/runc"),
        bin = at("cni/bin"),
        conf = at("cni/conf"),
    );
    Ok(fs::write(folder.join("containerd.toml"), text)?)
}

/// Writes the conflist of the cluster's own CNI, and puts its plugins beside it.
pub(super) fn cni(folder: &Path) -> Result<()> {
    let (conf, bin) = (folder.join("cni/conf"), folder.join("cni/bin"));
    fs::create_dir_all(&conf)?;
    fs::create_dir_all(&bin)?;
    for plugin in ["loopback", "bridge", "host-local", "portmap"] {
        let found = PLUGIN_FOLDERS.iter().map(|folder| Path::new(folder).join(plugin)).find(|path| path.is_file());
        let found = found.with_context(|| {
            format!("there is no CNI plugin {plugin}: `make test` installs the package containernetworking-plugins")
        })?;
        std::os::unix::fs::symlink(found, bin.join(plugin))?;
    }
    // No gateway: it would turn on forwarding on this machine. The node and all pods are on one link.
    let conflist = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [
        {"type": "bridge", "bridge": BRIDGE, "ipam": {
            "type": "host-local", "dataDir": folder.join("cni/addresses"), "ranges": [[{"subnet": POD_ADDRESSES}]],
        }},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    write(&conf.join("10-pods.conflist"), &conflist)
}

/// Writes `kubeconfig` and the API server's `tokens.csv`. The folder is this user's only, and so is the API server.
pub(super) fn access(folder: &Path, port: u16) -> Result<()> {
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let token = token.trim();
    fs::write(folder.join("tokens.csv"), format!("{token},test,test,system:masters\n"))?;
    let server = format!("https://127.0.0.1:{port}");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    write(&folder.join("kubeconfig"), &kubeconfig)
}

/// Writes `kubelet.yaml`.
pub(super) fn kubelet(folder: &Path, port: u16) -> Result<()> {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS, "port": port, "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{}", folder.join("containerd.sock").display()),
        "podLogsDir": folder.join("logs"), "volumePluginDir": folder.join("volume-plugins"),
        // What a container without a few capabilities, as those of a build machine, does not have.
        "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": [],
        "failCgroupV1": false, "failSwapOn": false, "featureGates": {"KubeletInUserNamespace": true},
        // What would be changed on the machine outside of the folder, or depends on how full its disk is.
        "makeIPTablesUtilChains": false, "localStorageCapacityIsolation": false,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
    });
    write(&folder.join("kubelet.yaml"), &config)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}
