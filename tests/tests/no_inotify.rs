//! A machine on which others have taken all inotify instances: files are looked at.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pillion_tests::{Component, Protocol, eventually, get, place, process, program, wait_until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A program in a user namespace that may have no inotify instance. It ends when this is dropped.
struct Without(Child);

impl Without {
    fn start(binary: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let mut command = program::clean("unshare");
        command.args(["-Ur", "sh", "-c", "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$@\"", "sh"]);
        // The host refuses to be root: in a user namespace within it is somebody else.
        if args.first() == Some(&"host") {
            command.args(["unshare", "-U", "--map-user=65532"]);
        }
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

/// Puts a guest in the place of `file`, by rename.
fn put(guest: &str, file: &Path) -> Result<()> {
    let new = file.with_extension("new");
    fs::copy(place::guest(guest)?, &new)?;
    Ok(fs::rename(new, file)?)
}

#[tokio::test]
async fn run_serves_new_versions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (file, log, store, port) = (path("x.wasm"), path("log"), path("store"), place::free_port()?);
    put("faults-p2", &file)?;
    let asked = format!("{}={port}", file.display());
    let args = ["run", &asked, "--watch", "--store", &store.display().to_string()];
    let _host = Without::start(&program::binary()?, &args, &log)?;
    let answers = async |status: u16| {
        eventually("an answer", SOON, async || {
            let answer = get(Protocol::H1, port, "/").await?;
            ensure!(answer.status == status, "{}: {}", answer.status, text(&log));
            Ok(())
        })
        .await
    };
    answers(404).await?;
    ensure!(text(&log).contains("fs.inotify.max_user_instances"), "{}", text(&log));
    put("hello-wasip2", &file)?;
    answers(200).await?;
    // In place, as some tools write.
    fs::copy(place::guest("faults-p2")?, &file)?;
    answers(404).await
}

#[tokio::test]
async fn a_host_follows_its_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    for name in ["catalog", "store"] {
        fs::create_dir(path(name))?;
    }
    let (file, log) = (path("x.wasm"), path("log"));
    put("faults-p2", &file)?;
    let yaml = Component::file("x", &file).yaml();
    fs::write(path("catalog/x.yaml"), yaml)?;
    let shown = |name: &str| path(name).display().to_string();
    let (catalog, store, socket) = (shown("catalog"), shown("store"), shown("socket"));
    let args = ["host", "--catalog", &catalog, "--store", &store, "--keeper-socket", &socket];
    let _host = Without::start(&program::binary()?, &args, &log)?;
    let compiled = |many: usize| text(&log).matches("\"event\":\"compiling\"").count() == many;
    let seen = until("the first version", || compiled(1)).await;
    seen.with_context(|| text(&log))?;
    ensure!(text(&log).contains("fs.inotify.max_user_instances"), "{}", text(&log));
    put("hello-wasip2", &file)?;
    until("the second version", || compiled(2)).await.with_context(|| text(&log))
}
