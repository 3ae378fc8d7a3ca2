//! `whoami`: shows a request as its sidecar sees it. The first component to try, and the quickest way to see what a proxy
//! in front adds or takes away.
//!
//! [`show`] holds all of it; here it meets `wasi:http`.

mod show;

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{IncomingRequest, ResponseOutparam},
};

struct Whoami;

wasip2::http::proxy::export!(Whoami);

impl Guest for Whoami {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        exchange::wire::serve(request, out, show::answer);
    }
}
