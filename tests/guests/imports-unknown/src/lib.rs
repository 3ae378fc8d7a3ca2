//! A handler that needs an interface which no host has. It must be refused by that name.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{ErrorCode, IncomingRequest, ResponseOutparam};

wit_bindgen::generate!({
    inline: "
        package acme:missing@1.2.3;

        interface thing {
            ask: func() -> u32;
        }

        world asker {
            import thing;
        }
    ",
    world: "asker",
});

struct Asker;

wasip2::http::proxy::export!(Asker);

impl Guest for Asker {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let answer = acme::missing::thing::ask().to_string();
        ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some(answer))));
    }
}
