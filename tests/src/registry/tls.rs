//! A private authority and its certificates.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

/// An authority that nobody trusts who was not told to.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: PathBuf,
}

/// A server's certificate and key, in PEM.
pub(super) struct Issued {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    /// Makes one whose certificate is `folder/ca.pem`.
    pub(super) fn found(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Pillion's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificate = folder.join("ca.pem");
        fs::write(&certificate, issuer.pem())?;
        Ok(Self { issuer, certificate })
    }

    /// Issues a certificate for this machine's loopback: `folder/server.pem` and `folder/server.key`.
    pub(super) fn issue(&self, folder: &Path) -> Result<Issued> {
        let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        let key = KeyPair::generate()?;
        let issued = Issued { certificate: folder.join("server.pem"), key: folder.join("server.key") };
        fs::write(&issued.certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&issued.key, key.serialize_pem())?;
        Ok(issued)
    }

    /// Its certificate, in PEM.
    pub(super) fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// A client that trusts this authority only.
    pub(super) fn connector(&self) -> Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        // The provider is named: more than one may be linked.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}
