//! A registry that is to be started.

use std::{fs, sync::Arc};

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Registry, TokenServer, config,
    remote::{Access, Remote},
    storage,
};
use crate::{place, tls::Authority};

/// A registry that is to be started.
pub(super) struct Setup {
    folder: TempDir,
    port: u16,
    config: Value,
    access: Access,
    authority: Option<Authority>,
    tokens: Option<TokenServer>,
}

impl Setup {
    /// Keys: /usr/share/doc/docker-registry/configuration.md.gz.
    pub(super) fn new() -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, place::free_port()?);
        let config = json!({
            "version": "0.1",
            "log": {"level": "info", "fields": {"service": "registry"}},
            "storage": {"filesystem": {"rootdirectory": storage(folder.path())}, "delete": {"enabled": true}},
            "http": {"addr": format!("127.0.0.1:{port}"), "secret": "the same after a restart"},
        });
        Ok(Self { folder, port, config, access: Access::Open, authority: None, tokens: None })
    }

    pub(super) fn htpasswd(mut self, user: &str, password: &str) -> Result<Self> {
        let file = self.folder.path().join("htpasswd");
        // The least cost that bcrypt has: each request is checked anew.
        fs::write(&file, format!("{user}:{}\n", bcrypt::hash(password, 4)?))?;
        self.set("auth", json!({"htpasswd": {"realm": "pillion-tests", "path": file}}));
        self.access = Access::basic(user, password);
        Ok(self)
    }

    pub(super) fn token_server(mut self, user: &str, password: &str) -> Result<Self> {
        let bundle = self.folder.path().join("tokens.pem");
        let server = TokenServer::start(user, password, &bundle)?;
        self.set("auth", json!({"token": server.config(&bundle)}));
        self.access = Access::Tokens(Arc::clone(server.issuer()));
        self.tokens = Some(server);
        Ok(self)
    }

    pub(super) fn tls(mut self) -> Result<Self> {
        let authority = Authority::found(self.folder.path())?;
        let [certificate, key] = ["server.pem", "server.key"].map(|name| self.folder.path().join(name));
        let issued = authority.issue(&["localhost", "127.0.0.1", "::1"])?;
        for (path, pem) in [&certificate, &key].into_iter().zip(issued) {
            fs::write(path, pem)?;
        }
        if let Some(Value::Object(http)) = self.config.get_mut("http") {
            http.insert("tls".into(), json!({"certificate": certificate, "key": key}));
        }
        self.authority = Some(authority);
        Ok(self)
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Value::Object(config) = &mut self.config {
            config.insert(key.into(), value);
        }
    }

    pub(super) async fn start(self) -> Result<Registry> {
        let Self { folder, port, config: content, access, authority, tokens } = self;
        // JSON is YAML.
        fs::write(config(folder.path()), format!("{content:#}\n"))?;
        let tls = authority.as_ref().map(Authority::connector).transpose()?;
        let remote = Remote { port, tls, access };
        let mut registry = Registry { daemon: None, folder, remote, authority, tokens };
        registry.restart().await?;
        Ok(registry)
    }
}
