//! Bodies on their way through the host: the caller's to the guest, the guest's to the caller. Both stream, with backpressure,
//! and both watch for one that stands still.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use wasmtime_wasi_http::WasiBody;

use super::{Endpoint, connection::Caller, flushes::Flushed, problem::ERROR_HEADER};
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
        match poll_filled(body, cx) {
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

/// A body that was cut short. To hyper it is an error, so the caller sees it: no last chunk, a reset stream, a reset connection.
#[derive(Clone, Debug)]
pub struct Cut(Arc<str>);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's body was cut short: {}", self.0)
    }
}

impl std::error::Error for Cut {}

/// A guest that has answered, and whom.
pub(super) struct Answered {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) caller: Caller,
    pub(super) run: Arc<Run>,
    /// How long its body may stand still.
    pub(super) idle: Duration,
}

/// The guest's body. Who drops it before its end has gone away, which ends the guest.
pub struct GuestBody {
    body: WasiBody,
    idle: Idle,
    guest: Answered,
    /// Bytes that are still to come, where the head says how many there are.
    remaining: Option<u64>,
    /// HTTP allows this response no body, whatever the guest writes.
    bodiless: bool,
    complete: bool,
    /// Only the connection's end says that the body is whole, so any other end of it is a reset.
    closes: bool,
    /// It was cut, which is said once what came before it is written.
    cut: Option<Cut>,
    flushed: Flushed,
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

/// Frames without a byte that are passed over at once, before others have their turn.
const EMPTY_FRAMES: usize = 32;

/// The next frame that brings something. One without a byte is no sign of life, and takes no memory further on: HTTP/2 would queue it.
pub fn poll_filled<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    for _ in 0..EMPTY_FRAMES {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            other => return other,
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl Answered {
    /// Makes the guest's response to a request of `method` the caller's.
    pub(super) fn reply(self, response: Response<WasiBody>, method: &Method, version: Version) -> Response<ReplyBody> {
        let mut response = response;
        // The host's word, which a guest cannot give.
        response.headers_mut().remove(ERROR_HEADER);
        let bodiless = is_bodiless(method, response.status());
        let remaining = promised_length(response.headers());
        let length = remaining.or_else(|| response.body().size_hint().exact());
        let closes = version < Version::HTTP_11 && length.is_none() && !bodiless;
        if closes {
            self.caller.reset_on_close(true);
        }
        let flushed = Flushed::new(self.caller.flushes(), version >= Version::HTTP_2);
        let idle = Idle::new(self.idle);
        response.map(|body| {
            let (guest, complete, cut) = (self, bodiless, None);
            ReplyBody::Guest(Box::new(GuestBody {
                body,
                idle,
                guest,
                remaining,
                bodiless,
                complete,
                closes,
                cut,
                flushed,
            }))
        })
    }
}

impl GuestBody {
    /// Counts what comes; false: it is more than the head has promised.
    fn count(&mut self, frame: &Frame<Bytes>) -> bool {
        let (Some(remaining), Some(data)) = (&mut self.remaining, frame.data_ref()) else { return true };
        match remaining.checked_sub(data.len() as u64) {
            Some(rest) => *remaining = rest,
            None => return false,
        }
        true
    }

    /// Cuts the body, since its guest has failed or, if it has not, for this reason of its own.
    fn cut(&self, own: &str) -> Cut {
        let run = &self.guest.run;
        // A run that failed tells so itself.
        let failed = run.failure().cloned().or_else(|| run.stopped().map(End::Stopped));
        match failed {
            Some(end) => Cut(format!("{end:?}").into()),
            None => {
                self.guest.endpoint.tell("guest-error", own);
                Cut(own.into())
            }
        }
    }

    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.guest.run.asked_for_more();
        match poll_filled(&mut self.body, cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.reset();
                self.guest.run.handed_over();
                if !self.count(&frame) {
                    return Poll::Ready(Some(Err(self.cut("the body is longer than its Content-Length"))));
                }
                Poll::Ready(Some(Ok(without_our_word(frame))))
            }
            Poll::Ready(Some(Err(error))) => {
                let short = self.remaining.is_some_and(|remaining| remaining > 0);
                let what =
                    if short { "the body is shorter than its Content-Length" } else { "the body ended with an error" };
                Poll::Ready(Some(Err(self.cut(&format!("{what}: {error:?}")))))
            }
            // The stream behind it looks the same whether the guest finished it or was ended: how the run ended tells.
            Poll::Ready(None) if self.guest.run.failure().is_some() => Poll::Ready(Some(Err(self.cut("")))),
            Poll::Ready(None) if self.remaining.is_some_and(|remaining| remaining > 0) => {
                Poll::Ready(Some(Err(self.cut("the body is shorter than its Content-Length"))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.idle.poll(cx).map(|()| {
                self.guest.run.stop(Stop::IdleTimeout);
                Some(Err(self.cut("the body stood still")))
            }),
        }
    }
}

/// Trailers are headers to some.
fn without_our_word(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        trailers.remove(ERROR_HEADER);
    }
    frame
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.bodiless {
            return Poll::Ready(None);
        }
        if self.cut.is_none() {
            match ready!(self.poll_guest(cx)) {
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(cut)) => self.cut = Some(cut),
                None => {
                    self.complete = true;
                    if self.closes {
                        self.guest.caller.reset_on_close(false);
                    }
                    return Poll::Ready(None);
                }
            }
        }
        ready!(self.flushed.poll(cx));
        Poll::Ready(self.cut.clone().map(Err))
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
        let run = &self.guest.run;
        if run.end().is_some() {
            return;
        }
        if self.complete || self.remaining == Some(0) {
            run.delivered();
        } else {
            run.stop(Stop::CallerGone);
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

    #[tokio::test]
    async fn frames_without_a_byte_are_passed_over_and_others_have_their_turn() {
        let frames = |empty: usize| {
            let frames = std::iter::repeat_n(Bytes::new(), empty).chain([Bytes::from("x")]);
            http_body_util::StreamBody::new(futures::stream::iter(
                frames.map(|data| Ok::<_, std::convert::Infallible>(Frame::data(data))),
            ))
        };
        let first = async |empty| {
            let mut body = frames(empty);
            std::future::poll_fn(|cx| Poll::Ready(poll_filled(&mut body, cx).is_ready())).await
        };
        assert!(first(EMPTY_FRAMES - 1).await);
        assert!(!first(EMPTY_FRAMES).await);
        let mut body = frames(10 * EMPTY_FRAMES);
        let frame = std::future::poll_fn(|cx| poll_filled(&mut body, cx)).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "x");
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
