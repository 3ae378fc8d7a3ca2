//! One request and its answer: all that a component of the catalog sees of HTTP.
//!
//! The components are pure functions from a [`Head`], a body and an environment to a [`Response`], so their tests run on any
//! machine. What talks to `wasi:http` is here, once, in [`wire`]; it decides nothing.

mod head;
mod response;
pub mod wire;

pub use head::Head;
pub use response::Response;
