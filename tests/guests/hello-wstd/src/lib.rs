//! The p2 guest that most Rust programs look like: `wstd`'s async runtime and the `http` crate's types.

use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>, Error> {
    Ok(Response::builder().header("content-length", "6").body(Body::from("hello\n"))?)
}
