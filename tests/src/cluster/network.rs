//! The cluster's network: the links of its node and pods, and the rules of its services.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use super::command::run;

/// The link of the node; on a node without services also of its pods. There is one of this name on a machine.
pub(super) const BRIDGE: &str = "pillion-test0";
/// The CNI network's name, and the addresses in it.
pub(super) const NETWORK: &str = "pillion-test";
pub(super) const POD_ADDRESSES: &str = "10.213.77.0/24";
pub(super) const NODE_ADDRESS: &str = "10.213.77.1";
/// The addresses of services. The API server's is the first.
pub(super) const SERVICE_ADDRESSES: &str = "10.213.78.0/24";
pub(super) const API_SERVICE_ADDRESS: &str = "10.213.78.1";

/// Where containerd puts pods' network namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";

/// Where the CNI library keeps results, whatever it is told.
pub(super) const CNI_CACHE: &str = "/var/lib/cni/results";

/// The tables that kube-proxy makes; it has no others.
const TABLES: [[&str; 2]; 2] = [["ip", "kube-proxy"], ["ip6", "kube-proxy"]];

/// Where Docker, and others, drop what goes through the machine and is not theirs; and by what our rules in there are known.
const FORWARD: [&str; 3] = ["ip", "filter", "FORWARD"];
const OURS: &str = "comment \"pillion-test\"";

/// Makes the node's link.
pub(super) fn make_link() -> Result<()> {
    // Not every kernel has dummy links; a bridge is one that it needs anyway.
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// An error if somebody else has services on this machine.
pub(super) fn has_no_services() -> Result<()> {
    let tables = nft(&["list", "tables"], &[])?;
    let theirs = TABLES.iter().find(|table| tables.lines().any(|line| line == format!("table {}", table.join(" "))));
    ensure!(theirs.is_none(), "a kube-proxy runs on this machine, or has left its rules: `nft list tables`");
    Ok(())
}

/// Lets pods reach each other through the node where somebody else's rules would not.
pub(super) fn let_pods_through() -> Result<()> {
    let drops = nft(&["list", "chain"], &FORWARD).is_ok_and(|chain| chain.contains("policy drop"));
    for side in ["saddr", "daddr"].iter().filter(|_| drops) {
        let rule = format!("insert rule {} ip {side} {POD_ADDRESSES} accept {OURS}", FORWARD.join(" "));
        nft(&[&rule], &[])?;
    }
    Ok(())
}

/// Whether there are rules for a service's address.
pub(super) fn has_service(address: &str) -> bool {
    let services = nft(&["list", "map"], &["ip", "kube-proxy", "service-ips"]);
    services.is_ok_and(|services| services.contains(&format!(" {address} ")))
}

/// Removes the rules of the cluster's services, and those that let pods through.
pub(super) fn remove_services() {
    for table in TABLES {
        _ = nft(&["delete", "table"], &table);
    }
    let rules = nft(&["--handle", "list", "chain"], &FORWARD).unwrap_or_default();
    for rule in rules.lines().filter(|rule| rule.contains(OURS)) {
        // `ip saddr 10.213.77.0/24 accept comment "pillion-test" # handle 7`
        let handle = rule.rsplit(' ').next().unwrap_or_default();
        _ = nft(&["delete", "rule"], &[&FORWARD[..], &["handle", handle]].concat());
    }
}

/// Removes pods' network namespaces and their links.
pub(super) fn remove() {
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
    for link in entries(&format!("/sys/class/net/{BRIDGE}/brif")) {
        if let Some(name) = link.file_name().and_then(|name| name.to_str()) {
            _ = ip(&["link", "delete", name]);
        }
    }
    // The node's own link, and those that have its address for one pod each.
    for name in links_of_the_node() {
        _ = ip(&["link", "delete", &name]);
    }
    remove_results();
}

fn links_of_the_node() -> Vec<String> {
    let mut show = Command::new("ip");
    let links = run(show.args(["-4", "-oneline", "address", "show", "to", NODE_ADDRESS])).unwrap_or_default();
    // `3: pillion-test0    inet 10.213.77.1/24 …`
    links.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
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

/// What is in a folder, if it is there.
pub(super) fn entries(folder: &str) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn nft(does: &[&str], to: &[&str]) -> Result<String> {
    run(Command::new("nft").args(does).args(to))
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}
