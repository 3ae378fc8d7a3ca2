//! Calls that guests make. Denied unless the component's `allowedOutboundHosts` says so; asked twice: for the name that is
//! called, and for each address that it resolves to.
//!
//! Every call has a connection of its own: nothing is shared between guests that carries data.

mod client;
mod policy;

use std::sync::Arc;

use http::{Request, Response};
use pillion_protocol::hosts::AllowedHost;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// The most bytes of one write to a body: what the host holds for a guest whose reader is slow.
const CHUNK: usize = 64 << 10;

/// Where the guests of one component may call out to.
#[derive(Clone, Debug, Default)]
pub struct Outbound(Option<Arc<[AllowedHost]>>);

impl Outbound {
    /// Nowhere but to these.
    pub fn new(allowed: &[AllowedHost]) -> Self {
        Self((!allowed.is_empty()).then(|| allowed.into()))
    }
}

/// What an instance's outgoing calls go through.
pub struct OutboundHooks(Outbound);

impl OutboundHooks {
    /// For one instance.
    pub fn new(outbound: Outbound) -> Self {
        Self(outbound)
    }
}

type Sent = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for OutboundHooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Sent,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Sent), Error>> + Send> {
        let allowed = self.0.0.clone();
        Box::new(async move { client::send(allowed.as_deref().unwrap_or_default(), request, options).await })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}
