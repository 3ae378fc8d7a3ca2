//! Components in folders of a catalog's folder: nobody reads them, and whoever put them there is told so.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::folder::is_yaml;

/// So deep folders are looked at.
const DEEP: usize = 4;

/// So many files and folders are looked at: a person may name any folder.
const LOOKED_AT: usize = 2_000;

/// So much of a file is looked at, in bytes.
const HEAD: u64 = 64 << 10;

/// Folders of which it was told that nobody reads what they hold.
#[derive(Debug, Default)]
pub struct Nested(BTreeSet<PathBuf>);

impl Nested {
    /// Tells the log which folders below these hold components, where that is new.
    pub fn tell(&mut self, paths: &[PathBuf]) {
        let found: BTreeSet<_> = paths.iter().flat_map(|path| find(path)).filter(|of| !is_read(of, paths)).collect();
        for folder in found.difference(&self.0) {
            tracing::warn!(
                folder = %folder.display(),
                "components in a folder of a catalog's folder are not read: name that folder too, or move them up"
            );
        }
        self.0 = found;
    }
}

/// The folders below `path` that hold components.
pub(super) fn find(path: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut left) = (BTreeSet::new(), LOOKED_AT);
    look(path, 0, &mut left, &mut found);
    found
}

fn look(folder: &Path, deep: usize, left: &mut usize, found: &mut BTreeSet<PathBuf>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        // Mounted ConfigMaps have what they hold in such a folder, too.
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        if is_hidden {
            continue;
        }
        if deep < DEEP && path.is_dir() {
            look(&path, deep + 1, left, found);
        } else if deep > 0 && !found.contains(folder) && is_yaml(&path) && is_component(&path) {
            found.insert(folder.to_owned());
        }
    }
}

/// Whether a file, or its folder, was named itself.
fn is_read(folder: &Path, paths: &[PathBuf]) -> bool {
    let in_place = |path: &Path| path.canonicalize().ok();
    let folder = in_place(folder);
    paths.iter().any(|path| in_place(path) == folder)
}

/// As far as one can see without reading it as one.
fn is_component(path: &Path) -> bool {
    let mut text = Vec::new();
    let is_file = path.is_file() && File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut text)).is_ok();
    is_file && String::from_utf8_lossy(&text).contains("pillion.dev/v1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_below_that_hold_components_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let component = "apiVersion: pillion.dev/v1alpha1\nkind: Component\n";
        for (file, text) in [
            ("top.yaml", component),
            ("shop/clock.yaml", component),
            ("shop/more.yml", component),
            ("shop/deep/er/flags.yaml", component),
            ("other/map.yaml", "apiVersion: v1\nkind: ConfigMap\n"),
            ("notes/clock.txt", component),
            ("..data/clock.yaml", component),
            ("1/2/3/4/5/far.yaml", component),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        // Folders that lead back to themselves end.
        std::os::unix::fs::symlink(dir.path(), dir.path().join("other/again")).unwrap();
        let found = find(dir.path());
        let is_there = |folder: &str| found.contains(&dir.path().join(folder));
        assert!(is_there("shop") && is_there("shop/deep/er"), "{found:?}");
        for folder in ["", "other", "notes", "..data", "1/2/3/4/5"] {
            assert!(!is_there(folder), "{folder}: {found:?}");
        }
        let paths = [dir.path().to_owned(), dir.path().join("shop")];
        assert!(is_read(&dir.path().join("./shop"), &paths) && !is_read(&dir.path().join("shop/deep"), &paths));
        assert!(find(&dir.path().join("top.yaml")).is_empty() && find(Path::new("/nowhere/at/all")).is_empty());
    }
}
