//! A client that pushes: the parts of the distribution specification that pushing takes.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION},
};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{artifact::digest, token::Issuer};
use crate::client::{Answer, Body, empty, full, request};

/// How a registry learns who asks.
#[derive(Clone)]
pub(super) enum Access {
    /// It does not.
    Open,
    /// By this header.
    Basic(String),
    /// By a token, which is made here: fixtures do not ask the token server.
    Tokens(Arc<Issuer>),
}

/// Where to push to.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) port: u16,
    pub(super) tls: Option<TlsConnector>,
    pub(super) access: Access,
}

/// A connection that pushes to one repository. It closes when this is dropped.
pub(super) struct Push<'a> {
    repository: &'a str,
    authorization: Option<String>,
    host: String,
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Access {
    pub(super) fn basic(user: &str, password: &str) -> Self {
        Self::Basic(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
    }
}

impl Remote {
    /// Whether a registry answers, no matter whom.
    pub(super) async fn answers(&self) -> Result<()> {
        let mut connection = self.connect("", None).await?;
        let answer = connection.send("GET", "/v2/", None, Bytes::new()).await?;
        ensure!(matches!(answer.status.as_u16(), 200 | 401), "GET /v2/: {}", answer.status);
        Ok(())
    }

    /// Connects in order to push to a repository.
    pub(super) async fn push<'a>(&self, repository: &'a str) -> Result<Push<'a>> {
        let authorization = match &self.access {
            Access::Open => None,
            Access::Basic(header) => Some(header.clone()),
            Access::Tokens(issuer) => {
                let scope = format!("repository:{repository}:pull,push");
                Some(format!("Bearer {}", issuer.issue("fixture", &[scope])?))
            }
        };
        self.connect(repository, authorization).await
    }

    async fn connect<'a>(&self, repository: &'a str, authorization: Option<String>) -> Result<Push<'a>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = match &self.tls {
            None => handshake(stream).await?,
            Some(tls) => {
                let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
                handshake(tls.connect(name, stream).await?).await?
            }
        };
        Ok(Push { repository, authorization, host: format!("127.0.0.1:{}", self.port), sender, driver })
    }
}

async fn handshake<S>(stream: S) -> Result<(SendRequest<Body>, JoinHandle<()>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Ok((sender, tokio::spawn(async { _ = connection.await })))
}

impl Push<'_> {
    /// Uploads a blob whole.
    pub(super) async fn blob(&mut self, bytes: Bytes) -> Result<()> {
        let path = format!("/v2/{}/blobs/uploads/", self.repository);
        let answer = self.send("POST", &path, None, Bytes::new()).await?;
        expect("POST", &path, &answer, StatusCode::ACCEPTED)?;
        let location: Uri = answer.header(LOCATION.as_str()).parse().context("an upload without a location")?;
        let location = location.path_and_query().context("a location without a path")?;
        let between = if location.query().is_some() { '&' } else { '?' };
        let path = format!("{location}{between}digest={}", digest(&bytes));
        let answer = self.send("PUT", &path, Some("application/octet-stream"), bytes).await?;
        expect("PUT", &path, &answer, StatusCode::CREATED)
    }

    /// Puts a manifest under a tag or its digest.
    pub(super) async fn manifest(&mut self, reference: &str, media_type: &str, bytes: Bytes) -> Result<()> {
        let path = format!("/v2/{}/manifests/{reference}", self.repository);
        let digest = digest(&bytes);
        let answer = self.send("PUT", &path, Some(media_type), bytes).await?;
        expect("PUT", &path, &answer, StatusCode::CREATED)?;
        let theirs = answer.header("docker-content-digest");
        ensure!(theirs == digest, "PUT {path}: the registry says {theirs}, it is {digest}");
        Ok(())
    }

    async fn send(&mut self, method: &str, path: &str, media_type: Option<&str>, bytes: Bytes) -> Result<Answer> {
        let body = if bytes.is_empty() { empty() } else { full(bytes) };
        let mut request: Request<Body> = request(method, path, body)?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.parse()?);
        if let Some(media_type) = media_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(media_type)?);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(authorization)?);
        }
        self.sender.ready().await?;
        let mut answer = Answer::read(self.sender.send_request(request).await?).await;
        answer.cut.take().map_or(Ok(answer), |cut| Err(cut.into()))
    }
}

impl Drop for Push<'_> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn expect(method: &str, path: &str, answer: &Answer, status: StatusCode) -> Result<()> {
    if answer.status != status {
        bail!("{method} {path}: {} {}", answer.status, answer.text());
    }
    Ok(())
}
