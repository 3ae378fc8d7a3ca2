//! Answers made of the request's body.

use crate::reply::{self, Reply};
use behaviour::PIECE;
use behaviour::grpc::{self, Deframer, Malformed};
use behaviour::route::Rpc;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::{FutureReader, StreamReader};
use wasip3::wit_future;

/// The body as it comes, then its trailers.
pub fn echo(request: Request) -> Response {
    let headers = request.get_headers();
    let copied: Vec<_> = ["content-type", "trailer"]
        .into_iter()
        .filter_map(|name| Some((name, String::from_utf8(headers.get(name).pop()?).ok()?)))
        .collect();
    let copied: Vec<_> = copied.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut body = Body::take(request);
    let (response, mut reply) = Reply::start(200, &copied);
    wasip3::spawn(async move {
        while let Some(piece) = body.next_piece().await {
            if !reply.write(piece).await {
                return;
            }
        }
        if let Ok(trailers) = body.finish().await {
            reply.finish(trailers).await;
        }
    });
    response
}

/// The body's length in decimal digits, or the error code that ended it.
pub async fn count(request: Request) -> Result<Response, ErrorCode> {
    let mut body = Body::take(request);
    let mut length = 0;
    while let Some(piece) = body.next_piece().await {
        length += piece.len() as u64;
    }
    body.finish().await?;
    Ok(reply::full(200, length.to_string().as_bytes()))
}

/// The methods of `pillion.test.Echo`.
pub fn grpc(rpc: Rpc, request: Request) -> Response {
    let (response, reply) = Reply::start(200, grpc::HEADERS);
    wasip3::spawn(async move {
        if rpc == Rpc::Fail {
            reply.finish(Some(status(grpc::INTERNAL, "broken"))).await;
        } else {
            answer_messages(rpc, Body::take(request), reply).await;
        }
    });
    response
}

async fn answer_messages(rpc: Rpc, mut body: Body, mut reply: Reply) {
    let mut deframer = Deframer::default();
    while let Some(piece) = body.next_piece().await {
        deframer.push(&piece);
        // What is malformed stays in the deframer until the end.
        while let Ok(Some(ping)) = deframer.next_message() {
            for _ in 0..rpc.copies(&ping) {
                if !reply.write(ping.frame()).await {
                    return;
                }
            }
        }
    }
    if body.finish().await.is_err() {
        return;
    }
    let end = match deframer.finish() {
        Ok(()) => status(grpc::OK, ""),
        Err(Malformed) => status(grpc::INVALID_ARGUMENT, "malformed"),
    };
    reply.finish(Some(end)).await;
}

fn status(code: &str, message: &str) -> Fields {
    let trailers = Fields::new();
    let _ = trailers.append("grpc-status", code.as_bytes());
    if !message.is_empty() {
        let _ = trailers.append("grpc-message", message.as_bytes());
    }
    trailers
}

struct Body {
    stream: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Fields>, ErrorCode>>,
}

impl Body {
    fn take(request: Request) -> Self {
        let (_read, result) = wit_future::new(|| Ok(()));
        let (stream, trailers) = Request::consume_body(request, result);
        Self { stream, trailers }
    }

    /// As soon as it is there; `None` at the end, good or bad.
    async fn next_piece(&mut self) -> Option<Vec<u8>> {
        let (_result, piece) = self.stream.read(Vec::with_capacity(PIECE)).await;
        (!piece.is_empty()).then_some(piece)
    }

    /// Tells a good end from a bad one.
    async fn finish(self) -> Result<Option<Fields>, ErrorCode> {
        drop(self.stream);
        self.trailers.await
    }
}
