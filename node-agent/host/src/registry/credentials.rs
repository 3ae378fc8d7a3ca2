//! Who we are at a registry: what a docker config JSON says, then what one of the kubelet's credential providers says, else nobody.
//!
//! Here passwords are read, and handed to the puller that needs them. They are never logged, and no worker ever has one.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use pillion_protocol::{
    login::{Login, key_for},
    reference::Reference,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    provider::{self, Cache},
    settings::Settings,
};

/// How long a credential helper may take.
const HELPER: Duration = Duration::from_secs(60);

/// How container tools write their first registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Finds credentials, and remembers what providers gave for as long as they allow.
#[derive(Debug, Default)]
pub struct Credentials(Cache);

/// Credentials that cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file that cannot be read, or is not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A program that gives none.
    #[error("the credential provider {program:?}: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The keys of a docker config JSON. Their values are read by the library, and by nobody else.
#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    auths: BTreeMap<String, IgnoredAny>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

impl Credentials {
    /// Who we are at the registry of `reference`.
    ///
    /// # Errors
    ///
    /// A file or a program that should tell and does not.
    pub fn of(&self, reference: &Reference, settings: &Settings) -> Result<Login, CredentialError> {
        let config = settings.docker_config.clone().or_else(|| users_own().filter(|path| path.exists()));
        let login = match config {
            Some(path) => of_docker_config(&path, reference)?,
            None => None,
        };
        match (login, &settings.credential_providers) {
            (Some(login), _) => Ok(login),
            (None, Some(providers)) => Ok(provider::login(providers, reference, &self.0)?.unwrap_or_default()),
            (None, None) => Ok(Login::Anonymous),
        }
    }
}

fn users_own() -> Option<PathBuf> {
    let from = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = from("DOCKER_CONFIG").or_else(|| Some(from("HOME")?.join(".docker")))?;
    Some(folder.join("config.json"))
}

fn of_docker_config(path: &Path, reference: &Reference) -> Result<Option<Login>, CredentialError> {
    let wrong = |problem: String| CredentialError::File { path: path.to_owned(), problem };
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    // The parser's words could quote what is in the file.
    let keys: Keys = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("line {}: it is no docker config JSON", error.line())))?;
    let host = if reference.registry() == "docker.io" { DOCKER_HUB } else { reference.registry() };
    let key = key_for(keys.auths.keys().chain(keys.helpers.keys()), reference);
    let Some(key) = key.or_else(|| keys.store.is_some().then_some(host)).map(str::to_owned) else { return Ok(None) };
    let helper = keys.helpers.get(&key).or(keys.store.as_ref()).cloned().unwrap_or_default();
    match retrieve(text, key).map_err(|error| wrong(words(&error, &helper)))? {
        None => Ok(None),
        Some(DockerCredential::UsernamePassword(username, password)) => Ok(Some(Login::Basic { username, password })),
        Some(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Identity { token })),
    }
}

/// A helper is another program: it is not waited for without end.
fn retrieve(config: Vec<u8>, key: String) -> Result<Option<DockerCredential>, CredentialRetrievalError> {
    let (sender, receiver) = mpsc::channel();
    let retrieve = move || _ = sender.send(docker_credential::get_credential_from_reader(config.as_slice(), &key));
    let started = thread::Builder::new().name("credentials".into()).spawn(retrieve);
    let found = started.ok().and_then(|_| receiver.recv_timeout(HELPER).ok());
    match found.unwrap_or(Err(CredentialRetrievalError::HelperCommunicationError)) {
        Ok(credential) => Ok(Some(credential)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // That there is none is the most usual failure of a helper, and the protocol has no other word for it.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Without what the helper said, which may be a secret.
fn words(error: &CredentialRetrievalError, helper: &str) -> String {
    match error {
        CredentialRetrievalError::HelperCommunicationError => {
            format!("the credential helper \"docker-credential-{helper}\" cannot be run: is it in the PATH?")
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => format!("the credential helper {helper:?} failed"),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &str, reference: &str) -> Result<Login, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, config).unwrap();
        let settings = Settings { docker_config: Some(path), ..Settings::default() };
        let reference = reference.parse().unwrap();
        Credentials::default().of(&reference, &settings).map_err(|error| error.to_string())
    }

    fn user(config: &str, reference: &str) -> Option<String> {
        match login(config, reference).unwrap() {
            Login::Basic { username, .. } => Some(username),
            Login::Identity { .. } => Some("a token".to_owned()),
            Login::Anonymous => None,
        }
    }

    #[test]
    fn the_longest_key_that_matches_counts() {
        // "host:word", "acme:word", "glob:word", "hub:word"
        let config = r#"{"auths": {
            "r.example": {"auth": "aG9zdDp3b3Jk"},
            "https://r.example/acme": {"auth": "YWNtZTp3b3Jk"},
            "*.wild.example": {"auth": "Z2xvYjp3b3Jk"},
            "https://index.docker.io/v1/": {"auth": "aHViOndvcmQ="},
            "r.example:5000": {"username": "port", "password": "word"}
        }}"#;
        let table = [
            ("r.example/a:1", Some("host")),
            ("r.example/acme/a:1", Some("acme")),
            ("r.example/acmeish/a:1", Some("host")),
            ("x.wild.example/a:1", Some("glob")),
            ("x.y.wild.example/a:1", None),
            ("r.example:5000/a:1", Some("port")),
            ("docker.io/library/a:1", Some("hub")),
            ("evil.r.example/a:1", None),
            ("r.example.evil/a:1", None),
        ];
        for (reference, expected) in table {
            assert_eq!(user(config, reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn an_identity_token_is_one() {
        // As `az acr login` writes it: "00000000:" beside it.
        let config = r#"{"auths": {"acme.azurecr.io": {"auth": "MDAwMDAwMDA6", "identitytoken": "hunter2"}}}"#;
        let login = login(config, "acme.azurecr.io/a:1").unwrap();
        assert_eq!(login, Login::Identity { token: "hunter2".into() });
        assert!(!format!("{login:?}").contains("hunter2"));
    }

    #[test]
    fn what_cannot_be_used_is_said_without_a_secret() {
        let table = [
            (r#"{"auths": {"r.example": {"auth": "aHVudGVyMg=="}}}"#, "Unable to decode credential"),
            (r#"{"auths": "hunter2"}"#, "line 1: it is no docker config JSON"),
            (
                r#"{"credsStore": "pillion-test-missing"}"#,
                "helper \"docker-credential-pillion-test-missing\" cannot be run",
            ),
            (
                r#"{"credHelpers": {"r.example": "pillion-test-gone"}}"#,
                "helper \"docker-credential-pillion-test-gone\"",
            ),
        ];
        for (config, expected) in table {
            let error = login(config, "r.example/a:1").unwrap_err();
            assert!(error.contains(expected) && error.contains("config.json"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("aHVudGVyMg"), "{error}");
        }
    }
}
