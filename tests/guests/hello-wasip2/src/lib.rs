//! The smallest useful p2 guest: the baseline of the throughput benches. No formatting, no panics, one write.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

wasip2::http::proxy::export!(Hello);

const BODY: &[u8] = b"hello\n";

impl Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let headers = Fields::new();
        let _ = headers.append("content-length", b"6");
        let response = OutgoingResponse::new(headers);
        let Ok(body) = response.body() else { return };
        let Ok(stream) = body.write() else { return };
        // Before the head goes out, so that head and body can leave the host in one write.
        let _ = stream.check_write();
        let _ = stream.write(BODY);
        drop(stream);
        ResponseOutparam::set(out, Ok(response));
        let _ = OutgoingBody::finish(body, None);
    }
}
