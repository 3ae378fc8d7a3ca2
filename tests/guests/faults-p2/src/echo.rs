//! Answers made of the request's body.

use crate::reply::{self, Reply};
use behaviour::PIECE;
use behaviour::grpc::{self, Deframer, Malformed};
use behaviour::route::Rpc;
use wasip2::http::types::{ErrorCode, Fields, IncomingBody, IncomingRequest, ResponseOutparam, http_error_code};
use wasip2::io::streams::StreamError;

/// The body as it comes, then its trailers.
pub fn echo(request: IncomingRequest, out: ResponseOutparam) -> Result<(), StreamError> {
    let headers = request.headers();
    let copied: Vec<_> = ["content-type", "trailer"]
        .into_iter()
        .filter_map(|name| Some((name, String::from_utf8(headers.get(name).pop()?).ok()?)))
        .collect();
    let copied: Vec<_> = copied.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let body = take_body(&request);
    let reply = Reply::start(out, 200, &copied);
    each_piece(&body, |piece| reply.write(piece))?;
    if let Ok(trailers) = trailers(body) {
        reply.finish(trailers);
    }
    Ok(())
}

/// The body's length in decimal digits, or the error code that ended it.
pub fn count(request: IncomingRequest, out: ResponseOutparam) -> Result<(), StreamError> {
    let body = take_body(&request);
    let mut length = 0;
    let read = each_piece(&body, |piece| {
        length += piece.len() as u64;
        Ok(())
    });
    match read {
        Ok(()) => reply::full(out, 200, length.to_string().as_bytes()),
        Err(error) => {
            ResponseOutparam::set(out, Err(error_code(&error)));
            Ok(())
        }
    }
}

/// The methods of `pillion.test.Echo`.
pub fn grpc(rpc: Rpc, request: IncomingRequest, out: ResponseOutparam) -> Result<(), StreamError> {
    let reply = Reply::start(out, 200, grpc::HEADERS);
    if rpc == Rpc::Fail {
        reply.finish(Some(status(grpc::INTERNAL, "broken")));
        return Ok(());
    }
    let mut deframer = Deframer::default();
    each_piece(&take_body(&request), |piece| {
        deframer.push(piece);
        // What is malformed stays in the deframer until the end.
        while let Ok(Some(ping)) = deframer.next_message() {
            for _ in 0..rpc.copies(&ping) {
                reply.write(&ping.frame())?;
            }
        }
        Ok(())
    })?;
    let end = match deframer.finish() {
        Ok(()) => status(grpc::OK, ""),
        Err(Malformed) => status(grpc::INVALID_ARGUMENT, "malformed"),
    };
    reply.finish(Some(end));
    Ok(())
}

fn status(code: &str, message: &str) -> Fields {
    let trailers = Fields::new();
    let _ = trailers.append("grpc-status", code.as_bytes());
    if !message.is_empty() {
        let _ = trailers.append("grpc-message", message.as_bytes());
    }
    trailers
}

fn take_body(request: &IncomingRequest) -> IncomingBody {
    request.consume().expect("a request has its body once")
}

/// Gives the body to `take` piece by piece, each as soon as it is there.
pub fn each_piece(
    body: &IncomingBody,
    mut take: impl FnMut(&[u8]) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let stream = body.stream().expect("a body has its stream once");
    loop {
        match stream.blocking_read(PIECE as u64) {
            Ok(piece) => take(&piece)?,
            Err(StreamError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn trailers(body: IncomingBody) -> Result<Option<Fields>, ErrorCode> {
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    match trailers.get() {
        // Cloned, because those of a request cannot be changed or sent.
        Some(Ok(Ok(found))) => Ok(found.map(|fields| fields.clone())),
        Some(Ok(Err(code))) => Err(code),
        _ => Ok(None),
    }
}

fn error_code(error: &StreamError) -> ErrorCode {
    match error {
        StreamError::LastOperationFailed(cause) => http_error_code(cause),
        StreamError::Closed => None,
    }
    .unwrap_or(ErrorCode::InternalError(None))
}
