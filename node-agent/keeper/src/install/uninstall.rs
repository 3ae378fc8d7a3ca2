//! Takes the plugin away: the entries first, so that none ever names a missing binary.

use std::fs;

use anyhow::{Context, bail};

use super::{
    Folders, Uninstall, conflist,
    folder::{self, Prepared},
    multus,
};

impl Uninstall {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let Folders { bin_dir, conf_dir } = &self.folders;
        match folder::lock(conf_dir) {
            Err(error) if error.is_missing() => tracing::info!(folder = %conf_dir.display(), "there is no such folder"),
            locked => {
                let _lock = locked?;
                self.entries()?;
                folder::sweep(conf_dir)?;
            }
        }
        let binary = bin_dir.join(conflist::TYPE);
        if folder::remove(&binary)? {
            tracing::info!(path = %binary.display(), "the plugin's binary was removed");
        }
        match folder::sweep(bin_dir) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes our entry out of every file, whatever its name: what a CNI set aside may come back.
    fn entries(&self) -> anyhow::Result<()> {
        let folder = &self.folders.conf_dir;
        let mut left = Vec::new();
        let mut names = folder::names(folder)?;
        // Multus' own file last: what it is made of is clean by then.
        names.sort_unstable_by(|one, other| other.cmp(one));
        for name in names {
            let path = folder.join(&name);
            if conflist::is_derived(&name) {
                folder::remove(&path)?;
                tracing::info!(file = name, "the derived file was removed");
                continue;
            }
            let text = match folder::find(folder, &name).text {
                Ok(text) => text,
                Err(conflist::Trouble::Refused(why)) if conflist::is_read(&name) => {
                    left.push(format!("{}: {why}", path.display()));
                    continue;
                }
                Err(_) => continue,
            };
            let new = multus::without(&text);
            if let Some(new) = &new {
                // A link stays one: its target is replaced.
                let target = fs::canonicalize(&path).with_context(|| path.display().to_string())?;
                let mode = folder::mode(&target)?;
                let prepared = Prepared::write(target, new.as_bytes(), mode)?;
                if folder::find(folder, &name).text.as_ref() != Ok(&text) {
                    bail!("{} was written just now by somebody else: try again", path.display());
                }
                prepared.commit()?;
                tracing::info!(file = name, "the entry was taken out");
            }
            if conflist::is_read(&name) && new.unwrap_or(text).contains(&format!("{:?}", conflist::TYPE)) {
                left.push(format!("{} names {} where it is no entry of a list", path.display(), conflist::TYPE));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        bail!(
            "the plugin's binary stays, because pods may still need it. Take the entry out by hand and try again: {}",
            left.join("; ")
        )
    }
}
