//! Pods' sandboxes, read from what containerd keeps of each that runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its container id.
    pub id: String,
    /// Its network namespace's path; `None` if it is the node's.
    pub netns: Option<PathBuf>,
    /// Its first process, which does nothing but wait.
    pub pause: u32,
}

/// The folders of all running containers, each with what runc was told (`config.json`) and `init.pid`. One that is being removed has
/// a dot before its name.
pub(super) fn bundles(folder: &Path) -> Vec<PathBuf> {
    let tasks = folder.join("containerd/state/io.containerd.runtime.v2.task/k8s.io");
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).map(|entry| entry.path()).collect()
}

/// The first process of a container.
pub(super) fn first_process(bundle: &Path) -> Result<u32> {
    Ok(fs::read_to_string(bundle.join("init.pid"))?.trim().parse()?)
}

/// The sandbox of a pod that runs.
pub(super) fn of(folder: &Path, pod: &str) -> Result<Sandbox> {
    let found = bundles(folder).into_iter().find_map(|bundle| read(&bundle, pod).ok().flatten());
    found.with_context(|| format!("the pod {pod} has no sandbox"))
}

fn read(bundle: &Path, pod: &str) -> Result<Option<Sandbox>> {
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    let annotation = |key: &str| config.get("annotations")?.get(format!("io.kubernetes.cri.{key}"))?.as_str();
    if annotation("container-type") != Some("sandbox") || annotation("sandbox-name") != Some(pod) {
        return Ok(None);
    }
    let id = bundle.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array).context("no namespaces")?;
    let network = namespaces.iter().find(|of| of.get("type").is_some_and(|kind| kind == "network"));
    let netns = network.and_then(|of| of.get("path")?.as_str()).map(PathBuf::from);
    Ok(Some(Sandbox { id, netns, pause: first_process(bundle)? }))
}
