//! A machine on which others have taken all inotify instances: the CNI entry is kept by looking.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use pillion_tests::{process, program, wait_until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A program in a user namespace that may have no inotify instance. It ends when this is dropped.
struct Without(Child);

impl Without {
    fn start(binary: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let mut command = program::clean("unshare");
        command.args(["-Ur", "sh", "-c", "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$@\"", "sh"]);
        command.arg(binary).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(log)?);
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        _ = process::signal(self.0.id(), Signal::TERM);
        _ = self.0.wait();
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

async fn until(what: &str, is: impl Fn() -> bool) -> Result<()> {
    wait_until(what, SOON, || is().then_some(())).await
}

#[tokio::test]
async fn the_plugin_is_installed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (net, bin, log) = (path("net.d"), path("bin"), path("log"));
    fs::create_dir(&net)?;
    fs::create_dir(&bin)?;
    let list = net.join("10-a.conflist");
    fs::write(&list, r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"bridge"}]}"#)?;
    let keeper = program::named("pillion-keeper")?;
    let shown = |path: &Path| path.display().to_string();
    let (plugin, bin, net, socket) =
        (shown(&program::named("pillion-cni")?), shown(&bin), shown(&net), shown(&path("s")));
    let args = ["install-cni", "--plugin", &plugin, "--bin-dir", &bin, "--conf-dir", &net, "--cni-socket", &socket];
    let mut installer = Without::start(&keeper, &args, &log)?;
    until("the entry", || text(&list).contains("pillion-cni")).await?;
    ensure!(
        installer.0.try_wait()?.is_none() && text(&log).contains("fs.inotify.max_user_instances"),
        "{}",
        text(&log)
    );
    Ok(())
}
