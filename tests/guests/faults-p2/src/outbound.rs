//! Outgoing requests.

use crate::echo::each_piece;
use crate::reply::{self, Reply};
use behaviour::route::Url;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, IncomingResponse, OutgoingRequest, ResponseOutparam, Scheme};
use wasip2::io::streams::StreamError;

/// Answers what a GET of `url` answers: its status and body; 502 and the error code if it fails.
pub fn fetch(url: &Url, out: ResponseOutparam) -> Result<(), StreamError> {
    let response = match send(url) {
        Ok(response) => response,
        Err(code) => return reply::full(out, 502, format!("{code:?}\n").as_bytes()),
    };
    let body = response.consume().expect("a response has its body once");
    let reply = Reply::start(out, response.status(), &[]);
    each_piece(&body, |piece| reply.write(piece))?;
    reply.finish(None);
    Ok(())
}

fn send(url: &Url) -> Result<IncomingResponse, ErrorCode> {
    let scheme = match url.scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(&url.authority)))
        .and_then(|()| request.set_path_with_query(Some(&url.path)))
        .map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let pending = outgoing_handler::handle(request, None)?;
    pending.subscribe().block();
    match pending.get() {
        Some(Ok(result)) => result,
        _ => Err(ErrorCode::InternalError(None)),
    }
}
