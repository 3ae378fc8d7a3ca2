//! One registry, as the puller and the pusher ask it. Each question is bounded in time, in memory, and in how often it is asked.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci_client::{
    Client, Reference as OciReference, RegistryOperation,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
        OciDescriptor,
    },
    secrets::RegistryAuth,
};
use pillion_protocol::{
    digest::Digest,
    login::Login,
    reference::{Reference, Version},
};
use tokio::time::timeout;

use super::{
    manifest::{Blob, MAX_DOCUMENT},
    message::Source,
    problem::{Passes, Problem, chain, late, limiting_url},
    retry::again,
};

/// What this process may grow by while a whole answer is read into memory, which the library does without a bound.
const GROWTH: u64 = 16 * MAX_DOCUMENT;

/// How often it is looked how much it grew.
const LOOK: Duration = Duration::from_millis(5);

/// A registry that is asked.
pub struct Remote {
    client: Client,
    source: Source,
    /// How long it may say nothing.
    timeout: Duration,
}

/// How patiently a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Again, until there is an answer or it makes no sense any more.
    Again,
    /// Once.
    Once,
    /// Once, and the answer must come within this time.
    Within(Duration),
}

/// A blob on its way.
pub struct Incoming {
    /// Its bytes.
    pub bytes: std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>,
    /// The byte that it begins with.
    pub from: u64,
}

impl Remote {
    /// A client for one registry. Nobody is asked yet.
    ///
    /// # Errors
    ///
    /// Certificates that are none.
    pub fn new(source: Source, timeout: Duration) -> Result<Self, Problem> {
        // Once for a process; that it is set already is no fault.
        _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let protocol = match source.plain_http {
            true => ClientProtocol::HttpsExcept(vec![source.registry.clone()]),
            false => ClientProtocol::Https,
        };
        let pem = |ca: &String| Certificate { encoding: CertificateEncoding::Pem, data: ca.clone().into_bytes() };
        let der = |root: &[u8]| Certificate { encoding: CertificateEncoding::Der, data: root.to_vec() };
        // The authorities that browsers know: for systems that know none, as in an empty container.
        let browsers = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|root| der(root));
        let roots: Vec<_> = source.ca.iter().map(pem).chain(browsers).collect();
        // To read the system's takes longer than a registry's answer: not for one without TLS, which could at most redirect.
        let (only, extra) = if source.plain_http { (roots, Vec::new()) } else { (Vec::new(), roots) };
        let config = ClientConfig {
            protocol,
            tls_certs_only: only,
            extra_root_certificates: extra,
            // An index picks nothing by accident.
            platform_resolver: None,
            connect_timeout: Some(timeout),
            read_timeout: Some(timeout),
            user_agent: concat!("pillion/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)
            .map_err(|error| Problem::lasting(format!("its certificates: {}", chain(&error))))?;
        Ok(Self { client, source, timeout })
    }

    /// The library's form of a reference. Not by its parser: that makes its patterns anew in each process, which takes longer than a
    /// registry's answer.
    fn reference(&self, reference: &Reference) -> OciReference {
        let registry = self.source.registry.clone();
        let repository = match reference.repository() {
            // What container tools mean by a name without a slash.
            name if registry == "docker.io" && !name.contains('/') => format!("library/{name}"),
            name => name.to_owned(),
        };
        match reference.version() {
            Version::Tag(tag) => OciReference::with_tag(registry, repository, tag.clone()),
            Version::Digest(digest) => OciReference::with_digest(registry, repository, digest.to_string()),
        }
    }

    fn auth(&self) -> RegistryAuth {
        match &self.source.login {
            Login::Anonymous => RegistryAuth::Anonymous,
            Login::Basic { username, password } => RegistryAuth::Basic(username.clone(), password.clone()),
        }
    }

    /// Finds out who we are, so that what is wrong with that is said by its name.
    ///
    /// # Errors
    ///
    /// Nobody there; credentials that are refused.
    pub async fn log_in(&self, reference: &Reference, operation: RegistryOperation, how: Ask) -> Result<(), Problem> {
        let reference = self.reference(reference);
        let auth = self.auth();
        let ask = async |within| self.bounded(within, self.client.auth(&reference, &auth, operation)).await.map(|_| ());
        self.ask(how, ask).await
    }

    /// The digest that the reference's tag leads to.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn digest(&self, reference: &Reference, how: Ask) -> Result<Digest, Problem> {
        let reference = self.reference(reference);
        let auth = self.auth();
        let ask = async |within| self.bounded(within, self.client.fetch_manifest_digest(&reference, &auth)).await;
        let digest = self.ask(how, ask).await?;
        digest.parse().map_err(|error| Problem::lasting(format!("{error}")))
    }

    /// The manifest with this digest.
    ///
    /// # Errors
    ///
    /// See `Problem`; other bytes than the digest's.
    pub async fn manifest(&self, reference: &Reference, digest: Digest) -> Result<Bytes, Problem> {
        const ACCEPTED: [&str; 4] = [
            OCI_IMAGE_MEDIA_TYPE,
            IMAGE_MANIFEST_MEDIA_TYPE,
            OCI_IMAGE_INDEX_MEDIA_TYPE,
            IMAGE_MANIFEST_LIST_MEDIA_TYPE,
        ];
        let reference = self.reference(&reference.at(digest));
        let auth = self.auth();
        let ask =
            async || self.bounded(self.timeout, self.client.pull_manifest_raw(&reference, &auth, &ACCEPTED)).await;
        // The library has compared the digest.
        again(ask).await.map(|(manifest, _)| manifest)
    }

    /// Asks for a blob from byte `from` on.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn blob(&self, reference: &Reference, blob: &Blob, from: u64) -> Result<Incoming, Problem> {
        let reference = self.reference(reference);
        let descriptor = OciDescriptor {
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        self.client.store_auth_if_needed(reference.resolve_registry(), &self.auth()).await;
        let asked = self
            .bounded(self.timeout, self.client.pull_blob_stream_partial(&reference, &descriptor, from, None))
            .await?;
        let (stream, from) = match asked {
            BlobResponse::Partial(stream) => (stream, from),
            // It does not know how to begin in the middle.
            BlobResponse::Full(stream) => (stream, 0),
        };
        Ok(Incoming { bytes: stream.boxed(), from })
    }

    /// Pushes a blob.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn push_blob(&self, reference: &Reference, bytes: Bytes, digest: Digest) -> Result<(), Problem> {
        let reference = self.reference(reference);
        let digest = digest.to_string();
        let push = async || {
            let there = self.answered(self.client.blob_exists(&reference, &digest)).await?;
            if !there {
                self.answered(self.client.push_blob(&reference, bytes.clone(), &digest)).await?;
            }
            Ok(())
        };
        again(push).await
    }

    /// Pushes a manifest, under its tag.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn push_manifest(&self, reference: &Reference, manifest: &[u8]) -> Result<(), Problem> {
        let reference = self.reference(reference);
        let kind = http::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        let push = async || {
            self.answered(self.client.push_manifest_raw(&reference, manifest.to_vec(), kind.clone())).await.map(|_| ())
        };
        again(push).await
    }

    async fn ask<T>(&self, how: Ask, ask: impl AsyncFn(Duration) -> Result<T, Problem>) -> Result<T, Problem> {
        match how {
            Ask::Again => again(async || ask(self.timeout).await).await,
            Ask::Once => ask(self.timeout).await,
            Ask::Within(time) => ask(time.min(self.timeout)).await,
        }
    }

    /// An answer within the time.
    async fn bounded<T>(
        &self,
        within: Duration,
        ask: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, Problem> {
        let small = async {
            let most = resident().saturating_add(GROWTH);
            while resident() <= most {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            answer = timeout(within, self.answered(ask)) => answer.map_err(|_| late(within))?,
            () = small => Err(Problem::lasting(format!("its answer is too large: at most {MAX_DOCUMENT} bytes are allowed"))),
        }
    }

    async fn answered<T>(&self, ask: impl Future<Output = Result<T, OciDistributionError>>) -> Result<T, Problem> {
        match ask.await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let url = limiting_url(&error).map(str::to_owned);
                let problem = self.source.problem(error, self.timeout);
                Err(match url {
                    Some(url) => self.when_again(problem, &url).await,
                    None => problem,
                })
            }
        }
    }

    /// The library keeps no answer's headers, so how long to wait is asked for once more, without saying who we are.
    async fn when_again(&self, problem: Problem, url: &str) -> Problem {
        let asked = async {
            let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(self.timeout);
            let ca = self.source.ca.iter().flat_map(|ca| reqwest::Certificate::from_pem(ca.as_bytes()));
            let browsers = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let browsers = browsers.flat_map(|root| reqwest::Certificate::from_der(root));
            client.tls_certs_merge(ca.chain(browsers)).build()?.head(url).send().await
        };
        let said = asked
            .await
            .ok()
            .and_then(|answer| answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok());
        said.map_or(problem.clone(), |seconds| Problem {
            passes: Passes::After(Duration::from_secs(seconds)),
            ..problem
        })
    }
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let pages =
        std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(rustix::param::page_size() as u64)
}
