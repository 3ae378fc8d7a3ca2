//! Calling a guest: one request in, one response out, over either world.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Request, Response, Uri};
use tokio::sync::oneshot;
use wasmtime::{Engine, Store, component::ResourceTableError};
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p2, p3};

use super::{
    Guest,
    memory::Denied,
    reuse::{Instance, Reuse},
};
use crate::{
    endpoint::body::CallerBody,
    engine::{Loaded, Pre},
    scheduler::{
        GuestFuture,
        run::{End, Run},
    },
};

/// Bytes that one call between guest and host may copy.
const HOSTCALL_BYTES: usize = 8 << 20;

/// The most handles that the component model keeps for one instance, of at most 32 bytes each.
const HANDLES: usize = 128 << 10;

/// What a guest answers first: the response's head with its body to come, or a `wasi:http` error code in words.
pub type Head = Result<Response<WasiBody>, String>;

/// Where the head goes. Who waits for it learns that none will come when the last clone is dropped: the one who made it keeps
/// one until all that the request held is free again.
#[derive(Clone)]
pub struct HeadSender(Arc<Mutex<Sending>>);

/// A head on its way.
struct Sending {
    /// What the guest has given.
    head: Option<Head>,
    to: Option<oneshot::Sender<Head>>,
}

impl HeadSender {
    /// A sender, and where its head arrives.
    pub fn new() -> (Self, oneshot::Receiver<Head>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Sending { head: None, to: Some(sender) }))), receiver)
    }

    fn send(&self, head: Head) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).head = Some(head);
    }

    /// Hands over what the guest has given. To be called after each poll of the guest, not before: one that fails right after its
    /// head has then failed already, and its caller is told why in place of a head without a body.
    pub fn deliver(&self, run: &Run) {
        let mut sending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(head) = sending.head.take() else { return };
        let to = sending.to.take();
        drop(sending);
        if run.failure().is_none()
            && let Some(to) = to
        {
            // Nobody may be waiting any more.
            _ = to.send(head);
        }
    }
}

/// Calls the guest, sends the head when it comes, and ends when the guest has. How it ended is in `run` before anything that
/// the caller could notice is dropped. In a box as large as its world needs: it moves on its way to a thread.
pub fn call(
    loaded: &Loaded,
    guest: Guest,
    reuse: Option<Arc<Reuse>>,
    request: Request<CallerBody>,
    head: HeadSender,
    run: Arc<Run>,
) -> GuestFuture {
    match &loaded.pre {
        Pre::P2(pre) => Box::pin(serve_p2(Arc::clone(pre), guest, request, head, run)),
        Pre::P3(pre) => Box::pin(serve_p3(Arc::clone(pre), guest, reuse, request, head, run)),
    }
}

async fn serve_p2(
    pre: Arc<p2::bindings::ProxyPre<Guest>>,
    guest: Guest,
    request: Request<CallerBody>,
    head: HeadSender,
    run: Arc<Run>,
) {
    let mut store = new_store(pre.engine(), guest, &run);
    let _unwinding = Unwinding(&run);
    let result = call_p2(&pre, &mut store, request, head).await;
    run.finish(end(result, &store));
}

async fn serve_p3(
    pre: Arc<p3::bindings::ServicePre<Guest>>,
    guest: Guest,
    reuse: Option<Arc<Reuse>>,
    request: Request<CallerBody>,
    head: HeadSender,
    run: Arc<Run>,
) {
    let _unwinding = Unwinding(&run);
    let instance = match reuse.as_ref().and_then(|reuse| reuse.take()) {
        Some(instance) => {
            // It has a guest of its own, with a slot and memory: these go back.
            drop(guest);
            Ok(instance.for_run(&run))
        }
        None => new_instance(&pre, new_store(pre.engine(), guest, &run)).await,
    };
    let mut instance = match instance {
        Ok(instance) => instance,
        Err((store, error)) => return run.finish(end(Err(error), &store)),
    };
    let _unwinding = Unwinding(&run);
    let result = call_p3(&mut instance, request, head).await;
    run.finish(end(result, &instance.store));
    if let Some(reuse) = reuse
        && run.failure().is_none()
    {
        reuse.park(instance);
    }
}

/// Where a panic of the host unwinds through a call, this is dropped before the store is, so that nobody takes what the guest
/// had written for all of it. After an ordinary end it changes nothing.
struct Unwinding<'a>(&'a Run);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.finish(End::Host("the host failed while it ran this request"));
        }
    }
}

/// A store whose guest looks up at every tick.
fn new_store(engine: &Engine, guest: Guest, run: &Arc<Run>) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store.set_max_component_handles(HANDLES);
    tick_with(&mut store, run);
    store
}

/// Makes the guest in `store` look up at every tick, on behalf of `run`.
pub(super) fn tick_with(store: &mut Store<Guest>, run: &Arc<Run>) {
    let run = Arc::clone(run);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |store| match store.data().is_exhausted() {
        false => run.tick(),
        true => Err(wasmtime::Error::msg("the guest holds more of the host's objects than its memory allows")),
    });
}

async fn call_p2(
    pre: &p2::bindings::ProxyPre<Guest>,
    store: &mut Store<Guest>,
    request: Request<CallerBody>,
    head: HeadSender,
) -> wasmtime::Result<()> {
    let proxy = pre.instantiate_async(&mut *store).await?;
    store.data_mut().may_copy(request.headers());
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(p2::bindings::http::types::Scheme::Http, request)?;
    let out = http.new_response_outparam_from_callback(move |response| {
        head.send(response.map_err(|code| format!("{code:?}")));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
}

async fn new_instance(
    pre: &p3::bindings::ServicePre<Guest>,
    mut store: Store<Guest>,
) -> Result<Instance, (Store<Guest>, wasmtime::Error)> {
    match pre.instantiate_async(&mut store).await {
        Ok(service) => Ok(Instance::new(store, service)),
        Err(error) => Err((store, error)),
    }
}

async fn call_p3(instance: &mut Instance, request: Request<CallerBody>, head: HeadSender) -> wasmtime::Result<()> {
    let Instance { store, service, .. } = instance;
    store.data_mut().may_copy(request.headers());
    let (request, sent) = p3::Request::from_http(store.data_mut().http().hooks, with_authority(request));
    let answer = async |accessor: &wasmtime::component::Accessor<Guest>| {
        let response = match service.handle(accessor, request).await? {
            Ok(response) => response,
            Err(code) => {
                head.send(Err(format!("{code:?}")));
                return Ok(());
            }
        };
        let response = accessor.with(|mut store| response.into_http(&mut store, sent))?;
        head.send(Ok(response));
        // The guest's task goes on: it writes the body, and may work after it.
        poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
        wasmtime::Result::Ok(())
    };
    store.run_concurrent(answer).await?
}

/// p3 reads the authority from the URI, where HTTP/1.1 does not put it.
fn with_authority(mut request: Request<CallerBody>) -> Request<CallerBody> {
    if request.uri().authority().is_none() {
        let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
        let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        if let Some(host) = host
            && let Ok(uri) = Uri::builder().scheme("http").authority(host).path_and_query(path).build()
        {
            *request.uri_mut() = uri;
        }
    }
    request
}

fn end(result: wasmtime::Result<()>, store: &Store<Guest>) -> End {
    let Err(error) = result else { return End::Returned };
    match store.data().memory.denied() {
        Some(Denied::Component) => End::MemoryLimit,
        Some(Denied::Node) => End::NodeLimit,
        None if error.is::<wasmtime::PoolConcurrencyLimitError>() => End::NodeLimit,
        None if is_of_handles(&error) => End::MemoryLimit,
        None => End::Trapped(trap(&error)),
    }
}

/// A trap in words: what it was comes first, then where. The backtrace alone may be longer than what is shown.
fn trap(error: &wasmtime::Error) -> String {
    let mut words: Vec<_> = error.chain().map(ToString::to_string).collect();
    let cause = words.pop().unwrap_or_default();
    std::iter::once(cause).chain(words).collect::<Vec<_>>().join("; ")
}

/// Whether the guest holds more of the host's objects, or handles, than it may. The engine has no type for the second.
fn is_of_handles(error: &wasmtime::Error) -> bool {
    matches!(error.downcast_ref(), Some(ResourceTableError::Full))
        || error.root_cause().to_string().ends_with(HANDLES_USED_UP)
}

const HANDLES_USED_UP: &str = "store handle limit exceeded";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_trap_was_comes_before_where_it_was() {
        let error =
            wasmtime::Error::msg("unreachable executed").context("error while executing at wasm backtrace: 0: a");
        assert_eq!(trap(&error), "unreachable executed; error while executing at wasm backtrace: 0: a");
    }
}
