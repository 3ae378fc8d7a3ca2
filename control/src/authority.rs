//! The certificate that nodes know control by.
//!
//! All replicas sign their own with one authority, which is in a Secret of control's namespace; its certificate is in a ConfigMap, where
//! agents read it. Whoever comes first makes it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::settings::Settings;

/// The Secret with the authority.
pub const SECRET: &str = "pillion-control-ca";

/// The ConfigMap with its certificate.
pub const CONFIG_MAP: &str = "pillion-ca";

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// How long the authority is good.
const AUTHORITY_LASTS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long a replica's certificate is good, and when the next one is made.
const CERTIFICATE_LASTS: Duration = Duration::from_secs(30 * 86_400);
const NEXT: Duration = Duration::from_secs(10 * 86_400);

/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3_600);

/// Who signs.
pub struct Authority {
    certificate: String,
    key: String,
}

impl Authority {
    /// Makes a new one.
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        Ok(Self { certificate: Self::params()?.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }

    /// What is the same of every authority, but its time.
    fn params() -> Result<CertificateParams> {
        let mut params = lasting(CertificateParams::new([])?, AUTHORITY_LASTS);
        params.distinguished_name.push(DnType::CommonName, "Pillion's control");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(params)
    }

    fn read(secret: &Secret) -> Result<Self> {
        let text = |key: &str| {
            let data = secret.data.as_ref().and_then(|data| data.get(key));
            let data = data.with_context(|| format!("the Secret {SECRET:?} has no {key:?}"))?;
            String::from_utf8(data.0.clone()).with_context(|| format!("{key:?} of the Secret {SECRET:?}"))
        };
        Ok(Self { certificate: text(CERTIFICATE)?, key: text(KEY)? })
    }

    fn secret(&self) -> Secret {
        let mut secret = Secret {
            data: Some(BTreeMap::from([
                (CERTIFICATE.into(), ByteString(self.certificate.clone().into_bytes())),
                (KEY.into(), ByteString(self.key.clone().into_bytes())),
            ])),
            ..Secret::default()
        };
        secret.metadata.name = Some(SECRET.into());
        secret
    }

    /// The authority of this cluster: the one that is there, or a new one. Its certificate is where agents read it, then.
    ///
    /// # Errors
    ///
    /// The API server refuses, or what is there is no authority.
    pub async fn of_cluster(client: &Client, settings: &Settings) -> Result<Self> {
        let secrets = Api::<Secret>::namespaced(client.clone(), &settings.namespace);
        let authority = loop {
            if let Some(secret) = secrets.get_opt(SECRET).await? {
                break Self::read(&secret)?;
            }
            let new = Self::new()?;
            match secrets.create(&PostParams::default(), &new.secret()).await {
                Ok(_) => break new,
                // Another replica was first.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        };
        authority.publish(client, settings).await?;
        Ok(authority)
    }

    async fn publish(&self, client: &Client, settings: &Settings) -> Result<()> {
        let maps = Api::<ConfigMap>::namespaced(client.clone(), &settings.namespace);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP}, "data": {CERTIFICATE: self.certificate},
        });
        let params = PatchParams::apply("pillion-control").force();
        maps.patch(CONFIG_MAP, &params, &Patch::Apply(map))
            .await
            .with_context(|| format!("the ConfigMap {CONFIG_MAP:?}"))?;
        Ok(())
    }

    /// A certificate for this replica, as the server is told it.
    fn issue(&self, settings: &Settings) -> Result<Arc<ServerConfig>> {
        let Settings { service, namespace, .. } = settings;
        let names = ["", ".svc", ".svc.cluster.local"].map(|end| format!("{service}.{namespace}{end}"));
        let names = names.into_iter().chain([service.clone()]).chain(settings.certificate_name.iter().cloned());
        let mut params = lasting(CertificateParams::new(names.collect::<Vec<_>>())?, CERTIFICATE_LASTS);
        params.distinguished_name.push(DnType::CommonName, service.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(Self::params()?, KeyPair::from_pem(&self.key)?);
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate for this replica, and another one before it ends, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// A name that cannot be in a certificate.
    pub fn certificate(self, settings: &Settings) -> Result<RustlsConfig> {
        let config = RustlsConfig::from_config(self.issue(settings)?);
        let (renewed, settings) = (config.clone(), settings.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(NEXT).await;
                match self.issue(&settings) {
                    Ok(next) => renewed.reload_from_config(next),
                    Err(error) => tracing::error!(%error, "the next certificate cannot be made"),
                }
            }
        });
        Ok(config)
    }
}

fn lasting(mut params: CertificateParams, time: Duration) -> CertificateParams {
    let now = std::time::SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + time).into();
    params
}
