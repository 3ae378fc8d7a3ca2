//! One request, from its head to its guest's: checked, admitted, loaded, run.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use http::{HeaderMap, Method, Request, Response, Version as HttpVersion, header};
use hyper::body::Incoming;
use pillion_protocol::component::Limits;
use tokio::time::Instant;

use super::{
    Counted, Endpoint, State,
    body::{CallerBody, GuestBody, ReplyBody},
    problem::Problem,
    served::Serving,
};
use crate::{
    guest::{
        Guest,
        call::{HeadSender, call},
        memory::MemoryLimiter,
    },
    scheduler::{
        budget::REQUEST_OVERHEAD,
        run::{End, Run, Stop},
    },
};

/// Answers a request, always.
pub(super) async fn serve(endpoint: &Arc<Endpoint>, request: Request<Incoming>) -> Response<ReplyBody> {
    // A panic of the host costs this request and nothing else.
    let answered = AssertUnwindSafe(answer(endpoint, request)).catch_unwind().await;
    let problem = match answered {
        Ok(Ok(response)) => return response,
        Ok(Err(problem)) => problem,
        Err(_) => Problem::Host("the host failed while it served this request".into()),
    };
    let reason = problem.reason();
    tracing::debug!(component = %endpoint.component, binding = %endpoint.binding, reason, ?problem, "answered in the guest's stead");
    problem.response(endpoint.component.as_str(), endpoint.binding.as_str()).map(ReplyBody::Host)
}

async fn answer(endpoint: &Arc<Endpoint>, mut request: Request<Incoming>) -> Result<Response<ReplyBody>, Problem> {
    check(&mut request, endpoint.port.get())?;
    let arrived = Instant::now();
    let counted = Counted::new(&endpoint.shared);
    let serving = endpoint.serving(arrived).await?;
    let limits = *serving.limits();
    let head_by = arrived + serving.head_timeout();

    let admitted = tokio::time::timeout_at(head_by, serving.admission.admit()).await;
    let place = admitted.map_err(|_| Problem::HeadTimeout)?.map_err(|_| Problem::ConcurrencyLimit)?;
    let shared = &endpoint.shared;
    let instance = shared.instances.take().ok_or(Problem::NodeLimit)?;
    let mut overhead = shared.memory.share();
    if !overhead.grow(REQUEST_OVERHEAD) {
        return Err(Problem::NodeLimit);
    }
    let loaded = shared.cache.load(serving.version.digest, &serving.version.native).await.map_err(|error| {
        tracing::error!(component = %endpoint.component, %error, "native code cannot be loaded: the component is compiled again");
        _ = shared.broken.send(endpoint.component.clone());
        Problem::Unavailable(error.to_string())
    })?;

    let run = Arc::new(Run::new(limits.cpu_time.get().get()));
    let guest = Guest::new(&serving.surroundings, MemoryLimiter::new(limits.memory.get().get(), &shared.memory));
    let method = request.method().clone();
    let request = request.map(|body| CallerBody::new(body, limits.idle_timeout.get().get(), Arc::clone(&run)));
    let (head, response) = HeadSender::new();
    let reuse = serving.reuse.clone();
    let called = {
        let run = Arc::clone(&run);
        let total = limits.total_timeout.map(|total| arrived + total.get().get());
        async move {
            let called = call(loaded, guest, reuse, request, head.clone(), Arc::clone(&run));
            match total {
                None => called.await,
                Some(total) => within(total, &run, called).await,
            }
            // Free again once the store is gone, and before its caller can learn that no head will come.
            drop((place, instance, overhead, counted));
            drop(head);
        }
    };
    // From here on the guest ends when this future is dropped: its caller went away.
    let waiting = StopOnDrop { run: Arc::clone(&run), armed: AtomicBool::new(true) };
    shared.scheduler.start(Box::pin(called), Arc::clone(&run), Arc::clone(&endpoint.account));
    let response = match tokio::time::timeout_at(head_by, response).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(code))) => {
            // What stopped it may be what it complains of.
            let stopped = run.stopped().map(|stop| Problem::from(&End::Stopped(stop)));
            return Err(stopped.unwrap_or(Problem::GuestError(code)));
        }
        // The guest's store is gone, so its end is known.
        Ok(Err(_)) => return Err(run.end().map_or(Problem::NoResponse, Problem::from)),
        Err(_) => {
            run.stop(Stop::HeadTimeout);
            return Err(Problem::HeadTimeout);
        }
    };
    waiting.armed.store(false, Relaxed);
    Ok(reply(response, &method, &limits, run))
}

fn reply(
    response: Response<wasmtime_wasi_http::WasiBody>,
    method: &Method,
    limits: &Limits,
    run: Arc<Run>,
) -> Response<ReplyBody> {
    let (idle, linger): (Duration, Duration) = (limits.idle_timeout.get().get(), limits.linger_timeout.get().get());
    GuestBody::reply(response, method, idle, linger, run)
}

/// Runs a guest that has a limit on its whole request.
async fn within(deadline: Instant, run: &Run, called: impl Future<Output = ()>) {
    let mut called = std::pin::pin!(called);
    tokio::select! {
        biased;
        () = called.as_mut() => return,
        () = tokio::time::sleep_until(deadline) => run.stop(Stop::TotalTimeout),
    }
    // The stop ends this future from outside, so that the end is recorded before the store is dropped.
    called.await;
}

/// Stops a run whose caller no longer waits.
struct StopOnDrop {
    run: Arc<Run>,
    armed: AtomicBool,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if self.armed.load(Relaxed) {
            self.run.stop(Stop::CallerGone);
        }
    }
}

impl Endpoint {
    /// What is served now; waits while the component is being prepared.
    async fn serving(&self, arrived: Instant) -> Result<Arc<Serving>, Problem> {
        let mut state = self.state.clone();
        let now = state.borrow_and_update().clone();
        let now = match now {
            State::Preparing(hold) => {
                let decided = state.wait_for(|state| !matches!(state, State::Preparing(_)));
                let waited = tokio::time::timeout_at(arrived + hold, decided).await;
                waited.map_err(|_| Problem::NotReady)?.map_err(|_| Problem::NotReady)?.clone()
            }
            now => now,
        };
        match now {
            State::Ready(version) => Ok(self.served.of(&version, &self.component, &self.binding)),
            State::Failed(reason) => Err(Problem::Unavailable(reason.to_string())),
            State::Preparing(_) => Err(Problem::NotReady),
        }
    }

    /// The most bytes of a request's head.
    pub(super) fn header_bytes(&self) -> u64 {
        match &*self.state.borrow() {
            State::Ready(version) => version.spec.limits.headers.get().get(),
            _ => Limits::default().headers.get().get(),
        }
    }
}

/// Refuses what two readers could understand differently, and what no guest can answer. hyper has refused malformed heads before.
fn check(request: &mut Request<Incoming>, port: u16) -> Result<(), Problem> {
    let (method, version) = (request.method(), request.version());
    let has_authority = request.uri().authority().is_some();
    check_head(method, version, has_authority, request.headers())?;
    if request.headers().get(header::HOST).is_none()
        && !has_authority
        && let Ok(host) = format!("localhost:{port}").parse()
    {
        // HTTP/1.0 needs no Host; wasi:http does.
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(())
}

fn check_head(method: &Method, version: HttpVersion, authority: bool, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Problem::BadRequest("the request has several Host headers"));
    }
    if first.is_none() && !authority && version != HttpVersion::HTTP_10 {
        return Err(Problem::BadRequest("the request has no Host header"));
    }
    if first.is_some_and(|host| host.to_str().is_err()) {
        return Err(Problem::BadRequest("the Host header is not text"));
    }
    if *method == Method::CONNECT {
        return Err(Problem::BadRequest("CONNECT is not served: an endpoint is no proxy"));
    }
    if headers.contains_key(header::UPGRADE) {
        return Err(Problem::BadRequest("Upgrade is not served: expected HTTP/1.1, or HTTP/2 by prior knowledge"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: Method, version: HttpVersion, headers: &[(&'static str, &'static str)]) -> Option<&'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        match check_head(&method, version, false, &map) {
            Ok(()) => None,
            Err(Problem::BadRequest(why)) => Some(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn heads_that_could_be_read_two_ways_are_refused() {
        let (get, v11) = (Method::GET, HttpVersion::HTTP_11);
        assert_eq!(checked(get.clone(), v11, &[("host", "a")]), None);
        assert_eq!(checked(get.clone(), HttpVersion::HTTP_10, &[]), None);
        let refused = [
            (get.clone(), vec![], "no Host"),
            (get.clone(), vec![("host", "a"), ("host", "a")], "several Host"),
            (get, vec![("host", "a"), ("upgrade", "websocket")], "Upgrade"),
            (Method::CONNECT, vec![("host", "a")], "CONNECT"),
        ];
        for (method, headers, expected) in refused {
            assert!(checked(method, v11, &headers).unwrap().contains(expected), "{expected}");
        }
    }
}
