//! The certificate that nodes know control by.
//!
//! All replicas sign their own with one authority, which is in a Secret of control's namespace; its certificate is in a ConfigMap, where
//! agents read it. Whoever comes first makes it, and the next one long before it ends: nodes know that one before it signs.
//!
//! | file | holds |
//! |---|---|
//! | `chain` | which authorities there are, who signs, and when the next one is due. Decides, and does no IO |
//! | this one | the Secret, the ConfigMap, and the certificate of this replica |

mod chain;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::json;
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use self::chain::{Chain, lasting};
use crate::settings::Settings;

/// The Secret with the authorities.
pub const SECRET: &str = "pillion-control-ca";

/// The ConfigMap with their certificates.
pub const CONFIG_MAP: &str = "pillion-ca";

/// Of the Secret: the authorities, as JSON.
const AUTHORITIES: &str = "authorities.json";
/// Of the ConfigMap: their certificates, as PEM.
const CERTIFICATES: &str = "ca.crt";

/// How long a replica's certificate is good, and when the next one is made.
const CERTIFICATE_LASTS: Duration = Duration::from_secs(30 * 86_400);
const NEXT: Duration = Duration::from_secs(10 * 86_400);

/// How often it is looked whether there is another authority, or is to be.
const LOOK: Duration = Duration::from_secs(3_600);

/// Who signs, and where that is written.
pub struct Authority {
    client: Client,
    settings: Settings,
    chain: Chain,
}

impl Authority {
    /// The authority of this cluster: the one that is there, or a new one. Its certificate is where agents read it, then.
    ///
    /// # Errors
    ///
    /// The API server refuses, or what is there is no authority.
    pub async fn of_cluster(client: &Client, settings: &Settings) -> Result<Self> {
        let mut authority = Self { client: client.clone(), settings: settings.clone(), chain: Chain::default() };
        authority.look().await?;
        Ok(authority)
    }

    /// Looks at what there is, and makes what is due.
    async fn look(&mut self) -> Result<()> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.settings.namespace);
        self.chain = loop {
            let there = secrets.get_opt(SECRET).await?;
            let chain = there.as_ref().map(read).transpose()?.unwrap_or_default();
            let Some(next) = chain.next(SystemTime::now())? else { break chain };
            let mut secret = there.unwrap_or_default();
            let is_new = secret.metadata.resource_version.is_none();
            secret.metadata.name = Some(SECRET.into());
            secret.data = Some(BTreeMap::from([(AUTHORITIES.into(), ByteString(serde_json::to_vec(&next)?))]));
            let written = match is_new {
                true => secrets.create(&PostParams::default(), &secret).await,
                false => secrets.replace(SECRET, &PostParams::default(), &secret).await,
            };
            match written {
                Ok(_) => {
                    tracing::info!("there is a new authority; nodes hear of it before it signs");
                    break next;
                }
                // Another replica was first.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).with_context(|| format!("the Secret {SECRET:?}")),
            }
        };
        self.publish().await
    }

    async fn publish(&self) -> Result<()> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.settings.namespace);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP}, "data": {CERTIFICATES: self.chain.certificates()},
        });
        let params = PatchParams::apply("pillion-control").force();
        maps.patch(CONFIG_MAP, &params, &Patch::Apply(map))
            .await
            .with_context(|| format!("the ConfigMap {CONFIG_MAP:?}"))?;
        Ok(())
    }

    /// A certificate for this replica, as the server is told it.
    fn issue(&self) -> Result<Arc<ServerConfig>> {
        let Settings { service, namespace, .. } = &self.settings;
        let names = ["", ".svc", ".svc.cluster.local"].map(|end| format!("{service}.{namespace}{end}"));
        let names = names.into_iter().chain([service.clone()]).chain(self.settings.certificate_name.iter().cloned());
        let now = SystemTime::now();
        let mut params = lasting(CertificateParams::new(names.collect::<Vec<_>>())?, now, CERTIFICATE_LASTS);
        params.distinguished_name.push(DnType::CommonName, service.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // All authorities have one name: which one has signed is found by this.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let signer = self.chain.signer(now).context("there is no authority")?;
        let issuer = Issuer::new(signer.params()?, KeyPair::from_pem(&signer.key)?);
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate for this replica, and another one before it or its authority ends, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// A name that cannot be in a certificate.
    pub fn certificate(mut self) -> Result<RustlsConfig> {
        let config = RustlsConfig::from_config(self.issue()?);
        let renewed = config.clone();
        tokio::spawn(async move {
            let mut issued = (SystemTime::now(), self.chain.signer(SystemTime::now()).cloned());
            loop {
                tokio::time::sleep(LOOK).await;
                if let Err(error) = self.look().await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the authority cannot be looked at; it is tried again"
                    );
                }
                let now = SystemTime::now();
                let signer = self.chain.signer(now).cloned();
                if issued.1 == signer && now.duration_since(issued.0).is_ok_and(|age| age < NEXT) {
                    continue;
                }
                match self.issue() {
                    Ok(next) => {
                        renewed.reload_from_config(next);
                        issued = (now, signer);
                    }
                    Err(error) => tracing::error!(%error, "the next certificate cannot be made"),
                }
            }
        });
        Ok(config)
    }
}

fn read(secret: &Secret) -> Result<Chain> {
    let data = secret.data.as_ref().and_then(|data| data.get(AUTHORITIES));
    let data = data.with_context(|| {
        format!("the Secret {SECRET:?} has no {AUTHORITIES:?}: delete it, and control makes a new authority")
    })?;
    // The parser's words could quote a key.
    serde_json::from_slice(&data.0)
        .ok()
        .with_context(|| format!("{AUTHORITIES:?} of the Secret {SECRET:?} is no list of authorities: delete the Secret, and control makes a new one"))
}
