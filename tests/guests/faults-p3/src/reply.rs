//! Responses: the head is the handler's result, the body is written by a task of its own.

use wasip3::http::types::{ErrorCode, Fields, Response};
use wasip3::wit_bindgen::{FutureReader, FutureWriter, StreamWriter};
use wasip3::{wit_future, wit_stream};

type Trailers = Result<Option<Fields>, ErrorCode>;

/// The body of a response. Dropped without `finish`, it is cut.
pub struct Reply {
    stream: StreamWriter<u8>,
    trailers: FutureWriter<Trailers>,
    sent: FutureReader<Result<(), ErrorCode>>,
}

impl Reply {
    /// A response and its body. Headers that the host forbids are left out.
    pub fn start(status: u16, headers: &[(&str, &str)]) -> (Response, Self) {
        let fields = Fields::new();
        for (name, value) in headers {
            let _ = fields.append(name, value.as_bytes());
        }
        let (stream, contents) = wit_stream::new();
        let (trailers, end) = wit_future::new(|| Err(ErrorCode::InternalError(Some("cut".into()))));
        let (response, sent) = Response::new(fields, Some(contents), end);
        let _ = response.set_status_code(status);
        (response, Self { stream, trailers, sent })
    }

    /// Waits until the host has taken all of `bytes`. False: the host takes no more.
    pub async fn write(&mut self, bytes: Vec<u8>) -> bool {
        self.stream.write_all(bytes).await.is_empty()
    }

    /// A write that brings nothing.
    pub async fn write_nothing(&mut self) {
        let _ = self.stream.write(Vec::new()).await;
    }

    /// Ends the body as complete and waits until the host is done with it.
    pub async fn finish(self, trailers: Option<Fields>) {
        drop(self.stream);
        let _ = self.trailers.write(Ok(trailers)).await;
        let _ = self.sent.await;
    }
}

/// A whole response with its content-length.
pub fn full(status: u16, body: &[u8]) -> Response {
    with_headers(status, &[], body)
}

/// As [`full`], with headers before the content-length.
pub fn with_headers(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let length = body.len().to_string();
    let headers = [headers, &[("content-length", length.as_str())]].concat();
    let (response, mut reply) = Reply::start(status, &headers);
    let body = body.to_vec();
    wasip3::spawn(async move {
        reply.write(body).await;
        reply.finish(None).await;
    });
    response
}
