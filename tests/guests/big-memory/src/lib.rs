//! A handler whose memory starts at 300 MiB (`build.rs`): it fits no default limit.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Big;

wasip2::http::proxy::export!(Big);

impl Guest for Big {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a new response has its body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("a new body has its stream");
        let _ = stream.blocking_write_and_flush(b"hello\n");
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
