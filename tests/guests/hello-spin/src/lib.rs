//! A p3 guest from an SDK that people use. It imports nothing but `wasi:*`.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_service;

#[http_service]
async fn hello(_request: Request) -> impl IntoResponse {
    Response::builder().header("content-length", "6").body("hello\n".to_string())
}
