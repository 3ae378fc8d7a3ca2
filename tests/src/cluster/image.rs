//! Container images of one layer, as OCI archives that `ctr images import` reads. No registry is behind them.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{command::run, library};

/// The image of pods that need nothing else: busybox. Without a dot in its first part containerd would take its name for one of a
/// public registry. Pods need `imagePullPolicy: Never`.
pub const BUSYBOX: &str = "pillion.test/busybox:1";

/// What its containers can call; all of it is busybox.
const COMMANDS: [&str; 13] =
    ["sh", "sleep", "wget", "nc", "httpd", "cat", "echo", "grep", "id", "ip", "ls", "netstat", "true"];

/// The users that images know: root, and the one that programs run as that need not be it.
const USERS: &str = "root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n";

/// An image that is being made in a folder.
pub(super) struct Image {
    name: String,
    folder: TempDir,
}

impl Image {
    /// One without anything that could run.
    pub(super) fn new(name: &str, within: &Path) -> Result<Self> {
        let registry = name.split('/').next().unwrap_or_default();
        ensure!(registry.contains('.') && registry != name, "{name} has no host with a dot before its first slash");
        let image = Self { name: name.into(), folder: TempDir::with_prefix_in("image-", within)? };
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(image.root().join(directory))?;
        }
        fs::set_permissions(image.root().join("tmp"), Permissions::from_mode(0o1777))?;
        fs::write(image.root().join("etc/passwd"), USERS)?;
        Ok(image)
    }

    /// The image [`BUSYBOX`].
    pub(super) fn busybox(within: &Path) -> Result<Self> {
        let image = Self::new(BUSYBOX, within)?;
        fs::copy(busybox()?, image.root().join("bin/busybox"))?;
        for command in COMMANDS {
            symlink("busybox", image.root().join("bin").join(command))?;
        }
        // It is static, and this C library looks for a name server first otherwise.
        image.resolve("files")?;
        Ok(image)
    }

    /// An image of files, each with its place in it, and of the libraries that they need.
    pub(super) fn of_files(name: &str, files: &[(PathBuf, &str)], within: &Path) -> Result<Self> {
        let image = Self::new(name, within)?;
        for (file, place) in files {
            image.add(file, place)?;
            for library in library::of(file)? {
                image.add(&library, &library.to_string_lossy())?;
            }
        }
        image.resolve("files dns")?;
        Ok(image)
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn add(&self, file: &Path, place: &str) -> Result<()> {
        let place = self.root().join(place.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file needs a name")?)?;
        fs::copy(file, &place).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Says by what names are found.
    fn resolve(&self, by: &str) -> Result<()> {
        Ok(fs::write(self.root().join("etc/nsswitch.conf"), format!("hosts: {by}\n"))?)
    }

    /// Writes its archive, and gives it to `read`. It is removed afterwards.
    pub(super) fn archive<T>(self, command: &[&str], read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let layout = self.folder.path().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let layer = self.folder.path().join("layer.tar");
        pack(&self.root(), &layer)?;
        let layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &layer)?;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/bin:/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.get("digest")]},
        });
        let config = self.document(&layout, "application/vnd.oci.image.config.v1+json", &config)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
        let mut manifest = self.document(&layout, media_type, &manifest)?;
        if let Some(manifest) = manifest.as_object_mut() {
            manifest.insert("annotations".into(), json!({"io.containerd.image.name": self.name}));
        }
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
        let archive = self.folder.path().join("image.tar");
        pack(&layout, &archive)?;
        read(&archive)
    }

    fn document(&self, layout: &Path, media_type: &str, content: &Value) -> Result<Value> {
        let file = self.folder.path().join("document.json");
        fs::write(&file, content.to_string())?;
        blob(layout, media_type, &file)
    }
}

fn busybox() -> Result<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file());
    found.context("there is no busybox: `make test` installs the package busybox-static")
}

/// Moves a file into an OCI layout; gives its descriptor.
fn blob(layout: &Path, media_type: &str, content: &Path) -> Result<Value> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut File::open(content)?, &mut hash)?;
    let digest = format!("{:x}", hash.finalize());
    fs::rename(content, layout.join("blobs/sha256").join(&digest))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
}

fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "--create", "--file"]).arg(archive);
    run(command.arg("--directory").arg(folder).arg(".")).map(drop)
}
