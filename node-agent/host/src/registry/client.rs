//! One registry, as the puller and the pusher ask it. Each question is bounded in time, in memory, and in how often it is asked.

use std::{
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use pillion_protocol::{
    digest::Digest,
    reference::{Reference, Version},
};
use reqwest::{Certificate, Response, Url};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{
    manifest::{Blob, MANIFESTS, MAX_DOCUMENT},
    message::Source,
    problem::{Problem, chain, late},
    reach::Reach,
    retry::again,
};

/// A registry that is asked.
pub struct Remote {
    pub(super) http: reqwest::Client,
    pub(super) source: Source,
    pub(super) reach: Reach,
    /// How long it may say nothing.
    timeout: Duration,
    /// What it is shown, so that it knows who we are.
    shown: Mutex<Option<HeaderValue>>,
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

/// What one is let to do by a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To read.
    Pull,
    /// To read and write.
    Push,
}

/// A blob on its way.
pub struct Incoming {
    /// Its bytes.
    pub bytes: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    /// The byte that it begins with.
    pub from: u64,
}

/// A question about a repository.
struct Question<'a> {
    reference: &'a Reference,
    operation: Operation,
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
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
        let reach = Reach::new(&source);
        let http = connect(&source, &reach, timeout, true)?;
        Ok(Self { http, source, reach, timeout, shown: Mutex::default() })
    }

    /// Another client, which follows redirects only where `follow` says so.
    pub(super) fn connect(&self, follow: bool) -> Result<reqwest::Client, Problem> {
        connect(&self.source, &self.reach, self.timeout, follow)
    }

    /// The address of this under the registry's `/v2/`.
    pub(super) fn url(&self, path: &str) -> Result<Url, Problem> {
        let scheme = if self.source.plain_http { "http" } else { "https" };
        let host = self.source.api_host();
        Url::parse(&format!("{scheme}://{host}/v2/{path}"))
            .map_err(|error| Problem::lasting(format!("{host:?} is not a valid registry: {error}")))
    }

    /// The repository as the registry knows it.
    pub(super) fn repository(&self, reference: &Reference) -> String {
        match reference.repository() {
            // What container tools mean by a name without a slash.
            name if self.source.registry == "docker.io" && !name.contains('/') => format!("library/{name}"),
            name => name.to_owned(),
        }
    }

    /// Finds out who we are, so that what is wrong with that is said by its name.
    ///
    /// # Errors
    ///
    /// Nobody there; credentials that are refused.
    pub async fn log_in(&self, reference: &Reference, operation: Operation, how: Ask) -> Result<(), Problem> {
        self.ask(how, async |within| self.bounded(within, self.show(reference, operation)).await).await
    }

    async fn show(&self, reference: &Reference, operation: Operation) -> Result<(), Problem> {
        let value = self.authorization(reference, operation).await?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    /// The digest that the reference's tag leads to.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn digest(&self, reference: &Reference, how: Ask) -> Result<Digest, Problem> {
        let find = async || {
            let asked = |method| self.about_manifest(reference, method);
            match self.send(asked(Method::HEAD)?).await {
                Ok(answer) => match answer.headers().get("docker-content-digest") {
                    Some(said) => {
                        let said = String::from_utf8_lossy(said.as_bytes());
                        return said.parse().map_err(|error| Problem::lasting(format!("{error}")));
                    }
                    None => tracing::debug!("it does not say the digest: it is counted"),
                },
                Err(problem) if problem.passes() => return Err(problem),
                // An answer to HEAD does not say why.
                Err(_) => {}
            }
            let answer = self.send(asked(Method::GET)?).await?;
            Ok(digest_of(&self.body(answer, MAX_DOCUMENT).await?))
        };
        self.ask(how, async |within| self.bounded(within, find()).await).await
    }

    /// The manifest with this digest.
    ///
    /// # Errors
    ///
    /// See `Problem`; other bytes than the digest's.
    pub async fn manifest(&self, reference: &Reference, digest: Digest) -> Result<Vec<u8>, Problem> {
        let reference = reference.at(digest);
        let get = async || {
            let answer = self.send(self.about_manifest(&reference, Method::GET)?).await?;
            let manifest = self.body(answer, MAX_DOCUMENT).await?;
            match digest_of(&manifest) {
                found if found == digest => Ok(manifest),
                found => Err(Problem::lasting(format!("its content has the digest {found}"))),
            }
        };
        again(async || self.bounded(self.timeout, get()).await).await
    }

    fn about_manifest<'a>(&self, reference: &'a Reference, method: Method) -> Result<Question<'a>, Problem> {
        let version = match reference.version() {
            Version::Tag(tag) => tag.to_string(),
            Version::Digest(digest) => digest.to_string(),
        };
        let url = self.url(&format!("{}/manifests/{version}", self.repository(reference)))?;
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFESTS))]);
        Ok(Question { reference, operation: Operation::Pull, method, url, headers, body: Bytes::new() })
    }

    fn about_blob<'a>(&self, reference: &'a Reference, method: Method, path: &str) -> Result<Question<'a>, Problem> {
        let url = self.url(&format!("{}/blobs/{path}", self.repository(reference)))?;
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Ok(Question { reference, operation: Operation::Pull, method, url, headers, body })
    }

    /// Asks for a blob from byte `from` on.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn blob(&self, reference: &Reference, blob: &Blob, from: u64) -> Result<Incoming, Problem> {
        let mut question = self.about_blob(reference, Method::GET, &blob.digest.to_string())?;
        if from > 0 {
            question.headers.insert(header::RANGE, range(from)?);
        }
        let answer = self.bounded(self.timeout, self.send(question)).await?;
        // Otherwise it does not know how to begin in the middle.
        let from = if answer.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        let next = async |mut answer: Response| match answer.chunk().await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, answer))),
            Err(error) => Err(io::Error::other(chain(&error.without_url()))),
        };
        Ok(Incoming { bytes: Box::pin(stream::try_unfold(answer, next)), from })
    }

    /// Pushes a blob.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn push_blob(&self, reference: &Reference, bytes: Bytes, digest: Digest) -> Result<(), Problem> {
        let push = async || {
            let there = Question {
                operation: Operation::Push,
                ..self.about_blob(reference, Method::HEAD, &digest.to_string())?
            };
            match self.ask_once(there).await? {
                answer if answer.status() == StatusCode::NOT_FOUND => {}
                answer => return self.answered(answer).await.map(|_| ()),
            }
            let begin =
                Question { operation: Operation::Push, ..self.about_blob(reference, Method::POST, "uploads/")? };
            let begun = begin.url.clone();
            let answer = self.send(begin).await?;
            let place = answer.headers().get(header::LOCATION).and_then(|place| begun.join(place.to_str().ok()?).ok());
            let mut url = place.ok_or_else(|| Problem::lasting("it does not say where to upload to"))?;
            self.reach.judge(&url).map_err(Problem::lasting)?;
            url.query_pairs_mut().append_pair("digest", &digest.to_string());
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))]);
            let (operation, method, body) = (Operation::Push, Method::PUT, bytes.clone());
            self.send(Question { reference, operation, method, url, headers, body }).await.map(|_| ())
        };
        again(push).await
    }

    /// Pushes a manifest, under its tag.
    ///
    /// # Errors
    ///
    /// See `Problem`.
    pub async fn push_manifest(&self, reference: &Reference, manifest: &[u8]) -> Result<(), Problem> {
        let push = async || {
            let about = self.about_manifest(reference, Method::PUT)?;
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE))]);
            let body = Bytes::copy_from_slice(manifest);
            self.send(Question { operation: Operation::Push, headers, body, ..about }).await.map(|_| ())
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
    async fn bounded<T>(&self, within: Duration, ask: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        timeout(within, ask).await.map_err(|_| late(within))?
    }

    /// An answer that is a success.
    async fn send(&self, question: Question<'_>) -> Result<Response, Problem> {
        let answer = self.ask_once(question).await?;
        self.answered(answer).await
    }

    /// An answer; a token that is good no longer is replaced.
    async fn ask_once(&self, question: Question<'_>) -> Result<Response, Problem> {
        let Question { reference, operation, method, url, headers, body } = question;
        let mut renewed = false;
        loop {
            let request = self.http.request(method.clone(), url.clone()).headers(headers.clone()).body(body.clone());
            // An upload may lead to another host, which is told nothing.
            let shown =
                self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| self.is_registry(&url));
            let is_token = shown.as_ref().is_some_and(|shown| shown.as_bytes().starts_with(b"Bearer "));
            let request =
                shown.into_iter().fold(request, |request, shown| request.header(header::AUTHORIZATION, shown));
            let answer = request.send().await.map_err(|error| self.fault(error))?;
            let is_refused = answer.status() == StatusCode::UNAUTHORIZED && self.is_registry(answer.url());
            if renewed || !is_token || !is_refused {
                return Ok(answer);
            }
            renewed = true;
            self.show(reference, operation).await?;
        }
    }

    fn is_registry(&self, url: &Url) -> bool {
        self.url("").is_ok_and(|own| own.origin() == url.origin())
    }

    async fn answered(&self, answer: Response) -> Result<Response, Problem> {
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::UNAUTHORIZED => Err(self.source.unauthorized()),
            _ => Err(Problem::of_answer(answer).await),
        }
    }

    /// What an error of the connection means.
    pub(super) fn fault(&self, error: reqwest::Error) -> Problem {
        self.source.problem(error, self.timeout)
    }

    /// A small answer, whole.
    pub(super) async fn body(&self, mut answer: Response, most: u64) -> Result<Vec<u8>, Problem> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.fault(error))? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > most {
                return Err(Problem::lasting(format!("its answer is too large: at most {most} bytes are allowed")));
            }
        }
        Ok(body)
    }
}

fn connect(source: &Source, reach: &Reach, timeout: Duration, follow: bool) -> Result<reqwest::Client, Problem> {
    let wrong = |error: reqwest::Error| Problem::lasting(format!("its certificates: {}", chain(&error)));
    let mut roots = Vec::new();
    if let Some(ca) = &source.ca {
        roots = Certificate::from_pem_bundle(ca.as_bytes()).map_err(wrong)?;
        if roots.is_empty() {
            return Err(Problem::lasting("its certificates: there is none in the file of its ca"));
        }
    }
    // The authorities that browsers know: for systems that know none, as in an empty container.
    let browsers = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|root| Certificate::from_der(root));
    roots.extend(browsers.collect::<Result<Vec<_>, _>>().map_err(wrong)?);
    let client = reach.client(timeout, follow).user_agent(concat!("pillion/", env!("CARGO_PKG_VERSION")));
    // To read the system's takes longer than a registry's answer: not for one without TLS, which could at most redirect.
    let client = if source.plain_http { client.tls_certs_only(roots) } else { client.tls_certs_merge(roots) };
    client.build().map_err(wrong)
}

fn range(from: u64) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(format!("bytes={from}-")).map_err(|error| Problem::lasting(error.to_string()))
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
