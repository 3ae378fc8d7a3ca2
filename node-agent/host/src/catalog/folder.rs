//! Components from YAML files and folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pillion_protocol::{
    component::{Component, Image},
    name::Name,
};

use super::{CatalogError, Components, Entry, nested};

/// The largest YAML file, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The most components in one file.
const MAX_COMPONENTS: usize = 50_000;

/// Reads the components in files, and in the `.yaml` and `.yml` files of folders (not of folders in them).
///
/// # Errors
///
/// The first thing that is wrong: a catalog that is read in part would surprise.
pub fn read(paths: &[PathBuf]) -> Result<Components, CatalogError> {
    let mut components = Components::new();
    for path in paths {
        for file in files(path)? {
            for (name, entry) in read_file(&file)? {
                insert(&mut components, name, entry)?;
            }
        }
    }
    Ok(components)
}

/// Adds a component.
///
/// # Errors
///
/// A name that is there.
pub fn insert(components: &mut Components, name: Name, entry: Entry) -> Result<(), CatalogError> {
    match components.get(&name) {
        Some(there) => Err(CatalogError::Twice { name, first: there.source.clone(), second: entry.source }),
        None => {
            components.insert(name, entry);
            Ok(())
        }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CatalogError {
    let path = path.to_owned();
    move |error| CatalogError::Io { path, error }
}

pub(super) fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn files(path: &Path) -> Result<Vec<PathBuf>, CatalogError> {
    if !fs::metadata(path).map_err(io(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(io(path))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_yaml(path)).collect();
    if files.is_empty() {
        return Err(CatalogError::EmptyFolder { path: path.to_owned(), nested: nested::find(path) });
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Vec<(Name, Entry)>, CatalogError> {
    let parse = |error: String| CatalogError::Parse { path: path.to_owned(), error };
    let size = fs::metadata(path).map_err(io(path))?.len();
    if size > MAX_FILE {
        return Err(parse(format!("{size} bytes are too many: at most {MAX_FILE} are allowed")));
    }
    let text = fs::read_to_string(path).map_err(io(path))?;
    // The file's size bounds it; the defaults are for strangers' text, and hold a thousand components.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_COMPONENTS,
            max_events: 100 * MAX_COMPONENTS,
            max_nodes: 100 * MAX_COMPONENTS,
        },
    };
    let components: Vec<Component> =
        serde_saphyr::from_multiple_with_options(&text, options).map_err(|error| parse(error.to_string()))?;
    if components.is_empty() {
        return Err(parse("there is no component in it".into()));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let entry = |component: Component| {
        let mut spec = component.spec;
        if let Image::Path(image) = &spec.image {
            spec.image = Image::Path(absolute(folder, Path::new(image))?.to_string_lossy().into_owned());
        }
        Ok((component.metadata.name, Entry { spec, source: path.to_owned() }))
    };
    components.into_iter().map(entry).collect()
}

pub(super) fn absolute(folder: &Path, path: &Path) -> Result<PathBuf, CatalogError> {
    std::path::absolute(folder.join(path)).map_err(io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str, rest: &str) -> String {
        format!(
            "apiVersion: pillion.dev/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nspec:\n  image: ./{name}.wasm\n{rest}"
        )
    }

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_holds_components_one_or_more_in_a_file() {
        let both = format!("{}---\n{}", component("a", ""), component("b", "  limits: {memory: 64Mi}\n"));
        let dir = folder(&[("two.yaml", both), ("c.yml", component("c", "")), ("notes.txt", "no YAML: [".into())]);
        let components = read(&[dir.path().to_owned()]).unwrap();
        assert_eq!(components.keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        let image = components.values().next().unwrap().spec.image.to_string();
        assert_eq!(Path::new(&image), dir.path().join("./a.wasm"), "relative to the file that names it");
    }

    #[test]
    fn every_error_names_the_file_and_the_text() {
        let table = [
            (component("a", "  limits: {memroy: 64Mi}\n"), "memroy"),
            (component("a", "  limits: {memory: 1}\n"), "1 is out of range"),
            (component("Ä", ""), "\"Ä\" is no name"),
            ("apiVersion: v1\nkind: ConfigMap\n".into(), "v1"),
            ("a: [".into(), "x.yaml"),
            ("# nothing\n".into(), "no component"),
        ];
        for (text, expected) in table {
            let dir = folder(&[("x.yaml", text)]);
            let error = read(&[dir.path().to_owned()]).unwrap_err().to_string();
            assert!(error.contains("x.yaml") && error.contains(expected), "{error}");
        }
        let dir = folder(&[("x.yaml", component("a", "")), ("y.yaml", component("a", ""))]);
        let error = read(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("y.yaml") && error.contains("x.yaml") && error.contains("\"a\""), "{error}");
        assert!(read(&[folder(&[]).path().to_owned()]).unwrap_err().to_string().contains("no .yaml or .yml"));
    }
}
