//! Responses: a head first, then a body with backpressure.

use wasip2::http::types::{Fields, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

/// A response whose head is out. Dropped without `finish`, its body is cut.
pub struct Reply {
    // The order matters: a body outlives its stream.
    stream: OutputStream,
    body: OutgoingBody,
}

impl Reply {
    /// Sends the head. Headers that the host forbids are left out.
    pub fn start(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) -> Self {
        let fields = Fields::new();
        for (name, value) in headers {
            let _ = fields.append(name, value.as_bytes());
        }
        let response = OutgoingResponse::new(fields);
        let _ = response.set_status_code(status);
        let body = response.body().expect("a new response has its body");
        let stream = body.write().expect("a new body has its stream");
        ResponseOutparam::set(out, Ok(response));
        Self { stream, body }
    }

    /// Waits until the host has taken all of `bytes`.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let permitted = self.stream.check_write()?;
            if permitted == 0 {
                self.stream.subscribe().block();
                continue;
            }
            let length = usize::try_from(permitted).map_or(bytes.len(), |n| n.min(bytes.len()));
            let (now, later) = bytes.split_at(length);
            self.stream.write(now)?;
            bytes = later;
        }
        Ok(())
    }

    /// A write that brings nothing.
    pub fn write_nothing(&self) -> Result<(), StreamError> {
        match self.stream.check_write()? {
            0 => self.stream.subscribe().block(),
            _ => self.stream.write(&[])?,
        }
        Ok(())
    }

    pub fn flush(&self) -> Result<(), StreamError> {
        self.stream.blocking_flush()
    }

    /// Ends the body as complete.
    pub fn finish(self, trailers: Option<Fields>) {
        let Self { stream, body } = self;
        drop(stream);
        let _ = OutgoingBody::finish(body, trailers);
    }
}

/// A whole response with its content-length.
pub fn full(out: ResponseOutparam, status: u16, body: &[u8]) -> Result<(), StreamError> {
    with_headers(out, status, &[], body)
}

/// As [`full`], with headers before the content-length.
pub fn with_headers(
    out: ResponseOutparam,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<(), StreamError> {
    let length = body.len().to_string();
    let headers = [headers, &[("content-length", length.as_str())]].concat();
    let reply = Reply::start(out, status, &headers);
    reply.write(body)?;
    reply.finish(None);
    Ok(())
}
