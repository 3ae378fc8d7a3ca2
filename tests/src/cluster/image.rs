//! A container image: busybox in one layer, as an OCI archive that `ctr images import` reads. No registry is behind it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::run;

/// The image's name. Without a dot in its first part containerd would take it for one of a public registry.
pub(super) const NAME: &str = "pillion.test/busybox:1";

/// What pods' containers can call; all of it is busybox.
const COMMANDS: [&str; 12] =
    ["sh", "sleep", "wget", "nc", "httpd", "cat", "echo", "grep", "id", "ip", "netstat", "true"];

/// Writes the image's archive into a folder.
pub(super) fn write(folder: &Path) -> Result<PathBuf> {
    let (root, layout) = (folder.join("root"), folder.join("layout"));
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::copy(busybox()?, root.join("bin/busybox"))?;
    for command in COMMANDS {
        symlink("busybox", root.join("bin").join(command))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    // Busybox is static, and this C library looks for a name server first otherwise.
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files\n")?;
    let layer = folder.join("layer.tar");
    pack(&root, &layer)?;

    let layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &fs::read(layer)?)?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.get("digest")]},
    });
    let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = blob(&layout, media_type, manifest.to_string().as_bytes())?;
    if let Some(manifest) = manifest.as_object_mut() {
        manifest.insert("annotations".into(), json!({"io.containerd.image.name": NAME}));
    }
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    let archive = folder.join("busybox.tar");
    pack(&layout, &archive)?;
    Ok(archive)
}

fn busybox() -> Result<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file());
    found.context("there is no busybox: `make test` installs the package busybox-static")
}

/// Puts content into an OCI layout; gives its descriptor.
fn blob(layout: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = format!("{:x}", Sha256::digest(content));
    fs::write(layout.join("blobs/sha256").join(&digest), content)?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()}))
}

fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "--create", "--file"]).arg(archive);
    run(command.arg("--directory").arg(folder).arg(".")).map(drop)
}
