//! One request, from its head to its guest's: checked, admitted, loaded, run.

use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use pillion_protocol::component::Limits;
use tokio::time::Instant;

use super::{
    Broken, Counted, Endpoint, State,
    app::Answers,
    body::{Answered, CallerBody, ReplyBody},
    connection::Caller,
    ends::TellEnd,
    host,
    problem::Problem,
    served::{Answering, Serving},
};
use crate::{
    engine::cache::CacheError,
    guest::{
        Guest,
        call::{HeadSender, call},
        memory::MemoryLimiter,
    },
    log::tell,
    scheduler::{
        budget::REQUEST_OVERHEAD,
        run::{End, Run, Stop},
        watch::Waits,
    },
};

/// There is nobody to answer any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the caller closed the connection before its answer")]
pub(super) struct CallerGone;

/// Why there is no answer of the guest's.
enum Unanswered {
    Problem(Problem),
    /// Its run has ended, or is about to, and tells so.
    Ended(Problem),
    CallerGone,
}

impl From<Problem> for Unanswered {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Answers a request, always, as long as there is somebody to answer.
pub(super) async fn serve(
    endpoint: &Arc<Endpoint>,
    request: Request<Incoming>,
    caller: Caller,
) -> Result<Response<ReplyBody>, CallerGone> {
    let method = request.method().clone();
    // A panic of the host costs this request and nothing else.
    let answered = AssertUnwindSafe(answer(endpoint, request, caller)).catch_unwind().await;
    let problem = match answered {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(Unanswered::CallerGone)) => return Err(CallerGone),
        Ok(Err(Unanswered::Ended(problem))) => problem,
        Ok(Err(Unanswered::Problem(problem))) => endpoint.told(problem),
        Err(_) => endpoint.told(Problem::Host("the host failed while it served this request".into())),
    };
    let reason = problem.reason();
    tell!(DEBUG, &endpoint.origin, reason, ?problem, "answered in the guest's stead");
    Ok(ReplyBody::host(problem.response(&endpoint.origin.component.to_string(), endpoint.origin.binding()), &method))
}

async fn answer(
    endpoint: &Arc<Endpoint>,
    mut request: Request<Incoming>,
    caller: Caller,
) -> Result<Response<ReplyBody>, Unanswered> {
    host::check(&mut request, endpoint.port.get())?;
    let arrived = Instant::now();
    let counted = Counted::new(&endpoint.shared);
    let serving = endpoint.serving(arrived).await?;
    let part = match serving.version.app.as_ref().map(|app| app.route(&mut request, caller.address())) {
        None => 0,
        Some(Answers::Part(part)) => part,
        Some(Answers::Host(response)) => return Ok(ReplyBody::host(response, request.method())),
    };
    let Answering { part, surroundings, reuse } =
        serving.answering(part).ok_or_else(|| Problem::Host("this version has no such part".into()))?;
    let limits = *serving.limits();
    let head_by = arrived + limits.head_timeout.get().get();
    let total = limits.total_timeout.map(|total| arrived + total.get().get());
    // A place that comes too late for the whole request is of no use.
    let (place_by, too_late) = match total {
        Some(total) if total < head_by => (total, Problem::TotalTimeout),
        _ => (head_by, Problem::HeadTimeout),
    };

    let admitted = tokio::time::timeout_at(place_by, serving.admission.admit()).await;
    let place = admitted.map_err(|_| too_late)?.map_err(|_| Problem::ConcurrencyLimit)?;
    let shared = &endpoint.shared;
    let instance = shared.instances.take().ok_or(Problem::NodeLimit)?;
    let mut overhead = shared.memory.share();
    if !overhead.grow(REQUEST_OVERHEAD) {
        return Err(Problem::NodeLimit.into());
    }
    let loaded = shared.cache.load(part.digest, &part.native).await;
    let loaded = loaded.map_err(|error| endpoint.not_loaded(&error))?;

    let run = Arc::new(Run::new(part.digest, limits.cpu_time.get().get()));
    let memory = MemoryLimiter::new(limits.memory.get().get(), &shared.memory);
    let guest = Guest::new(surroundings, memory, instance);
    let (method, version) = (request.method().clone(), request.version());
    let request = request.map(|body| CallerBody::new(body, limits.idle_timeout.get().get(), Arc::clone(&run)));
    let (head, mut response) = HeadSender::new();
    let reuse = reuse.cloned();
    let called = {
        let called = call(&loaded, guest, reuse, request, head.clone(), Arc::clone(&run));
        let (endpoint, run) = (Arc::clone(endpoint), Arc::clone(&run));
        Box::pin(async move {
            let mut called = called;
            let tell = TellEnd { endpoint, run };
            poll_fn(|cx| {
                let polled = called.as_mut().poll(cx);
                head.deliver(&tell.run);
                polled
            })
            .await;
            drop((called, tell));
            // Free again once the store is gone, and before its caller can learn that no head will come.
            drop((place, overhead, counted));
            drop(head);
        })
    };
    let waits = Waits { idle: limits.idle_timeout.get().get(), linger: limits.linger_timeout.get().get(), total };
    // From here on the guest ends when this future is dropped: its caller went away.
    let waiting = StopOnDrop { run: Arc::clone(&run), armed: AtomicBool::new(true) };
    shared.scheduler.start(called, waits, Arc::clone(&run), Arc::clone(&endpoint.account));
    let head = loop {
        let look = (Instant::now() + LOOK).min(head_by);
        match tokio::time::timeout_at(look, &mut response).await {
            Err(_) if caller.is_gone() => {
                run.stop(Stop::CallerGone);
                return Err(Unanswered::CallerGone);
            }
            Err(_) if look < head_by => {}
            ended => break ended,
        }
    };
    let response = match head {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(code))) => {
            // What stopped it may be what it complains of.
            let stopped = run.stopped().map(|stop| Problem::from(&End::Stopped(stop)));
            return Err(stopped.map_or(Unanswered::Problem(Problem::GuestError(code)), Unanswered::Ended));
        }
        // The guest's store is gone, so its end is known.
        Ok(Err(_)) => {
            return Err(run
                .failure()
                .map_or(Unanswered::Problem(Problem::NoResponse), |end| Unanswered::Ended(end.into())));
        }
        Err(_) => {
            run.stop(Stop::HeadTimeout);
            return Err(Unanswered::Ended(Problem::HeadTimeout));
        }
    };
    sendable(response.status())?;
    waiting.armed.store(false, Relaxed);
    let guest = Answered { endpoint: Arc::clone(endpoint), caller, run, idle: limits.idle_timeout.get().get() };
    Ok(guest.reply(response, &method, version))
}

/// How often it is looked whether a caller still waits, where nothing else would tell.
const LOOK: Duration = Duration::from_millis(50);

/// The most requests of one endpoint that are held while its component is prepared.
const HELD: usize = 200;

/// Counts a request that is held.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn new(held: &'a AtomicUsize) -> Option<Self> {
        let held_now = held.fetch_add(1, Relaxed);
        let this = Self(held);
        (held_now < HELD).then_some(this)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
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
    /// A problem that no run tells of, told.
    fn told(&self, problem: Problem) -> Problem {
        if !problem.is_the_callers() {
            self.tell(problem.reason(), &problem.detail());
        }
        problem
    }

    /// What a component that cannot be loaded means to the caller. Code that is at fault is made anew; what the node lacks is not
    /// mended by that.
    fn not_loaded(&self, error: &CacheError) -> Problem {
        if !error.is_of_the_code() {
            tell!(WARN, &self.origin, %error, "a component cannot be loaded now");
            return Problem::NodeLimit;
        }
        tell!(ERROR, &self.origin, %error, "native code cannot be loaded");
        let (component, why, refused) = (self.origin.component.clone(), error.to_string(), error.is_refused());
        _ = self.shared.broken.send(Broken { component, why, refused });
        Problem::Unavailable(error.to_string())
    }

    /// What is served now; waits while the component is being prepared.
    async fn serving(&self, arrived: Instant) -> Result<Arc<Serving>, Problem> {
        if let Some(passed) = self.gate.pass() {
            passed?;
        } else {
            let _held = Held::new(&self.held).ok_or(Problem::ConcurrencyLimit)?;
            self.gate.pass_later(arrived + Limits::default().head_timeout.get().get()).await?;
        }
        let mut state = self.state.clone();
        let now = state.borrow_and_update().clone();
        let now = match now {
            State::Preparing(hold) => {
                let _held = Held::new(&self.held).ok_or(Problem::ConcurrencyLimit)?;
                let decided = state.wait_for(|state| !matches!(state, State::Preparing(_)));
                let waited = tokio::time::timeout_at(arrived + hold, decided).await;
                waited.map_err(|_| Problem::NotReady)?.map_err(|_| Problem::NotReady)?.clone()
            }
            now => now,
        };
        match now {
            State::Ready(version) => Ok(self.served.of(&version, self)),
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

/// Refuses a status that is no final answer: a caller would wait for another one, or take the connection for something else.
fn sendable(status: StatusCode) -> Result<(), Problem> {
    if status.is_informational() {
        return Err(Problem::GuestError(format!(
            "{} is not the status of a final answer: expected 200 to 599",
            status.as_u16()
        )));
    }
    Ok(())
}
