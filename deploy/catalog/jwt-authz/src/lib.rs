//! `jwt-authz`: answers the question that nginx (`auth_request`) and Envoy (`ext_authz`, HTTP service) ask before they let a
//! request through: is its JSON Web Token one of ours?
//!
//! | module | holds |
//! |---|---|
//! | [`authz`] | from a request to 200, 401 or 500 |
//! | [`config`] | the environment |
//! | [`keys`] | the JWK set |
//! | [`token`] | the checks of one token |
//! | [`identity`] | the headers that a 200 carries |
//! | [`signature`] | the three signature algorithms |
//!
//! Whatever is not understood is refused: an unknown algorithm, a header marked critical, a claim of the wrong type, a
//! configuration with a mistake in it.

mod authz;
mod config;
#[cfg(test)]
mod fixtures;
mod identity;
mod keys;
mod signature;
mod token;

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{IncomingRequest, ResponseOutparam},
};

struct JwtAuthz;

wasip2::http::proxy::export!(JwtAuthz);

impl Guest for JwtAuthz {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        exchange::wire::serve(request, out, |head, _, env| {
            let response = authz::answer(head, env);
            // The caller's caller does not see this one: proxies turn it into an answer of their own.
            if response.status == 500 {
                eprint!("{}", response.body);
            }
            response
        });
    }
}
