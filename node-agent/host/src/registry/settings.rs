//! The node's settings for registries: a YAML file, read again for each pull, so that what is changed in it counts from then on.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use pillion_protocol::{
    login::Login,
    quantity::{ByteSize, Span},
    reference::{Reference, is_registry},
};
use serde::{Deserialize, Serialize};

use super::{
    credentials::{CredentialError, Credentials},
    message::{Failure, Request, Source, Step},
};

/// The most that is pulled of one artifact, its components together.
const MAX_ARTIFACT: ByteSize = ByteSize::mib(512);

/// The largest settings or CA file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Settings for registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// A docker config JSON with credentials; the user's own if none is said.
    pub docker_config: Option<PathBuf>,
    /// The kubelet's credential providers.
    pub credential_providers: Option<Providers>,
    /// How long a registry may say nothing, or next to nothing.
    pub timeout: Timeout,
    /// Registries by `HOST` or `HOST:PORT`.
    pub registries: BTreeMap<String, Registry>,
}

/// Where the kubelet's credential providers are, as its flags say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Providers {
    /// `--image-credential-provider-config`
    pub config: PathBuf,
    /// `--image-credential-provider-bin-dir`
    pub bin_dir: PathBuf,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registry {
    /// A PEM file with the certificates of authorities that sign for it, beside those that the system knows.
    pub ca: Option<PathBuf>,
    /// It speaks HTTP without TLS.
    pub plain_http: bool,
    /// Registries that are asked before it, in this order. They are asked as their own entries say.
    pub mirrors: Vec<String>,
    /// Token servers, `HOST` or `HOST:PORT`, that are told the login for it though they are of another domain, or next to us.
    pub token_servers: Vec<String>,
}

/// A time that a registry may take, 30 s by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeout(Span);

impl Default for Timeout {
    fn default() -> Self {
        Self(Span::new(Duration::from_secs(30)))
    }
}

impl Timeout {
    /// As a duration.
    pub fn get(self) -> Duration {
        self.0.get().max(Duration::from_millis(1))
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file that cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: std::io::Error,
    },
    /// Not what it should be.
    #[error("{path}: {problem}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// No credentials where there should be some.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

/// Where the settings are: a file, and what the command line says beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file.
    pub file: Option<PathBuf>,
    /// Registries that speak HTTP without TLS.
    pub plain_http: Vec<String>,
}

impl Location {
    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or is none; a registry that is no host.
    pub fn read(&self) -> Result<Settings, SettingsError> {
        let mut settings = match &self.file {
            Some(file) => read(file)?,
            None => Settings::default(),
        };
        for registry in &self.plain_http {
            settings.registries.entry(registry.clone()).or_default().plain_http = true;
        }
        Ok(settings)
    }

    /// What to ask a puller for: the settings as they are now, and who we are: at the artifact's own registry each of `logins` in
    /// turn, of which `None` is whom this machine says; nothing else where there are none.
    ///
    /// # Errors
    ///
    /// What cannot be read.
    pub fn request(
        &self,
        reference: Reference,
        store: PathBuf,
        credentials: &Credentials,
        logins: &[Option<Login>],
    ) -> Result<Request, Failure> {
        let read = || {
            let settings = self.read()?;
            let sources = settings.sources(&reference, credentials, logins)?;
            Ok::<_, SettingsError>((settings.timeout.get(), sources))
        };
        match read() {
            Ok((timeout, sources)) => {
                let (impatient, full, proof) = (false, None, None);
                Ok(Request { reference, sources, store, timeout, most: MAX_ARTIFACT, impatient, full, proof })
            }
            Err(error) => Err(Failure {
                image: reference.to_string(),
                registry: reference.registry().to_owned(),
                step: Step::Login,
                problem: error.to_string(),
                passes: true,
            }),
        }
    }
}

fn text(path: &Path) -> Result<String, SettingsError> {
    let io = |error| SettingsError::Io { path: path.to_owned(), error };
    let size = fs::metadata(path).map_err(io)?.len();
    if size > MAX_FILE {
        let problem = format!("{size} bytes are too many: at most {MAX_FILE} are allowed");
        return Err(SettingsError::Wrong { path: path.to_owned(), problem });
    }
    fs::read_to_string(path).map_err(io)
}

fn read(path: &Path) -> Result<Settings, SettingsError> {
    let wrong = |problem: String| SettingsError::Wrong { path: path.to_owned(), problem };
    let mut settings: Settings = serde_saphyr::from_str(&text(path)?).map_err(|error| wrong(error.to_string()))?;
    let names = settings
        .registries
        .iter()
        .flat_map(|(name, registry)| std::iter::once(name).chain(&registry.mirrors).chain(&registry.token_servers));
    if let Some(name) =
        names.into_iter().find(|name| !is_registry(name) || name.bytes().any(|b| b.is_ascii_uppercase()))
    {
        return Err(wrong(format!("{name:?} is no registry: expected HOST or HOST:PORT in lower case")));
    }
    // Paths are relative to the file that names them.
    let folder = path.parent().unwrap_or(Path::new("."));
    let cas = settings.registries.values_mut().filter_map(|registry| registry.ca.as_mut());
    let providers = settings.credential_providers.iter_mut().flat_map(|p| [&mut p.config, &mut p.bin_dir]);
    for path in cas.chain(providers).chain(settings.docker_config.as_mut()) {
        *path = folder.join(&path);
    }
    Ok(settings)
}

impl Settings {
    /// Whom to ask for an artifact, in this order, each with who we are there.
    ///
    /// # Errors
    ///
    /// A CA file or credentials that cannot be read.
    pub fn sources(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        logins: &[Option<Login>],
    ) -> Result<Vec<Source>, SettingsError> {
        let own = self.registries.get(reference.registry());
        let mirrors = own.into_iter().flat_map(|registry| &registry.mirrors);
        let mirrors = mirrors.map(|mirror| self.source(&reference.in_registry(mirror), credentials, None));
        let logins = if logins.is_empty() { &[None] } else { logins };
        mirrors.chain(logins.iter().map(|login| self.source(reference, credentials, login.clone()))).collect()
    }

    /// One registry, with who we are there: `login`, or what this machine says.
    ///
    /// # Errors
    ///
    /// As [`Settings::sources`].
    pub fn source(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        login: Option<Login>,
    ) -> Result<Source, SettingsError> {
        let registry = self.registries.get(reference.registry());
        let ca = registry.and_then(|registry| registry.ca.as_deref()).map(text).transpose()?;
        Ok(Source {
            registry: reference.registry().to_owned(),
            plain_http: registry.is_some_and(|registry| registry.plain_http),
            ca,
            is_everybodys: login.is_none(),
            login: login.map_or_else(|| credentials.of(reference, self), Ok)?,
            token_servers: registry.map(|registry| registry.token_servers.clone()).unwrap_or_default(),
            named: self.registries.keys().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_has_a_sane_default() {
        let settings = read_text("registries: {r.example: {mirrors: [m.example]}}").unwrap();
        assert_eq!(settings.timeout.get(), Duration::from_secs(30));
        assert!(!settings.registries["r.example"].plain_http, "plain HTTP is never a default");
        let location = Location { file: None, plain_http: vec!["localhost:5000".into()] };
        assert!(location.read().unwrap().registries["localhost:5000"].plain_http);
    }

    #[test]
    fn every_error_names_the_file_and_the_text() {
        let table = [
            ("registrys: {}", "registrys"),
            ("registries: {'http://r.example': {}}", "\"http://r.example\" is no registry"),
            ("registries: {r.example: {mirrors: ['m.example/x']}}", "\"m.example/x\" is no registry"),
            ("registries: {r.example: {insecure: true}}", "insecure"),
            ("timeout: soon", "\"soon\""),
        ];
        for (text, expected) in table {
            let error = read_text(text).unwrap_err();
            assert!(error.contains("registries.yaml") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn mirrors_are_asked_first_and_as_their_own_entries_say() {
        let settings = read_text(
            "registries: {r.example: {mirrors: ['m.example:5000', n.example]}, 'm.example:5000': {plainHttp: true}}",
        )
        .unwrap();
        let nobody = tempfile::NamedTempFile::new().unwrap();
        fs::write(nobody.path(), "{}").unwrap();
        let settings = Settings { docker_config: Some(nobody.path().to_owned()), ..settings };
        let sources = settings.sources(&"r.example/a:1".parse().unwrap(), &Credentials::default(), &[]).unwrap();
        let asked: Vec<_> = sources.iter().map(|source| (source.registry.as_str(), source.plain_http)).collect();
        assert_eq!(asked, [("m.example:5000", true), ("n.example", false), ("r.example", false)]);
    }
}
