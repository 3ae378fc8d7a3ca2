//! The process of a pod that no CNI plugin was asked for, in the control group by which its node finds it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// A process of a pod. It ends when this is dropped.
pub struct Unannounced {
    process: Child,
    /// The innermost first.
    groups: Vec<PathBuf>,
}

impl Unannounced {
    /// Starts a process that does nothing, in a namespace and in the control group of a pod with this UID.
    ///
    /// # Errors
    ///
    /// No control groups, or no right to make one.
    pub fn start(uid: &str, netns: &Netns) -> Result<Self> {
        let all = Path::new("/sys/fs/cgroup");
        // In one hierarchy, or in one for each controller.
        let all = if all.join("pids").is_dir() { all.join("pids") } else { all.into() };
        let own = all.join(format!("pillion-test-{uid}"));
        let pods = own.join("kubepods");
        let groups = [pods.join(format!("pod{uid}/c0ffee")), pods.join(format!("pod{uid}")), pods, own];
        let sleep = || Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn();
        let this = Self { process: netns.within(sleep)?, groups: groups.into() };
        let group = this.groups.first().context("no group")?;
        fs::create_dir_all(group).with_context(|| format!("{}", group.display()))?;
        fs::write(group.join("cgroup.procs"), this.process.id().to_string())?;
        Ok(this)
    }
}

impl Drop for Unannounced {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        for group in &self.groups {
            _ = fs::remove_dir(group);
        }
    }
}
