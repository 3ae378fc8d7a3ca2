//! Bodies on their way through the host: the caller's to the guest, the guest's to the caller. Both stream, with backpressure,
//! and both watch for one that stands still.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use wasmtime_wasi_http::WasiBody;

use crate::{
    idle::Idle,
    scheduler::run::{End, Run, Stop},
};

/// The caller's body, as the guest reads it.
pub struct CallerBody {
    body: Incoming,
    idle: Idle,
    run: Arc<Run>,
}

impl CallerBody {
    /// A body that may be silent for `idle`; then `run` is stopped.
    pub fn new(body: Incoming, idle: Duration, run: Arc<Run>) -> Self {
        Self { body, idle: Idle::new(idle), run }
    }
}

impl Body for CallerBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, idle, run } = &mut *self;
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                // Nothing more can be read of this connection or stream: no answer to this body would be right.
                run.stop(Stop::BrokenBody);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(frame) => {
                idle.reset();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => idle.poll(cx).map(|()| {
                run.stop(Stop::IdleTimeout);
                Some(Err(wasmtime_wasi_http::Error::ConnectionReadTimeout))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What goes to the caller: a guest's body, or the host's own words.
pub enum ReplyBody {
    /// The guest's.
    Guest(Box<GuestBody>),
    /// The host's.
    Host(Full<Bytes>),
}

impl ReplyBody {
    /// An answer of the host's own to a request of `method`.
    pub fn host(response: Response<Full<Bytes>>, method: &Method) -> Response<Self> {
        let mut response = response;
        if is_bodiless(method, response.status()) {
            // What a HEAD asks for is told nevertheless: how long the body would be.
            let length = response.body().size_hint().exact().filter(|_| *method == Method::HEAD);
            match length {
                Some(length) => _ = response.headers_mut().insert(header::CONTENT_LENGTH, length.into()),
                None => _ = response.headers_mut().remove(header::CONTENT_LENGTH),
            }
            *response.body_mut() = Full::default();
        }
        response.map(Self::Host)
    }
}

/// A body that was cut short. To hyper it is an error, so the caller sees it: no last chunk, or a reset stream.
#[derive(Debug)]
pub struct Cut(End);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's body was cut short: {:?}", self.0)
    }
}

impl std::error::Error for Cut {}

/// The guest's body. Who drops it before its end has gone away, which ends the guest.
pub struct GuestBody {
    body: WasiBody,
    idle: Idle,
    run: Arc<Run>,
    /// Bytes that are still to come, where the head says how many there are.
    remaining: Option<u64>,
    /// HTTP allows this response no body, whatever the guest writes.
    bodiless: bool,
    complete: bool,
}

/// Whether HTTP allows a response no body.
fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The length that a response's head promises.
fn promised_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl GuestBody {
    /// Makes the guest's response to a request of `method` the caller's.
    pub fn reply(response: Response<WasiBody>, method: &Method, idle: Duration, run: Arc<Run>) -> Response<ReplyBody> {
        let bodiless = is_bodiless(method, response.status());
        let remaining = promised_length(response.headers());
        response.map(|body| {
            let idle = Idle::new(idle);
            ReplyBody::Guest(Box::new(Self { body, idle, run, remaining, bodiless, complete: bodiless }))
        })
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        if let (Some(remaining), Some(data)) = (&mut self.remaining, frame.data_ref()) {
            *remaining = remaining.saturating_sub(data.len() as u64);
        }
    }

    fn cut(&self) -> Cut {
        Cut(self.run.end().cloned().unwrap_or(End::Host("the guest's body ended with an error")))
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.bodiless {
            return Poll::Ready(None);
        }
        self.run.asked_for_more();
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.reset();
                self.run.handed_over();
                self.count(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(self.cut()))),
            // The stream behind it looks the same whether the guest finished it or was ended: how the run ended tells.
            Poll::Ready(None) if self.run.failure().is_some() => Poll::Ready(Some(Err(self.cut()))),
            Poll::Ready(None) => {
                self.complete = true;
                Poll::Ready(None)
            }
            Poll::Pending => self.idle.poll(cx).map(|()| {
                self.run.stop(Stop::IdleTimeout);
                Some(Err(Cut(End::Stopped(Stop::IdleTimeout))))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.bodiless
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if self.run.end().is_some() {
            return;
        }
        if self.complete || self.remaining == Some(0) {
            self.run.delivered();
        } else {
            self.run.stop(Stop::CallerGone);
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Guest(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Host(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|e| match e {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Guest(body) => body.is_end_stream(),
            Self::Host(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Guest(body) => body.size_hint(),
            Self::Host(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_answers_have_no_body_where_http_allows_none() {
        let answer = |status: u16, method: Method| {
            let mut response = Response::new(Full::from("body"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            let response = ReplyBody::host(response, &method);
            let length =
                response.headers().get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap().to_owned());
            (response.body().size_hint().exact(), length)
        };
        assert_eq!(answer(404, Method::GET), (Some(4), None));
        assert_eq!(answer(404, Method::HEAD), (Some(0), Some("4".into())));
        assert_eq!(answer(204, Method::GET), (Some(0), None));
    }

    #[test]
    fn the_promised_length_is_the_heads_and_some_answers_have_no_body() {
        let mut headers = HeaderMap::new();
        assert_eq!(promised_length(&headers), None);
        headers.insert(header::CONTENT_LENGTH, 7.into());
        assert_eq!(promised_length(&headers), Some(7));
        assert!(is_bodiless(&Method::HEAD, StatusCode::OK));
        assert!(is_bodiless(&Method::GET, StatusCode::NOT_MODIFIED));
        assert!(!is_bodiless(&Method::GET, StatusCode::OK));
    }
}
