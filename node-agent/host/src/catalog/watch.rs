//! `--watch`: says when files of the catalog change.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use notify::{RecursiveMode, Watcher};

/// A burst of events is one change: editors and linkers write a file in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// Calls `changed` after any of `files` changed, until the process ends. Their folders are watched, since a file that is replaced
/// by rename is another file.
///
/// # Errors
///
/// Folders that cannot be watched.
pub fn watch(files: &BTreeSet<PathBuf>, mut changed: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let (sender, events) = channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            _ = sender.send(());
        }
    })?;
    let folders: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    thread::Builder::new().name("watch".into()).spawn(move || {
        let _watcher = watcher;
        while events.recv().is_ok() {
            while !matches!(
                events.recv_timeout(SETTLE),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)
            ) {}
            changed();
        }
    })?;
    Ok(())
}
