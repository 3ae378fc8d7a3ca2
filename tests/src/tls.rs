//! A private authority and its certificates.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// An authority that nobody trusts who was not told to.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: PathBuf,
}

impl Authority {
    /// Makes one whose certificate is `folder/ca.pem`.
    pub fn found(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Pillion's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificate = folder.join("ca.pem");
        fs::write(&certificate, issuer.pem())?;
        Ok(Self { issuer, certificate })
    }

    /// Issues a certificate for a server with these names, of which the first is its own; gives it and its key, in PEM.
    pub fn issue(&self, names: &[&str]) -> Result<[String; 2]> {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or_default());
        let key = KeyPair::generate()?;
        Ok([params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()])
    }

    /// Its certificate, in PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// A server whose certificate, with these names, this authority has issued.
    ///
    /// # Errors
    ///
    /// None that a name of a host or an address could provoke.
    pub fn acceptor(&self, names: &[&str]) -> Result<TlsAcceptor> {
        let [certificate, key] = self.issue(names)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// A client that trusts this authority only.
    pub fn connector(&self) -> Result<TlsConnector> {
        connector(&self.certificate)
    }
}

/// A client that trusts one authority only, whose certificate is in a file.
///
/// # Errors
///
/// It is no certificate.
pub fn connector(authority: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    // The provider is named: more than one may be linked.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
