//! Faults, and what they make of an answer.

use std::{io, pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION},
    uri::PathAndQuery,
};

/// How long bytes before the end of a cut body have to get out.
const FLUSH: Duration = Duration::from_millis(30);

/// A chunk of a body that is made here.
const CHUNK: usize = 64 << 10;

/// What is done to a request or its answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers so itself.
    Status {
        /// The status.
        code: u16,
        /// Headers, such as `retry-after`.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Gives the body so slowly; the head comes at once.
    Trickle {
        /// Bytes a second; 1 or more.
        bytes_per_second: u32,
    },
    /// Ends the connection after so many bytes of the body; the head announces all of it.
    Truncate {
        /// Bytes of the body.
        after_bytes: u64,
    },
    /// Flips a bit in the middle of the body.
    Corrupt,
    /// Appends bytes to the body; the head announces them.
    Longer {
        /// Bytes.
        extra: usize,
    },
    /// Gives another body with the registry's head, except for its length.
    ReplaceBody {
        /// The body.
        bytes: Bytes,
        /// Its `content-type`; the registry's for `None`.
        content_type: Option<String>,
    },
    /// Gives another body with the registry's head: the beginning of a JSON object that goes on for so long, of no length
    /// announced.
    Endless {
        /// Bytes.
        total_bytes: u64,
    },
    /// Gives the registry's answer with a header changed, or removed for `None`.
    Header {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: Option<String>,
    },
    /// Answers 307 to the same path elsewhere.
    Redirect {
        /// Where, without a slash at the end: `http://127.0.0.1:5000`.
        base: String,
    },
    /// Never answers, until the caller goes away.
    Hang,
    /// Closes the connection without an answer.
    Refuse,
    /// Asks the registry only after a while.
    Delay(Duration),
}

impl Fault {
    /// A status with a text of the registry's kind.
    pub fn status(code: u16) -> Self {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"a fault"}]}"#.into();
        Self::Status { code, headers: vec![("content-type".into(), "application/json".into())], body }
    }

    /// 429, or another status, with `retry-after`.
    pub fn retry_after(code: u16, seconds: u32) -> Self {
        let headers = vec![("retry-after".into(), seconds.to_string())];
        Self::Status { code, headers, body: Bytes::new() }
    }
}

/// A body on its way.
pub(super) type Content = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A body that is known.
pub(super) fn whole(bytes: Bytes) -> Content {
    stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed()
}

/// What stops the answer to a request.
pub(super) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

impl Fault {
    /// The answer, if the registry is not asked at all.
    pub(super) async fn instead(&self, path: Option<&PathAndQuery>) -> io::Result<Option<Response<Content>>> {
        let (code, headers, body) = match self {
            Self::Status { code, headers, body } => (*code, headers.clone(), body.clone()),
            Self::Redirect { base } => {
                let location = format!("{base}{}", path.map_or("/", PathAndQuery::as_str));
                (StatusCode::TEMPORARY_REDIRECT.as_u16(), vec![(LOCATION.to_string(), location)], Bytes::new())
            }
            Self::Hang => std::future::pending().await,
            Self::Refuse => return Err(broken("refused")),
            Self::Delay(time) => {
                tokio::time::sleep(*time).await;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let length = body.len();
        let mut response = Response::builder().status(code).header(CONTENT_LENGTH, length);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        response.body(whole(body)).map(Some).map_err(broken)
    }

    /// What becomes of the registry's answer.
    pub(super) fn change(self, response: Response<Content>) -> io::Result<Response<Content>> {
        let (mut head, content) = response.into_parts();
        let length = length(&head.headers);
        let content = match self {
            Self::Trickle { bytes_per_second } => trickle(content, bytes_per_second),
            Self::Truncate { after_bytes } => truncate(content, after_bytes),
            Self::Corrupt => corrupt(content, length.unwrap_or_default() / 2),
            Self::Longer { extra } => {
                if let Some(length) = length {
                    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length + extra as u64));
                }
                content.chain(whole(Bytes::from(vec![b' '; extra]))).boxed()
            }
            Self::ReplaceBody { bytes, content_type } => {
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                if let Some(content_type) = content_type {
                    head.headers.insert(CONTENT_TYPE, content_type.parse().map_err(broken)?);
                }
                whole(bytes)
            }
            Self::Endless { total_bytes } => {
                head.headers.remove(CONTENT_LENGTH);
                endless(total_bytes)
            }
            Self::Header { name, value } => {
                let name = name.parse::<HeaderName>().map_err(broken)?;
                match value {
                    Some(value) => _ = head.headers.insert(name, value.parse().map_err(broken)?),
                    None => _ = head.headers.remove(name),
                }
                content
            }
            Self::Status { .. } | Self::Redirect { .. } | Self::Hang | Self::Refuse | Self::Delay(_) => content,
        };
        Ok(Response::from_parts(head, content))
    }
}

/// The length that a head announces.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn trickle(content: Content, bytes_per_second: u32) -> Content {
    // At least twenty pieces a second, or one byte at a time.
    let piece = (bytes_per_second / 20).max(1) as usize;
    stream::unfold((content, Bytes::new()), move |(mut content, mut rest)| async move {
        if rest.is_empty() {
            match content.next().await? {
                Ok(bytes) => rest = bytes,
                Err(error) => return Some((Err(error), (content, rest))),
            }
        }
        let bytes = rest.split_to(piece.min(rest.len()));
        // What comes may come in smaller pieces.
        tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(bytes_per_second.max(1)))).await;
        Some((Ok(bytes), (content, rest)))
    })
    .boxed()
}

fn truncate(content: Content, after_bytes: u64) -> Content {
    let kept = content.scan(after_bytes, |left, bytes| {
        let kept = bytes.map(|mut bytes| {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
            bytes
        });
        let over = kept.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready((!over).then_some(kept))
    });
    let cut = stream::once(async {
        tokio::time::sleep(FLUSH).await;
        Err(broken("truncated"))
    });
    kept.chain(cut).boxed()
}

fn corrupt(content: Content, at: u64) -> Content {
    let mut before = 0;
    content
        .map(move |bytes| {
            let bytes = bytes?;
            let offset = at.checked_sub(before).and_then(|offset| usize::try_from(offset).ok());
            before += bytes.len() as u64;
            let mut bytes = BytesMut::from(bytes);
            if let Some(byte) = offset.and_then(|offset| bytes.get_mut(offset)) {
                *byte ^= 1;
            }
            Ok(bytes.freeze())
        })
        .boxed()
}

fn endless(total_bytes: u64) -> Content {
    const BEGIN: &[u8] = br#"{"schemaVersion":2,"annotations":{"endless":""#;
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let begin = Bytes::from_static(BEGIN);
    let rest = stream::unfold(total_bytes.saturating_sub(BEGIN.len() as u64), move |left| {
        let bytes = chunk.slice(..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let left = left - bytes.len() as u64;
        std::future::ready((!bytes.is_empty()).then_some((Ok(bytes), left)))
    });
    whole(begin).chain(rest).boxed()
}
