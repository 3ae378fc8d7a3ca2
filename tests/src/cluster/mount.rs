//! Mounts: a folder that is shared with containers, and what is left below a folder.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::command::run;

/// How a folder is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is no mount.
    Absent,
    /// It is one whose mounts are seen nowhere else.
    Private,
    /// It is one whose mounts are seen wherever it is mounted too.
    Shared,
}

impl State {
    const ALL: [Self; 3] = [Self::Absent, Self::Private, Self::Shared];

    /// Its name in a file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Private => "private",
            Self::Shared => "shared",
        }
    }

    /// The one of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// How a folder is mounted.
pub(super) fn state(folder: &str) -> State {
    // The last one is on top. Fields as in proc_pid_mountinfo(5): optional ones come before a hyphen.
    let mounted = mounts().into_iter().rfind(|fields| fields.get(4).is_some_and(|at| at == folder));
    mounted.map_or(State::Absent, |fields| {
        let mut optional = fields.iter().skip(6).take_while(|field| *field != "-");
        if optional.any(|field| field.starts_with("shared:")) { State::Shared } else { State::Private }
    })
}

/// Makes a folder a shared mount, whatever it was.
pub(super) fn share(folder: &str, was: State) -> Result<()> {
    let mut command = Command::new("mount");
    match was {
        State::Absent => command.args(["--bind", "--make-rshared", folder, folder]),
        State::Private => command.args(["--make-rshared", folder]),
        State::Shared => return Ok(()),
    };
    run(&mut command).map(drop)
}

/// Makes it again what it was.
pub(super) fn put_back(folder: &str, was: State) {
    _ = match was {
        State::Absent => run(Command::new("umount").args(["--lazy", folder])),
        // One that heard of others' mounts still does.
        State::Private => run(Command::new("mount").args(["--make-slave", folder])),
        State::Shared => return,
    };
}

/// Unmounts what is mounted below a folder.
pub(super) fn remove_below(folder: &Path) {
    for at in mounts().iter().rev().filter_map(|fields| fields.get(4)).filter(|at| Path::new(at).starts_with(folder)) {
        _ = run(Command::new("umount").args(["--lazy", at]));
    }
}

/// The fields of all mounts, in the order of mounting.
fn mounts() -> Vec<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}
