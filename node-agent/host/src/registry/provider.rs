//! The kubelet's credential providers: programs that give credentials for images, as clouds' registries want them.
//!
//! The configuration is the kubelet's own (`CredentialProviderConfig`), and so is what is said to a provider and back
//! (`credentialprovider.kubelet.k8s.io`): <https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/>.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pillion_protocol::{
    login::{Login, matches},
    reference::Reference,
};
use serde::{Deserialize, Serialize};

use super::{credentials::CredentialError, settings::Providers};
use crate::program::{self, Tell};

/// How long a provider may take, as in the kubelet.
const PROVIDER: Duration = Duration::from_secs(60);

/// The most that is kept of what a provider says, in bytes.
const OUTPUT: usize = 1 << 20;

/// What providers gave, by provider and by what it is for, for as long as they allow.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<(String, String), Given>>);

#[derive(Clone, Debug)]
struct Given {
    until: Instant,
    logins: BTreeMap<String, Login>,
}

/// `CredentialProviderConfig`. What is not needed here is let through.
#[derive(Deserialize)]
struct Config {
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: BTreeMap<String, AuthConfig>,
}

#[derive(Deserialize)]
struct AuthConfig {
    username: String,
    password: String,
}

/// What the first provider that is for this reference gives; `None` if none is for it.
///
/// # Errors
///
/// A provider that fails: whoever is to be somebody must not become nobody unnoticed.
pub(super) fn login(
    providers: &Providers,
    reference: &Reference,
    cache: &Cache,
) -> Result<Option<Login>, CredentialError> {
    let path = &providers.config;
    let wrong = |problem: String| CredentialError::File { path: path.clone(), problem };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let config: Config = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let is_for = |provider: &&Provider| provider.match_images.iter().any(|pattern| matches(pattern, reference));
    let Some(provider) = config.providers.iter().find(is_for) else { return Ok(None) };
    if let Some(login) = cache.get(&provider.name, reference) {
        return Ok(Some(login));
    }
    let failed = |problem: String| CredentialError::Program { program: provider.name.clone(), problem };
    let answer = ask(provider, &providers.bin_dir, reference).map_err(failed)?;
    let lasts = answer.cache_duration.as_ref().unwrap_or(&provider.default_cache_duration);
    let lasts = humantime::parse_duration(lasts).map_err(|_| failed(format!("{lasts:?} is no duration")))?;
    let login = |auth: AuthConfig| Login::Basic { username: auth.username, password: auth.password };
    let logins = answer.auth.into_iter().map(|(pattern, auth)| (pattern, login(auth))).collect();
    let key = match answer.cache_key_type.as_str() {
        "Image" => reference.to_string(),
        "Registry" => reference.registry().to_owned(),
        "Global" => String::new(),
        other => return Err(failed(format!("cacheKeyType {other:?}: allowed are Image, Registry, Global"))),
    };
    let until = Instant::now().checked_add(lasts).ok_or_else(|| failed("it gives credentials for ever".into()))?;
    let given = Given { until, logins };
    let found = given.login(reference);
    cache.0.lock().unwrap_or_else(PoisonError::into_inner).insert((provider.name.clone(), key), given);
    Ok(found)
}

fn ask(provider: &Provider, folder: &Path, reference: &Reference) -> Result<Answer, String> {
    if provider.name.is_empty() || provider.name.contains('/') || provider.name.starts_with('.') {
        return Err("the name is no file name".into());
    }
    let image = reference.to_string();
    let question = Question { api_version: &provider.api_version, kind: "CredentialProviderRequest", image: &image };
    let question = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
    let mut command = Command::new(folder.join(&provider.name));
    command.args(&provider.args).envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)));
    // What it says there is not for our log.
    command.stderr(Stdio::null());
    let mut said = String::new();
    let hear = |line: &str| {
        if said.len() < OUTPUT {
            said += line;
            said += "\n";
        }
    };
    let status = program::run(command, &question, Tell::AtOnce, PROVIDER, hear).map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("it failed ({status})"));
    }
    // The parser's words could quote a password.
    let answer: Answer = serde_json::from_str(&said).map_err(|_| "its answer is no CredentialProviderResponse")?;
    if answer.api_version != provider.api_version {
        return Err(format!("it answers with {:?}, asked was {:?}", answer.api_version, provider.api_version));
    }
    Ok(answer)
}

impl Given {
    /// The longest pattern that is for the reference counts.
    fn login(&self, reference: &Reference) -> Option<Login> {
        let found = self.logins.iter().filter(|(pattern, _)| matches(pattern, reference));
        found.max_by_key(|(pattern, _)| pattern.len()).map(|(_, login)| login.clone())
    }
}

impl Cache {
    fn get(&self, provider: &str, reference: &Reference) -> Option<Login> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, given| given.until > Instant::now());
        let keys = [reference.to_string(), reference.registry().to_owned(), String::new()];
        let found = keys.into_iter().find_map(|key| known.get(&(provider.to_owned(), key)));
        found.map(|given| given.login(reference).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;

    struct Setup {
        dir: tempfile::TempDir,
        providers: Providers,
    }

    fn setup(script: &str) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("acme-provider");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: acme-provider\n  \
            matchImages: ['*.acme.example']\n  defaultCacheDuration: 12h30m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
            args: [ask]\n  env: [{name: WORD, value: hunter2}]\n";
        fs::write(&config, text).unwrap();
        let bin_dir = PathBuf::from(dir.path());
        Setup { dir, providers: Providers { config, bin_dir } }
    }

    const GOOD: &str = r#"cat > "$(dirname "$0")/asked"; echo "$1" >> "$(dirname "$0")/times"
        echo '{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Registry",'
        echo '"auth": {"*.acme.example": {"username": "ann", "password": "'$WORD'"}}}'"#;

    #[test]
    fn a_provider_is_asked_once_for_a_registry() {
        let Setup { dir, providers } = setup(GOOD);
        let cache = Cache::default();
        for image in ["r.acme.example/a:1", "r.acme.example/b:1"] {
            let login = login(&providers, &image.parse().unwrap(), &cache).unwrap();
            assert_eq!(login, Some(Login::Basic { username: "ann".into(), password: "hunter2".into() }));
        }
        assert_eq!(fs::read_to_string(dir.path().join("times")).unwrap(), "ask\n");
        let asked: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("asked")).unwrap()).unwrap();
        assert_eq!(asked["image"], "r.acme.example/a:1");
        assert_eq!(asked["kind"], "CredentialProviderRequest");
        assert_eq!(login(&providers, &"r.example/a:1".parse().unwrap(), &cache).unwrap(), None);
    }

    #[test]
    fn a_provider_that_fails_is_an_error_without_what_it_said() {
        for (script, expected) in [
            ("echo hunter2; exit 7", "it failed (exit status: 7)"),
            ("echo hunter2", "no CredentialProviderResponse"),
            ("echo '{\"apiVersion\": \"x\", \"cacheKeyType\": \"Image\", \"auth\": {}}'", "it answers with \"x\""),
        ] {
            let Setup { dir: _dir, providers } = setup(script);
            let error = login(&providers, &"r.acme.example/a:1".parse().unwrap(), &Cache::default()).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("acme-provider") && error.contains(expected) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
