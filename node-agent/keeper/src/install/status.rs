//! Whether the plugin is where the runtime finds it: looks, and changes nothing.

use std::path::Path;

use anyhow::{Result, bail};

use super::{
    CniStatus, Folders,
    conflist::{self, Entry, Goal, Plan},
    folder,
};

impl CniStatus {
    pub(super) fn run(&self) -> Result<()> {
        let Folders { bin_dir, conf_dir } = &self.folders;
        let binary = bin_dir.join(conflist::TYPE);
        if !binary.is_file() {
            bail!("the plugin's binary {} is not there", binary.display());
        }
        let files = folder::configurations(conf_dir, &folder::names(conf_dir)?);
        let plan = conflist::plan(&files, &Entry::new(&self.cni_socket));
        let there = said(plan, conf_dir).map_err(anyhow::Error::msg)?;
        println!("{there}");
        Ok(())
    }
}

/// Where the entry is, or why the runtime does not find it; for people.
fn said(plan: Plan, folder: &Path) -> Result<String, String> {
    let path = |file: &str| folder.join(file).display().to_string();
    if let Some((file, why)) = plan.broken.first() {
        return Err(format!("no runtime can use {}: {why}; containerd uses no file after it", path(file)));
    }
    match plan.goal {
        Goal::Nothing => Err(format!("there is no CNI configuration in {} that a runtime can use", folder.display())),
        Goal::Refused { file, why } => {
            Err(format!("the entry cannot be put into {}, which the runtime uses: {why}", path(&file)))
        }
        Goal::Entry { file, write: Some(_), cilium } => {
            let advice = if cilium { ": Cilium undoes it, set cni.exclusive=false" } else { "" };
            Err(format!("the entry is not in {}, which the runtime uses, or not as it is to be{advice}", path(&file)))
        }
        Goal::Entry { file, write: None, .. } => Ok(format!("the entry is in {}", path(&file))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::conflist::Found;

    fn found(name: &str, text: &str) -> Found {
        Found { name: name.into(), text: Ok(text.into()), linked: false }
    }

    #[test]
    fn the_first_file_counts_whatever_the_others_have() {
        let entry = Entry::new("/run/pillion/keeper/cni.sock");
        let list = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;
        let look = |files: &[Found]| said(conflist::plan(files, &entry), Path::new("/etc/cni/net.d"));
        assert!(look(&[]).unwrap_err().contains("no CNI configuration in /etc/cni/net.d"));
        let before = look(&[found("10-net.conflist", list)]).unwrap_err();
        assert!(before.contains("not in /etc/cni/net.d/10-net.conflist"), "{before}");
        let Goal::Entry { write: Some(write), .. } = conflist::plan(&[found("10-net.conflist", list)], &entry).goal
        else {
            panic!("it is to be written")
        };
        let ours = found("10-net.conflist", &write.text);
        assert_eq!(look(std::slice::from_ref(&ours)).unwrap(), "the entry is in /etc/cni/net.d/10-net.conflist");
        // Another CNI comes before it.
        let after = look(&[ours.clone(), found("05-other.conflist", list)]).unwrap_err();
        assert!(after.contains("not in /etc/cni/net.d/05-other.conflist"), "{after}");
        let broken = look(&[ours, found("00-broken.conflist", "{")]).unwrap_err();
        assert!(broken.contains("no runtime can use /etc/cni/net.d/00-broken.conflist"), "{broken}");
    }
}
