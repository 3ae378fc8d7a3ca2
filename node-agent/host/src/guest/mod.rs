//! What an instance sees of the world, and how it is called.
//!
//! [`Guest`] is the state behind one `Store`: made for one request, dropped with it.

pub mod call;
pub mod config;
pub mod link;
pub mod logs;
pub mod memory;
mod resources;
pub mod reuse;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use self::{config::Config, logs::Logs, memory::MemoryLimiter, resources::Resources};
use crate::outbound::{Outbound, OutboundHooks};

/// The most bytes of one set of headers that a guest makes, beside those that its caller has sent: these it may copy. A header counts
/// its bytes and, as `wasmtime-wasi-http` reckons, what it takes in memory.
const FIELDS: usize = 32 << 10;

/// What a name and a value take in memory beside their bytes, at most.
const FIELD_OVERHEAD: usize = 128;

/// Between two requests an instance that is used again holds a few objects of the host's. One with more than these leaks them.
const LEAKED: usize = 128;

/// The most random bytes of one call: making them keeps a thread from everything else.
const RANDOM: u64 = 64 << 10;

/// What a component's guests are given; the same for every request.
pub struct Surroundings {
    /// The environment.
    pub env: Vec<(String, String)>,
    /// What `wasi:config`, and Spin's variables, answer.
    pub config: Arc<Config>,
    /// Where calls out may go.
    pub outbound: Outbound,
    /// Where standard output and standard error go.
    pub logs: Logs,
}

/// The state of one instance.
pub struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    resources: Resources,
    config: Arc<Config>,
    hooks: OutboundHooks,
    /// Counts and limits its memory.
    pub memory: MemoryLimiter,
    /// Its slot of the pool, for as long as its store lives.
    _slot: OwnedSemaphorePermit,
}

impl Guest {
    /// The state of a new instance.
    pub fn new(surroundings: &Surroundings, memory: MemoryLimiter, slot: OwnedSemaphorePermit) -> Self {
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdout(surroundings.logs.stdout()).stderr(surroundings.logs.stderr());
        wasi.max_random_size(RANDOM);
        if !surroundings.env.is_empty() {
            wasi.envs(&surroundings.env);
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS);
        Self {
            wasi: wasi.build(),
            http,
            resources: Resources::new(),
            config: surroundings.config.clone(),
            hooks: OutboundHooks::new(surroundings.outbound.clone()),
            memory,
            _slot: slot,
        }
    }

    /// Whether the host's objects that it holds need more memory than it may have.
    fn is_exhausted(&self) -> bool {
        self.resources.is_exhausted()
    }

    /// Whether it keeps objects of the host's that no request needs any more.
    fn leaks(&mut self) -> bool {
        self.resources.count() > LEAKED
    }

    /// Lets it make headers that hold all of its caller's.
    pub fn may_copy(&mut self, headers: &HeaderMap) {
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD_OVERHEAD;
        self.http.set_field_size_limit(FIELDS + headers.iter().map(size).sum::<usize>());
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: self.resources.for_call(&mut self.memory) }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let table = self.resources.for_call(&mut self.memory);
        WasiHttpCtxView { ctx: &mut self.http, table, hooks: &mut self.hooks }
    }
}
