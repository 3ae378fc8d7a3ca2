//! Fixtures for the tests in `tests/`, which run the real program, `pillion`, with real components and call it over real sockets.
//!
//! | module | holds |
//! |---|---|
//! | [`api_proxy`] | a proxy before an API server that makes faults |
//! | [`client`] | callers: HTTP/1.1 and HTTP/2, from hyper |
//! | `background` | a listener that is served on a thread of its own |
//! | [`clock`] | a wall clock of a program's own |
//! | [`cluster`] | Kubernetes' API server alone, a node that runs its pods, a whole cluster |
//! | [`component`] | components, as YAML |
//! | [`control`] | control before an API server alone, and who nodes are to it |
//! | [`host`] | the program, running: its events, its log, its processes |
//! | [`installed`] | a whole cluster with the chart on it |
//! | `jwt` | tokens that are signed here |
//! | [`load`] | callers in great number: wrk |
//! | [`netns`] | network namespaces, as runtimes make them for pods |
//! | [`node`] | a node without a cluster: a keeper, and the CNI plugin |
//! | [`pattern`] | long bodies that are checked without being held |
//! | [`place`] | guests, stores, ports |
//! | [`process`] | what `/proc` says of a process |
//! | [`program`] | the program, run to its end |
//! | [`raw`] | a caller that says exactly what it is told, for what no client library would say |
//! | [`registry`] | a registry with its artifacts, and a proxy before it that makes faults |
//! | [`server`] | an HTTP server in the test's process |
//! | [`service`] | one address for several servers |
//! | [`spinning`] | programs that keep every core busy |
//! | `throttled` | a pipe that is read slowly |
//! | [`tls`] | a private authority and its certificates |
//! | [`unannounced`] | a process of a pod that no plugin was asked for |
//! | [`upstream`] | a server that guests call |
//! | [`wait`] | waiting for something with an end
//! | [`world`] | control and a node that follows it, before a real API server |
//!
//! Every fixture returns errors; tests end at the first one with `?`. What is started is ended when it is dropped, also when a
//! test panics.

#![forbid(unsafe_code)]

pub mod api_proxy;
mod background;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod component;
pub mod control;
pub mod host;
pub mod installed;
mod jwt;
pub mod load;
pub mod netns;
pub mod node;
pub mod pattern;
pub mod place;
pub mod process;
pub mod program;
pub mod raw;
pub mod registry;
pub mod server;
pub mod service;
pub mod spinning;
mod throttled;
pub mod tls;
pub mod unannounced;
pub mod upstream;
pub mod wait;
pub mod world;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::{
    client::{Answer, Connection, Protocol, get},
    component::Component,
    host::Host,
    raw::Raw,
    wait::{eventually, soon, wait_until},
};

/// The faults guests: every behaviour in both generations of `wasi:http`.
pub const FAULTS: [&str; 2] = ["faults-p2", "faults-p3"];

/// Whether what takes long is to be done whole: `make soak`.
pub fn is_soak() -> bool {
    std::env::var_os("PILLION_SOAK").is_some_and(|value| value == "full")
}

/// What a lock holds, whatever became of who held it.
fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
