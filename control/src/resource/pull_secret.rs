//! Who nodes are at the registry of a component's image: what its pull secrets say.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use pillion_protocol::{
    login::{Login, key_for},
    reference::Reference,
};
use serde::Deserialize;

use super::{Rejection, Spec, Values};

/// Where a Secret of the type `kubernetes.io/dockerconfigjson` has what it says.
pub(super) const KEY: &str = ".dockerconfigjson";

/// A docker config JSON. Programs that it may name are not run here.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

impl Spec {
    /// What the first of its pull secrets says that is for this image. None may be: then nodes have what they have themselves.
    pub(super) fn login(&self, image: &Reference, values: &Values) -> Result<Option<Login>, Rejection> {
        for secret in &self.image_pull_secrets {
            let of_secret = |rejection: Rejection| rejection.of(format!("the pull secret {:?}", secret.name));
            let config = values.docker_config(&secret.name).map_err(of_secret)?;
            let login = login(config, image).map_err(|error| of_secret(Rejection::invalid(error)))?;
            if login.is_some() {
                return Ok(login);
            }
        }
        Ok(None)
    }
}

/// Its errors quote nothing of what is in it.
fn login(config: &str, image: &Reference) -> Result<Option<Login>, String> {
    let DockerConfig { auths } = serde_json::from_str(config)
        .map_err(|error| format!("{KEY}, line {}: it is no docker config JSON", error.line()))?;
    let Some(auth) = key_for(auths.keys(), image).and_then(|key| auths.get(key)) else { return Ok(None) };
    if let Some(token) = auth.identity_token.as_ref().filter(|token| !token.is_empty()) {
        return Ok(Some(Login::Identity { token: token.clone() }));
    }
    let login = match auth {
        Auth { username: Some(username), password: Some(password), .. } => Some((username.clone(), password.clone())),
        Auth { auth: Some(auth), .. } => decoded(auth),
        _ => None,
    };
    let registry = image.registry();
    let (username, password) = login.ok_or_else(|| {
        format!(
            "{KEY}: for {registry} it has no user name and password, no identitytoken, and no auth, which is the first two with a colon in base64"
        )
    })?;
    Ok(Some(Login::Basic { username, password }))
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    text.split_once(':').map(|(username, password)| (username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_images_registry_counts() {
        // "ann:hunter2"
        let config = r#"{"auths": {
            "r.example": {"auth": "YW5uOmh1bnRlcjI="},
            "https://index.docker.io/v1/": {"username": "hub", "password": "hunter2"},
            "broken.example": {"auth": "aHVudGVyMg=="},
            "acme.azurecr.io": {"auth": "MDAwMDAwMDA6", "identitytoken": "hunter3"},
            "empty.example": {}
        }}"#;
        let user = |image: &str| login(config, &image.parse().unwrap());
        let basic = |name: &str| Ok(Some(Login::Basic { username: name.into(), password: "hunter2".into() }));
        assert_eq!(user("r.example/a:1"), basic("ann"));
        assert_eq!(user("docker.io/library/a:1"), basic("hub"));
        assert_eq!(user("acme.azurecr.io/a:1"), Ok(Some(Login::Identity { token: "hunter3".into() })));
        assert_eq!(user("other.example/a:1"), Ok(None));
        for broken in ["broken.example/a:1", "empty.example/a:1"] {
            let error = user(broken).unwrap_err();
            assert!(error.contains("no user name and password") && !error.contains("hunter2"), "{error}");
        }
        let error = login(r#"{"auths": "hunter2"}"#, &"r.example/a:1".parse().unwrap()).unwrap_err();
        assert_eq!(error, ".dockerconfigjson, line 1: it is no docker config JSON");
    }
}
