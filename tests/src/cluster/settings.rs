//! What the cluster's programs are told: their configuration files. JSON is YAML.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    access,
    api::Kind,
    image,
    network::{BRIDGE, NETWORK, NODE_ADDRESS, POD_ADDRESSES},
    pod::NODE,
};
use crate::place;

/// Where distributions put the plugins that everybody has.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Where the cluster's names end.
const DOMAIN: &str = "cluster.local";

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
        image = image::BUSYBOX,
        runc = at("containerd/runc"),
        bin = at("cni/bin"),
        conf = at("cni/conf"),
    );
    Ok(fs::write(folder.join("containerd.toml"), text)?)
}

/// Writes the conflist of the cluster's own CNI, and puts its plugins beside it.
pub(super) fn cni(folder: &Path, kind: Kind) -> Result<()> {
    let (conf, bin) = (folder.join("cni/conf"), folder.join("cni/bin"));
    fs::create_dir_all(&conf)?;
    fs::create_dir_all(&bin)?;
    for plugin in ["loopback", "bridge", "ptp", "host-local", "portmap"] {
        let found = PLUGIN_FOLDERS.iter().map(|folder| Path::new(folder).join(plugin)).find(|path| path.is_file());
        let found = found.with_context(|| {
            format!("there is no CNI plugin {plugin}: `make test` installs the package containernetworking-plugins")
        })?;
        std::os::unix::fs::symlink(found, bin.join(plugin))?;
    }
    let addresses = json!({
        "type": "host-local", "dataDir": folder.join("cni/addresses"), "ranges": [[{"subnet": POD_ADDRESSES}]],
        "routes": if kind == Kind::Whole { json!([{"dst": "0.0.0.0/0"}]) } else { json!([]) },
    });
    let link = if kind == Kind::Whole {
        // Pods reach each other through the node, which has the rules of services: on one link answers would go past them.
        json!({"type": "ptp", "ipam": addresses})
    } else {
        // No gateway: it would turn on forwarding on this machine. The node and all pods are on one link.
        json!({"type": "bridge", "bridge": BRIDGE, "ipam": addresses})
    };
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let conflist = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [link, portmap]});
    write(&conf.join("10-pods.conflist"), &conflist)
}

/// Writes `kubelet.yaml`.
pub(super) fn kubelet(folder: &Path, kind: Kind) -> Result<()> {
    // A whole cluster has its name server at the node's address.
    let names = if kind == Kind::Whole { vec![NODE_ADDRESS] } else { vec![] };
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS, "port": place::free_port()?, "healthzPort": 0,
        "clusterDomain": DOMAIN, "clusterDNS": names,
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

/// Writes `kube-proxy.yaml`.
pub(super) fn proxy(folder: &Path) -> Result<()> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "clientConnection": {"kubeconfig": folder.join(access::KUBECONFIG)},
        "clusterCIDR": POD_ADDRESSES, "hostnameOverride": NODE, "nftables": {"minSyncPeriod": "10ms"},
        "healthzBindAddress": format!("127.0.0.1:{}", place::free_port()?),
        "metricsBindAddress": format!("127.0.0.1:{}", place::free_port()?),
        // What would be changed on the machine outside of its own rules: limits of connections, ports at other addresses.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nodePortAddresses": [format!("{NODE_ADDRESS}/32")],
    });
    write(&folder.join("kube-proxy.yaml"), &config)
}

/// Writes `Corefile`. Names outside of the cluster are not asked for: no test calls out of the machine.
pub(super) fn names(folder: &Path) -> Result<()> {
    let kubeconfig = folder.join(access::KUBECONFIG);
    let text = format!(
        r#".:53 {{
    bind {NODE_ADDRESS}
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {}
    }}
}}
"#,
        kubeconfig.display()
    );
    Ok(fs::write(folder.join("Corefile"), text)?)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}
