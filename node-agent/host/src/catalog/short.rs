//! The short forms of the command line, `[NAME=]FILE.wasm=PORT` and `[NAME=]REGISTRY/REPOSITORY:TAG=PORT`: a component with every setting
//! at its default.

use std::path::{Path, PathBuf};

use pillion_protocol::{
    annotation::{AnnotationError, Port},
    component::{ComponentSpec, Image},
    name::{Name, NameError},
    reference::{Reference, ReferenceError},
};

use super::{CatalogError, Components, Entry, folder::absolute};

/// A component and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// Its name: as is said, else as its file or its repository is called.
    pub name: Name,
    /// What it is.
    pub entry: Entry,
    /// Where it is served.
    pub port: Port,
    /// As it was written, without a name.
    plain: String,
}

impl Short {
    /// Reads `[NAME=]FILE.wasm=PORT`. A file that is there by all of the text before the port is that file, where its name makes a component's.
    ///
    /// # Errors
    ///
    /// A text that is not of that form; a file whose name makes no component's, without a NAME.
    pub fn file(text: &str) -> Result<Self, CatalogError> {
        let wrong = |problem: String| CatalogError::Short { text: text.to_owned(), problem };
        let (rest, port) = port_of(text).map_err(&wrong)?;
        let whole = || Path::new(rest).exists() && called(rest).is_ok();
        let (name, file) = match rest.split_once('=') {
            // A path with a folder before its "=" says no name.
            Some((name, file)) if !name.contains('/') && !whole() => (Some(name), file),
            _ => (None, rest),
        };
        let name = match name {
            Some(name) => name.parse().map_err(|error: NameError| wrong(error.to_string()))?,
            None => called(file).map_err(|error| {
                wrong(format!("from the file's name, {error}; give the component another one: \"NAME={text}\""))
            })?,
        };
        let source = absolute(Path::new("."), Path::new(file))?;
        let image = Image::Path(source.to_string_lossy().into_owned());
        Ok(Self {
            name,
            entry: Entry { spec: ComponentSpec::new(image), source },
            port,
            plain: format!("{file}={port}"),
        })
    }

    /// Reads `[NAME=]REGISTRY/REPOSITORY:TAG=PORT`.
    ///
    /// # Errors
    ///
    /// A text that is not of that form; a repository whose name makes no component's, without a NAME.
    pub fn image(text: &str) -> Result<Self, CatalogError> {
        let wrong = |problem: String| CatalogError::ShortImage { text: text.to_owned(), problem };
        let (rest, port) = port_of(text).map_err(&wrong)?;
        // No reference has a "=" in it.
        let (name, image) = rest.split_once('=').map_or((None, rest), |(name, image)| (Some(name), image));
        let reference: Reference = image.parse().map_err(|error: ReferenceError| wrong(error.to_string()))?;
        let name = match name {
            Some(name) => name.parse().map_err(|error: NameError| wrong(error.to_string()))?,
            None => {
                let last = reference.repository().rsplit('/').next().unwrap_or_default();
                last.replace(['_', '.'], "-").parse().map_err(|error: NameError| {
                    wrong(format!(
                        "from the repository's name, {error}; give the component another one: \"NAME={text}\""
                    ))
                })?
            }
        };
        let (source, plain) = (PathBuf::from(reference.to_string()), format!("{image}={port}"));
        Ok(Self { name, entry: Entry { spec: ComponentSpec::new(Image::Reference(reference)), source }, port, plain })
    }

    /// Adds it to `components`.
    ///
    /// # Errors
    ///
    /// A name that is there.
    pub fn insert_into(self, components: &mut Components) -> Result<(), CatalogError> {
        let Self { name, entry, plain, .. } = self;
        match components.get(&name) {
            Some(there) => Err(CatalogError::ShortTwice { name, first: there.source.clone(), text: plain }),
            None => {
                components.insert(name, entry);
                Ok(())
            }
        }
    }
}

fn port_of(text: &str) -> Result<(&str, Port), String> {
    let (rest, port) = text.rsplit_once('=').ok_or("there is no \"=\" in it")?;
    Ok((rest, port.parse().map_err(|error: AnnotationError| error.to_string())?))
}

/// The name of a component in this file.
fn called(file: &str) -> Result<Name, NameError> {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    // Cargo writes a library's "-" as "_".
    stem.to_ascii_lowercase().replace(['_', '.', ' '], "-").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_name_that_is_given_or_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file).display().to_string();
        std::fs::create_dir(folder.path().join("x=1")).unwrap();
        std::fs::write(folder.path().join("x=1/a.wasm"), "").unwrap();
        let table = [
            ("./target/My_Clock.wasm=8080".to_owned(), "my-clock", "target/My_Clock.wasm"),
            ("under=./_.wasm=8080".into(), "under", "_.wasm"),
            ("cafe=café.wasm=8080".into(), "cafe", "café.wasm"),
            ("b=./a=b/x.wasm=8080".into(), "b", "a=b/x.wasm"),
            ("b=x=y.wasm=8080".into(), "b", "x=y.wasm"),
            ("./x=1/a.wasm=8080".into(), "a", "x=1/a.wasm"),
            (format!("{}=8080", path("x=1/a.wasm")), "a", "x=1/a.wasm"),
        ];
        for (text, name, file) in table {
            let short = Short::file(&text).unwrap();
            assert_eq!((short.name.as_str(), short.port.get()), (name, 8080), "{text}");
            assert!(short.entry.source.is_absolute() && short.entry.source.ends_with(file), "{short:?}");
        }
    }

    #[test]
    fn what_is_no_file_and_port_says_what_to_type() {
        for (text, expected) in [
            ("x.wasm", "no \"=\""),
            ("x.wasm=80", "\"80\" is no port"),
            ("=8080", "\"\" is no name"),
            ("_.wasm=8080", "give the component another one: \"NAME=_.wasm=8080\""),
            ("café.wasm=8080", "\"NAME=café.wasm=8080\""),
            ("./x=y.wasm=8080", "\"NAME=./x=y.wasm=8080\""),
            ("Clock=x.wasm=8080", "\"Clock\" is no name"),
            ("=x.wasm=8080", "\"\" is no name"),
        ] {
            let error = Short::file(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("expected [NAME=]FILE.wasm=PORT"), "{error}");
        }
    }

    #[test]
    fn an_artifact_has_a_short_form_too() {
        for (text, name) in
            [("localhost:5000/acme/my_clock:1.0=8080", "my-clock"), ("x=localhost:5000/acme/my_clock:1.0=8080", "x")]
        {
            let short = Short::image(text).unwrap();
            assert_eq!((short.name.as_str(), short.port.get()), (name, 8080));
            assert_eq!(short.entry.spec.image.to_string(), "localhost:5000/acme/my_clock:1.0");
        }
        let long = format!("r.example/{}:1=8080", "a".repeat(64));
        let error = Short::image(&long).unwrap_err().to_string();
        assert!(error.contains(&format!("\"NAME={long}\"")), "{error}");
    }

    #[test]
    fn a_second_one_of_a_name_says_how_to_name_it() {
        let mut components = Components::new();
        Short::file("a/x.wasm=8080").unwrap().insert_into(&mut components).unwrap();
        let error = Short::file("b/x.wasm=8081").unwrap().insert_into(&mut components).unwrap_err().to_string();
        assert!(error.contains("a/x.wasm") && error.contains("\"NAME=b/x.wasm=8081\""), "{error}");
        Short::file("y=b/x.wasm=8081").unwrap().insert_into(&mut components).unwrap();
        assert_eq!(components.len(), 2);
    }
}
