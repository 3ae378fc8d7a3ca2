//! The exchange on `wasi:http`: reads a head, lends out the body, writes the answer. Deciding is the caller's.

use std::io::{self, Read, Write};

use wasip2::http::types::{
    Fields, HeaderError, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam, Scheme,
};

use crate::{Head, Response};

/// Answers one request with what `answer` makes of its head, its body (read only as far as `answer` reads it) and this
/// component's environment.
///
/// A response that cannot be written as it is becomes a 500: a 200 that lost a header could let a forged one through.
pub fn serve(
    request: IncomingRequest,
    out: ResponseOutparam,
    answer: impl FnOnce(&Head, &mut dyn Read, &dyn Fn(&str) -> Option<String>) -> Response,
) {
    let head = read_head(&request);
    let response = with_body(&request, |body| answer(&head, body, &|name| std::env::var(name).ok()));
    let headers = headers_of(&response);
    match headers {
        Ok(headers) => write(out, response.status, headers, response.body.as_bytes()),
        Err(_) => write(out, 500, Fields::new(), b"a header of the answer holds what no header may hold\n"),
    }
}

fn read_head(request: &IncomingRequest) -> Head {
    let method = match request.method() {
        Method::Get => "GET".to_owned(),
        Method::Head => "HEAD".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Delete => "DELETE".to_owned(),
        Method::Connect => "CONNECT".to_owned(),
        Method::Options => "OPTIONS".to_owned(),
        Method::Trace => "TRACE".to_owned(),
        Method::Patch => "PATCH".to_owned(),
        Method::Other(other) => other,
    };
    let scheme = match request.scheme() {
        Some(Scheme::Http) => "http".to_owned(),
        Some(Scheme::Https) => "https".to_owned(),
        Some(Scheme::Other(other)) => other,
        None => String::new(),
    };
    Head {
        method,
        scheme,
        authority: request.authority().unwrap_or_default(),
        target: request.path_with_query().unwrap_or_else(|| "/".to_owned()),
        headers: request.headers().entries(),
    }
}

fn with_body<T>(request: &IncomingRequest, read: impl FnOnce(&mut dyn Read) -> T) -> T {
    let Ok(body) = request.consume() else { return read(&mut io::empty()) };
    // Declared after the body, so dropped before it, as wasi:http asks of a child.
    match body.stream() {
        Ok(mut stream) => read(&mut stream),
        Err(()) => read(&mut io::empty()),
    }
}

fn headers_of(response: &Response) -> Result<Fields, HeaderError> {
    let headers = Fields::new();
    for (name, value) in &response.headers {
        headers.append(name, value.as_bytes())?;
    }
    // RFC 9110 §8.6: a 304 may only say the length that a 200 would have had.
    if response.status != 304 {
        headers.append("content-length", response.body.len().to_string().as_bytes())?;
    }
    Ok(headers)
}

/// A caller that goes away meanwhile is nobody's fault, so what then fails is left unsaid.
fn write(out: ResponseOutparam, status: u16, headers: Fields, content: &[u8]) {
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    let Ok(mut stream) = body.write() else { return };
    // What fits is written before the head goes out, so that both can leave the host at once.
    let room = usize::try_from(stream.check_write().unwrap_or(0)).unwrap_or(usize::MAX);
    let (first, rest) = content.split_at_checked(room).unwrap_or((content, &[]));
    let _ = stream.write(first);
    ResponseOutparam::set(out, Ok(response));
    let _ = stream.write_all(rest);
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
