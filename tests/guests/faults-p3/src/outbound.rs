//! Outgoing requests.

use crate::reply;
use behaviour::route::Url;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::wit_future;

/// Answers what a GET of `url` answers: its status and body; 502 and the error code if it fails.
pub async fn fetch(url: &Url) -> Response {
    match send(url).await {
        Ok(response) => forward(response),
        Err(code) => reply::full(502, format!("{code:?}\n").as_bytes()),
    }
}

async fn send(url: &Url) -> Result<Response, ErrorCode> {
    let scheme = match url.scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let (trailers, end) = wit_future::new(|| Ok(None));
    // Dropped, it gives its default. The host waits for it before the request is complete.
    drop(trailers);
    let (request, _sent) = Request::new(Fields::new(), None, end, None);
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(&url.authority)))
        .and_then(|()| request.set_path_with_query(Some(&url.path)))
        .map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    client::send(request).await
}

/// Status and body. The body goes from stream to stream without the guest.
fn forward(response: Response) -> Response {
    let status = response.get_status_code();
    let (_read, result) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Response::consume_body(response, result);
    let (response, _sent) = Response::new(Fields::new(), Some(contents), trailers);
    let _ = response.set_status_code(status);
    response
}
