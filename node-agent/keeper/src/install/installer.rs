//! Puts the plugin in place and keeps it there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    Folders, Install,
    conflist::{self, Entry, Goal, Write},
    fight::Fight,
    folder::{self, Prepared},
    watch::{Watch, Woken},
};

/// How often desired and real are compared, without a sign of change.
const COMPARE: Duration = Duration::from_secs(30);

/// How long a file may be broken because it is being written.
const SETTLE: Duration = Duration::from_secs(2);

/// How soon to look again at a file that is being written.
const SOON: Duration = Duration::from_millis(250);

/// Changes come in groups: how long to wait for the others.
const GROUP: Duration = Duration::from_millis(20);

/// How things are after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Settling { file: String, why: String },
    InPlace { file: String },
    Refused { file: String, why: String },
    Undone { file: String },
}

struct Installer<'a> {
    install: &'a Install,
    plugin: PathBuf,
    entry: Entry,
    fight: Fight,
    /// The same about the list that Multus makes its file of.
    source: Fight,
    /// Since when a file is broken, and whether that was said.
    broken: BTreeMap<String, (Instant, bool)>,
    warned_of_cilium: bool,
    /// The binary was put in place once. What is there afterwards is a newer installer's, which may run beside this one.
    binary_written: bool,
}

impl Install {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        tracing::info!(config = ?self, "the CNI plugin is being installed");
        let beside = || std::env::current_exe().map(|program| program.with_file_name(conflist::TYPE));
        let plugin = self.plugin.clone().map_or_else(beside, Ok).context("where this program is")?;
        let mut installer = Installer {
            install: self,
            plugin,
            entry: Entry::new(&self.cni_socket),
            fight: Fight::default(),
            source: Fight::default(),
            broken: BTreeMap::new(),
            warned_of_cilium: false,
            binary_written: false,
        };
        if self.once {
            return installer.look().and_then(|state| match state {
                State::InPlace { .. } => Ok(()),
                other => Err(anyhow::Error::msg(self.say(&other))),
            });
        }
        let Folders { bin_dir, conf_dir } = &self.folders;
        let watch = Watch::new()?;
        let arm = || watch.arm(bin_dir).and_then(|()| watch.arm(conf_dir));
        arm()?;
        let mut said = String::new();
        loop {
            let state = arm().map_err(Into::into).and_then(|()| installer.look());
            if state.is_err() {
                // A temporary file that came and went is no reason to try again at once.
                watch.drain()?;
            }
            let settling = matches!(state, Ok(State::Settling { .. }));
            let text = state.as_ref().map_or_else(|error| format!("{error:#}"), |state| self.say(state));
            if !settling && text != said {
                match state {
                    Ok(State::Waiting | State::InPlace { .. }) => tracing::info!("{text}"),
                    _ => tracing::error!("{text}"),
                }
                said = text;
            }
            match watch.wait(if settling { SOON } else { COMPARE })? {
                Woken::Terminate => return Ok(()),
                Woken::Changed => thread::sleep(GROUP),
                Woken::Time => {}
            }
            watch.drain()?;
        }
    }

    fn say(&self, state: &State) -> String {
        let path = |file: &str| self.folders.conf_dir.join(file).display().to_string();
        match state {
            State::Waiting => {
                let folder = self.folders.conf_dir.display();
                format!(
                    "there is no CNI configuration in {folder} that a runtime can use: the entry waits for the cluster's CNI"
                )
            }
            State::InPlace { file } => format!("the entry is in {}", path(file)),
            State::Settling { file, why } => format!("no runtime can use {}: {why}; it is left alone", path(file)),
            State::Refused { file, why } => {
                format!("the entry cannot be put into {}, which the runtime uses: {why}; it is left alone", path(file))
            }
            State::Undone { file } => format!(
                "the CNI undoes the entry in {}, three times within 10 s of its being written: pods get no sidecars until the CNI \
                 leaves it alone (Cilium: set cni.exclusive=false); the next attempt is in 5 minutes",
                path(file)
            ),
        }
    }
}

impl Installer<'_> {
    /// Compares desired and real once, and does what is missing: the binary first, so that no entry ever names a missing one.
    fn look(&mut self) -> anyhow::Result<State> {
        let folder = &self.install.folders.conf_dir;
        let _lock = folder::lock(folder)?;
        self.binary()?;
        let names = folder::names(folder)?;
        let plan = conflist::plan(&folder::configurations(folder, &names), &self.entry);
        if let Some(settling) = self.unsettled(&plan.broken) {
            return Ok(settling);
        }
        // First, so that what Multus makes of it meanwhile has the entry. Without it Multus' own file has the entry until Multus starts again.
        if let Some((file, write)) = plan.source {
            self::write(folder, &mut self.source, file, Some(write))?;
        }
        let state = match plan.goal {
            Goal::Nothing => State::Waiting,
            Goal::Refused { file, why } => State::Refused { file, why },
            Goal::Entry { file, write, cilium } => {
                if cilium && !self.warned_of_cilium && names.iter().any(|name| name.ends_with(".cilium_bak")) {
                    self.warned_of_cilium = true;
                    tracing::warn!(
                        file,
                        "Cilium sets other CNIs' files aside and may undo the entry: set cni.exclusive=false"
                    );
                }
                self::write(folder, &mut self.fight, file, write)?
            }
        };
        if !matches!(state, State::Settling { .. } | State::Undone { .. }) {
            for stale in plan.stale {
                folder::remove(&folder.join(&stale))?;
                tracing::info!(file = stale, "a derived file was removed: it has no reason any more");
            }
        }
        Ok(state)
    }

    /// The first file that is broken and may be being written. What stays broken is said once.
    fn unsettled(&mut self, broken: &[(String, String)]) -> Option<State> {
        let now = Instant::now();
        self.broken.retain(|name, _| broken.iter().any(|(broken, _)| broken == name));
        for (file, why) in broken {
            let (since, said) = self.broken.entry(file.clone()).or_insert((now, false));
            let state = State::Settling { file: file.clone(), why: why.clone() };
            if now.duration_since(*since) < SETTLE {
                return Some(state);
            }
            if !*said {
                *said = true;
                let text = self.install.say(&state);
                tracing::error!("{text}. containerd uses no file after it: mend it or remove it");
            }
        }
        None
    }

    fn binary(&mut self) -> anyhow::Result<()> {
        const MODE: u32 = 0o755;
        let path = self.install.folders.bin_dir.join(conflist::TYPE);
        if self.binary_written && path.is_file() {
            return Ok(());
        }
        self.binary_written = true;
        let read = |path: &Path| fs::read(path).with_context(|| format!("the plugin's binary {}", path.display()));
        let new = read(&self.plugin)?;
        if new.is_empty() {
            bail!("the plugin's binary {} is empty", self.plugin.display());
        }
        if fs::read(&path).is_ok_and(|old| old == new) && folder::mode(&path)? == MODE {
            return Ok(());
        }
        Prepared::write(path.clone(), &new, MODE)?.commit()?;
        tracing::info!(path = %path.display(), "the plugin's binary was written");
        Ok(())
    }
}

/// Writes a file unless somebody undoes it or has just written it.
fn write(folder: &Path, fight: &mut Fight, file: String, write: Option<Write>) -> anyhow::Result<State> {
    let Some(Write { text, old, like }) = write else {
        return Ok(State::InPlace { file });
    };
    let now = Instant::now();
    if !fight.may_write(&file, now) {
        return Ok(State::Undone { file });
    }
    let mode = folder::mode(&folder.join(like))?;
    let prepared = Prepared::write(folder.join(&file), text.as_bytes(), mode)?;
    // The CNI may have written the file since it was read. What it says now must not be lost.
    if folder::find(folder, &file).text.ok() != old {
        return Ok(State::Settling { file, why: "it was written just now".into() });
    }
    prepared.commit()?;
    fight.wrote(now);
    tracing::info!(file, "the entry was written");
    Ok(State::InPlace { file })
}
