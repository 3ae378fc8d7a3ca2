//! Multus' own thin entrypoint and our installer in one folder: both alive, both started again and again.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use pillion_tests::{place, process, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// How often either is started again.
const TIMES: usize = 5;

/// The entrypoint reads its service account there, and writes it into its kubeconfig; what is mounted is its own.
const ACCOUNT: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
    cd /run/secrets/kubernetes.io/serviceaccount && echo ca >ca.crt && echo token >token && exec \"$@\"";

/// A program that ends when this is dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        Ok(Self(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = process::signal(self.0.id(), Signal::TERM);
        _ = self.0.wait();
    }
}

/// A node's folders.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new(master: &str, text: &str) -> Result<Self> {
        let node = Self { folder: tempfile::tempdir()? };
        for folder in ["net.d", "bin"] {
            fs::create_dir(node.path(folder))?;
        }
        fs::write(node.path("net.d").join(master), text)?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ours(&self, command: &str) -> Result<Command> {
        let mut ours = program::clean(program::named("pillion-keeper")?);
        ours.arg(command).arg("--bin-dir").arg(self.path("bin")).arg("--conf-dir").arg(self.path("net.d"));
        if command != "uninstall-cni" {
            ours.args(["--cni-socket", "/s.sock"]);
        }
        Ok(ours)
    }

    fn install(&self) -> Result<Running> {
        let mut command = self.ours("install-cni")?;
        command.arg("--plugin").arg(program::named("pillion-cni")?);
        Running::start(command, &self.path("installer.log"))
    }

    /// Starts Multus' entrypoint and waits until it has written its file.
    async fn multus(&self, watch: bool) -> Result<Running> {
        let entrypoint = place::cache()?.join("tools/bin/thin_entrypoint");
        ensure!(
            entrypoint.is_file(),
            "{} is not there: `make test` builds it, tests/setup test too",
            entrypoint.display()
        );
        let mut command = program::clean("unshare");
        command.args(["-m", "sh", "-c", ACCOUNT, "sh"]).arg(entrypoint);
        for (flag, folder) in [
            ("cni-conf-dir", "net.d"),
            ("multus-autoconfig-dir", "net.d"),
            ("cni-bin-dir", "bin"),
            ("multus-cni-conf-dir", "own"),
        ] {
            command.arg(format!("--{flag}={}", self.path(folder).display()));
        }
        command.args(["--multus-conf-file=auto", "--skip-multus-binary-copy", "--multus-bin-file=/bin/true"]);
        if watch {
            command.arg("--cleanup-config-on-exit");
        }
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", "443");
        let (log, created) = (self.path("multus.log"), "multus config file is created");
        let before = text(&log).matches(created).count();
        let running = Running::start(command, &log)?;
        wait_until("Multus' file", SOON, || (text(&log).matches(created).count() > before).then_some(())).await?;
        Ok(running)
    }

    /// Waits until the runtime's first file is this one and has our entry, and Multus once.
    async fn installed(&self, file: &str) -> Result<()> {
        self.entered(file, 1).await
    }

    async fn entered(&self, file: &str, times: usize) -> Result<()> {
        let status = || -> Result<bool> { Ok(self.ours("cni-status")?.output()?.status.success()) };
        let there = || (status().unwrap_or(false) && self.first() == file).then_some(());
        let waited = wait_until("the entry", SOON, there).await;
        let said =
            || format!("{}{}{}", text(&self.path("multus.log")), text(&self.path("installer.log")), self.shown());
        ensure!(waited.is_ok(), "the entry is not in {file}: {}", said());
        let multus = self.count(file, "multus");
        ensure!(multus == times, "{multus} times Multus in {file}: {}", said());
        Ok(())
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("net.d")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.ends_with(".conf") || name.ends_with(".conflist"));
        names.sort_unstable();
        names
    }

    /// What a runtime takes.
    fn first(&self) -> String {
        self.files().into_iter().next().unwrap_or_default()
    }

    fn shown(&self) -> String {
        self.files().iter().map(|name| format!("{name}: {}\n", text(&self.path("net.d").join(name)))).collect()
    }

    /// How often a file has a plugin of a type, at any depth.
    fn count(&self, file: &str, kind: &str) -> usize {
        fn within(value: &Value, kind: &str) -> usize {
            let own = usize::from(value.get("type").is_some_and(|found| found == kind));
            own + match value {
                Value::Array(all) => all.iter().map(|value| within(value, kind)).sum(),
                Value::Object(all) => all.values().map(|value| within(value, kind)).sum::<usize>(),
                _ => 0,
            }
        }
        let value = serde_json::from_str(&text(&self.path("net.d").join(file))).unwrap_or_default();
        within(&value, kind)
    }

    /// Takes ours away and sees that nothing of it is left, now and after Multus' next start.
    async fn uninstalled(&self, watch: bool) -> Result<()> {
        let ended = self.ours("uninstall-cni")?.output()?;
        ensure!(ended.status.success(), "{}{}", String::from_utf8_lossy(&ended.stderr), self.shown());
        ensure!(!self.path("bin/pillion-cni").exists() && !self.shown().contains("pillion"), "{}", self.shown());
        let _multus = self.multus(watch).await?;
        ensure!(!self.shown().contains("pillion"), "{}", self.shown());
        Ok(())
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn list(version: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"bridge"}}]}}"#)
}

/// Multus that looks at its master once, and Multus that follows it.
#[tokio::test]
async fn multus_network_has_the_entry_however_often_either_starts() -> Result<()> {
    for watch in [false, true] {
        let node = Node::new("10-flannel.conflist", &list("0.3.1"))?;
        let mut multus = node.multus(watch).await?;
        let mut ours = node.install()?;
        node.installed("00-multus.conf").await?;
        for _ in 0..TIMES {
            drop(multus);
            multus = node.multus(watch).await?;
            node.installed("00-multus.conf").await?;
            ensure!(node.count("00-multus.conf", "pillion-cni") == 1, "{}", node.shown());
        }
        for _ in 0..TIMES {
            drop((multus, ours));
            ours = node.install()?;
            multus = node.multus(watch).await?;
            node.installed("00-multus.conf").await?;
        }
        ensure!(node.files() == ["00-multus.conf", "10-flannel.conflist"], "{:?}", node.files());
        // Neither writes while there is nothing to change.
        let inode = || Ok(fs::metadata(node.path("net.d/00-multus.conf"))?.ino()) as Result<u64>;
        let before = inode()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(inode()? == before, "the file was written again");
        drop(ours);
        node.uninstalled(watch).await?;
        drop(multus);
    }
    Ok(())
}

/// From CNI 1.0.0 on Multus writes a list, which has the entry behind Multus: the runtime starts our plugin, and tells it the annotations.
#[tokio::test]
async fn multus_list_has_the_entry_behind_multus() -> Result<()> {
    let node = Node::new("10-flannel.conflist", &list("1.0.0"))?;
    let mut ours = node.install()?;
    node.entered("10-flannel.conflist", 0).await?;
    let mut multus = node.multus(false).await?;
    node.installed("00-multus.conflist").await?;
    for _ in 0..TIMES {
        drop((multus, ours));
        multus = node.multus(false).await?;
        ours = node.install()?;
        node.installed("00-multus.conflist").await?;
        let value: Value = serde_json::from_str(&text(&node.path("net.d/00-multus.conflist")))?;
        ensure!(value["plugins"][1]["type"] == "pillion-cni", "{value}");
    }
    drop(ours);
    node.uninstalled(false).await
}

/// A master network of one plugin, from which a list of ours was derived before Multus came.
#[tokio::test]
async fn a_list_of_ours_is_not_left_to_multus() -> Result<()> {
    let node = Node::new("10-a.conf", r#"{"cniVersion":"0.3.1","name":"n","type":"bridge"}"#)?;
    let ours = node.install()?;
    node.entered("10-a.00-pillion.conflist", 0).await?;
    let mut multus = node.multus(false).await?;
    node.installed("00-multus.conf").await?;
    wait_until("the derived list is gone", SOON, || (node.files().len() == 2).then_some(())).await?;
    for _ in 0..2 {
        drop(multus);
        multus = node.multus(false).await?;
        node.installed("00-multus.conf").await?;
    }
    drop(ours);
    node.uninstalled(false).await
}
