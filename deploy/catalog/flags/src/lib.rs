//! `flags`: feature flags over the OpenFeature Remote Evaluation Protocol (OFREP), configured by one variable, `FLAGS`.
//!
//! | module | holds |
//! |---|---|
//! | [`ofrep`] | the protocol: paths, bodies, error codes, entity tags |
//! | [`definition`] | the grammar of `FLAGS` |
//! | [`condition`] | what a rule asks of an evaluation context |
//! | [`evaluation`] | from a flag and a context to a variant |
//! | [`hash`] | the hash behind percentages and entity tags |

mod condition;
mod definition;
mod evaluation;
mod hash;
mod ofrep;

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{IncomingRequest, ResponseOutparam},
};

struct Flags;

wasip2::http::proxy::export!(Flags);

impl Guest for Flags {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        exchange::wire::serve(request, out, |head, body, env| {
            let response = ofrep::answer(head, body, env);
            if response.status == 500 {
                eprint!("{}", response.body);
            }
            response
        });
    }
}
