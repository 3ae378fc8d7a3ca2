//! Who may call an API server, and how a caller knows that it is the right one: keys, certificates, kubeconfigs.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::Builder;

use super::network::{API_SERVICE_ADDRESS, NODE_ADDRESS};
use crate::{jwt::Signer, tls::Authority};

/// The names of an API server within its cluster, as pods know it, and its addresses.
const NAMES: [&str; 7] = [
    "localhost",
    "127.0.0.1",
    NODE_ADDRESS,
    API_SERVICE_ADDRESS,
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The authority of the API server's certificate, where [`Authority::found`] puts it.
pub(super) const AUTHORITY: &str = "ca.pem";
/// The API server's certificate, and its key.
pub(super) const CERTIFICATE: &str = "api.pem";
pub(super) const KEY: &str = "api.key";
/// The key that signs service accounts' tokens, and its public half.
pub(super) const SIGNING_KEY: &str = "accounts.key";
pub(super) const SIGNING_PUBLIC_KEY: &str = "accounts.pem";
/// The administrator's token, as `--token-auth-file` has it, and kubeconfig.
pub(super) const TOKENS: &str = "tokens.csv";
pub(super) const KUBECONFIG: &str = "kubeconfig";
/// What is asked of callers.
pub(super) const AUTHENTICATION: &str = "authentication.json";

/// Writes all of it into a folder. `url` is where the API server will be.
pub(super) fn write(folder: &Path, url: &str) -> Result<()> {
    certificates(folder)?;
    let signing = KeyPair::generate()?;
    private(&folder.join(SIGNING_KEY), &signing.serialize_pem())?;
    fs::write(folder.join(SIGNING_PUBLIC_KEY), signing.public_key_pem())?;
    // Those without a token are told only whether it is well, as on most clusters.
    let paths = ["/livez", "/readyz", "/healthz"].map(|path| json!({"path": path}));
    let authentication = json!({
        "apiVersion": "apiserver.config.k8s.io/v1beta1", "kind": "AuthenticationConfiguration", "jwt": [],
        "anonymous": {"enabled": true, "conditions": paths},
    });
    fs::write(folder.join(AUTHENTICATION), authentication.to_string())?;
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let token = token.trim();
    private(&folder.join(TOKENS), &format!("{token},test,test,system:masters\n"))?;
    private(&folder.join(KUBECONFIG), &kubeconfig(folder, url, token)?)
}

/// Writes a kubeconfig of somebody else, which everybody may read: its user may be whom a program under test runs as.
pub(super) fn kubeconfig_with_token(folder: &Path, url: &str, token: &str) -> Result<PathBuf> {
    let mode = Permissions::from_mode(0o644);
    let mut file = Builder::new().prefix("kubeconfig-").permissions(mode).tempfile_in(folder)?;
    file.write_all(kubeconfig(folder, url, token)?.as_bytes())?;
    Ok(file.keep()?.1)
}

/// The same token with another end, signed anew, as time would have made it.
pub(super) fn token_until(folder: &Path, token: &str, end: SystemTime) -> Result<String> {
    let [header, claims] = {
        let mut parts = token.split('.');
        [parts.next(), parts.next()].map(Option::unwrap_or_default)
    };
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
    let end = end.duration_since(UNIX_EPOCH)?.as_secs();
    let begun = end - 600;
    for (claim, value) in [("exp", end), ("iat", begun), ("nbf", begun)] {
        claims.as_object_mut().context("a token without claims")?.insert(claim.into(), value.into());
    }
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join(SIGNING_KEY))?)?;
    Signer::new(&key)?.sign(header, &claims)
}

fn kubeconfig(folder: &Path, url: &str, token: &str) -> Result<String> {
    let authority = BASE64_STANDARD.encode(fs::read(folder.join(AUTHORITY))?);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    Ok(format!("{config:#}\n"))
}

fn certificates(folder: &Path) -> Result<()> {
    let authority = Authority::found(folder)?;
    let [certificate, key] = authority.issue(&NAMES)?;
    fs::write(folder.join(CERTIFICATE), certificate)?;
    private(&folder.join(KEY), &key)
}

/// Writes a file that only this user may read.
fn private(path: &Path, text: &str) -> Result<()> {
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
