//! Calls that guests make. Denied unless the component's `allowedOutboundHosts` says so; asked twice: for the name that is
//! called, and for each address that it resolves to.
//!
//! Every call has a connection of its own: nothing is shared between guests that carries data.

mod caller;
mod ceiling;
mod client;
mod policy;

use std::sync::{Arc, LazyLock};

use http::{Request, Response};
use pillion_protocol::hosts::AllowedHost;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use self::caller::to;
pub use self::{
    caller::Caller,
    ceiling::{named, within},
};

/// The most bytes of one write to a body: what the host holds for a guest whose reader is slow.
pub(crate) const CHUNK: usize = 64 << 10;

/// Where the guests of one component may call out to, and who they are to the log.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    allowed: Option<Arc<[AllowedHost]>>,
    caller: Option<Arc<Caller>>,
}

impl Outbound {
    /// Nowhere but to these.
    pub fn new(allowed: &[AllowedHost], caller: Caller) -> Self {
        Self { allowed: (!allowed.is_empty()).then(|| allowed.into()), caller: Some(Arc::new(caller)) }
    }
}

/// Whether an address is next to us: this machine, and what only it can reach.
pub fn is_next_to_us(address: std::net::IpAddr) -> bool {
    policy::is_next_to_us(address)
}

/// What an instance's outgoing calls go through.
pub struct OutboundHooks {
    outbound: Outbound,
    /// Calls that this instance may have at once; made with the first.
    calls: Option<Arc<Semaphore>>,
}

/// Calls that one instance may have at once.
const CALLS_EACH: usize = 16;

/// Calls that all instances may have at once: each holds a descriptor.
static CALLS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(usize::try_from(calls(pillion_sockets::listen::descriptor_limit())).unwrap_or(usize::MAX))
});

/// How many calls a process of so many descriptors may have at once: an eighth of them, 1,024 at most.
pub fn calls(descriptors: u64) -> u64 {
    (descriptors / 8).min(1_024)
}

/// What a call holds until its answer has ended.
pub(crate) struct Call {
    _own: OwnedSemaphorePermit,
    _node: SemaphorePermit<'static>,
}

impl OutboundHooks {
    /// For one instance.
    pub fn new(outbound: Outbound) -> Self {
        Self { outbound, calls: None }
    }

    fn call(&mut self) -> Option<Call> {
        let own = self.calls.get_or_insert_with(|| Arc::new(Semaphore::new(CALLS_EACH)));
        let _own = Arc::clone(own).try_acquire_owned().ok()?;
        Some(Call { _own, _node: CALLS.try_acquire().ok()? })
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
        let (Outbound { allowed, caller }, call) = (self.outbound.clone(), self.call());
        Box::new(async move {
            let to = to(request.uri());
            let sent = match call {
                Some(call) => {
                    client::send(allowed.as_deref().unwrap_or_default(), request, options, call, caller.clone()).await
                }
                None => Err(Error::ConnectionLimitReached),
            };
            if let (Err(error), Some(caller)) = (&sent, caller) {
                caller.tell(&to, error);
            }
            sent
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}
