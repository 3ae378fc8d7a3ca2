//! `make-folders` and `remove-folders`: the agent's folders on a node, which belong to root and to the host's user.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::Context;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Nobody but its owner looks into a folder of the agent's.
const MODE: u32 = 0o700;

/// What is done about the agent's folders.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Makes the agent's folders on this node, or makes them what they should be.
    ///
    /// STATE/keeper and RUN/keeper are root's, STATE/host and RUN/secrets are the host's user's; each is closed to everybody else. What is in them stays. It needs
    /// CAP_CHOWN and CAP_FOWNER.
    MakeFolders(Make),
    /// Removes what the agent keeps on this node: components, native code, which pods there are.
    ///
    /// End keeper and host before. It needs CAP_DAC_OVERRIDE.
    RemoveFolders(Remove),
}

#[derive(Debug, clap::Args)]
struct Folders {
    /// The folder of what outlives the agent
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pillion")]
    state: PathBuf,
    /// The folder of sockets
    #[arg(long, value_name = "DIR", default_value = "/run/pillion")]
    run: PathBuf,
}

/// What `make-folders` is told.
#[derive(Debug, clap::Args)]
pub struct Make {
    #[command(flatten)]
    folders: Folders,
    /// The user that the host runs as
    #[arg(long, value_name = "UID", env = "PILLION_HOST_UID")]
    host_uid: u32,
}

/// What `remove-folders` is told.
#[derive(Debug, clap::Args)]
pub struct Remove {
    #[command(flatten)]
    folders: Folders,
    /// Then wait for SIGTERM, as a container of a DaemonSet has to
    #[arg(long)]
    stay: bool,
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    ///
    /// What a person must mend.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::MakeFolders(Make { folders: Folders { state, run }, host_uid }) => {
                make(&state.join("keeper"), 0)?;
                make(&run.join("keeper"), 0)?;
                make(&run.join("secrets"), *host_uid)?;
                make(&state.join("host"), *host_uid)
            }
            Self::RemoveFolders(Remove { folders: Folders { state, run }, stay }) => {
                for folder in [state, run] {
                    empty(folder).with_context(|| folder.display().to_string())?;
                }
                if *stay {
                    Signals::new([SIGINT, SIGTERM])?.forever().next();
                }
                Ok(())
            }
        }
    }
}

/// A folder of the user's that nobody else looks into. One that somebody put a link in the place of is refused.
fn make(folder: &Path, owner: u32) -> anyhow::Result<()> {
    let made = || -> io::Result<()> {
        match DirBuilder::new().recursive(true).mode(MODE).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !folder.symlink_metadata()?.is_dir() {
            return Err(io::Error::other("it is no folder"));
        }
        // The mode while it is still, or already, root's: afterwards that needs more.
        fs::set_permissions(folder, Permissions::from_mode(MODE))?;
        chown(folder, Some(owner), Some(owner))
    };
    made().with_context(|| folder.display().to_string())?;
    tracing::info!(folder = %folder.display(), owner, "the folder is there");
    Ok(())
}

/// Removes what is in a folder; itself may be a mount.
fn empty(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let removed = if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            // A mount of another container's.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            removed => removed?,
        }
        tracing::info!(path = %path.display(), "removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn folders_are_made_what_they_should_be_and_keep_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        fs::create_dir_all(state.join("host")).unwrap();
        fs::write(state.join("host/file"), "").unwrap();
        let folders = || Folders { state: state.clone(), run: run.clone() };
        for _ in 0..2 {
            Command::MakeFolders(Make { folders: folders(), host_uid: 65_532 }).run().unwrap();
        }
        let of = |path: &Path| path.metadata().map(|found| (found.uid(), found.mode() & 0o777)).unwrap();
        for of_host in [state.join("host"), run.join("secrets")] {
            assert_eq!(of(&of_host), (65_532, 0o700));
        }
        assert_eq!(of(&state.join("keeper")), (0, 0o700));
        assert!(state.join("host/file").exists() && run.join("keeper").exists());
        Command::RemoveFolders(Remove { folders: folders(), stay: false }).run().unwrap();
        assert!(state.read_dir().unwrap().next().is_none() && run.read_dir().unwrap().next().is_none());
    }

    #[test]
    fn a_link_in_a_folders_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, elsewhere) = (dir.path().join("state"), dir.path().join("elsewhere"));
        fs::create_dir_all(&state).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, state.join("host")).unwrap();
        let error = make(&state.join("host"), 65_532).unwrap_err();
        assert!(format!("{error:#}").contains("it is no folder"), "{error:#}");
    }
}
