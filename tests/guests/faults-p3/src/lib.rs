//! One component, every way a p3 guest can behave or misbehave; the path says which. README.md lists them.

mod echo;
mod outbound;
mod reply;

use behaviour::fault::{self, Fault};
use behaviour::pattern::Pattern;
use behaviour::route::Route;
use behaviour::{BODY_CHUNK, BODY_CLAIMED, DONE, HELLO, HOUR_NANOS, config, hex, log};
use reply::Reply;
use wasip3::cli::{environment, stdout};
use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::random::random;

struct Faults;

wasip3::http::service::export!(Faults);

impl Guest for Faults {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        Ok(match Route::parse(&path) {
            Route::Hello => reply::full(200, HELLO),
            Route::BeforeHead(fault) => {
                misbehave(fault).await;
                reply::full(200, DONE)
            }
            Route::NoResponse => return Err(ErrorCode::InternalError(Some("no".to_owned()))),
            Route::ErrorCode => return Err(ErrorCode::ConfigurationError),
            Route::Spin { ms } => {
                fault::spin_for(ms * 1_000_000, monotonic_clock::now);
                reply::full(200, DONE)
            }
            Route::Sleep { ms } => {
                monotonic_clock::wait_for(ms * 1_000_000).await;
                reply::full(200, DONE)
            }
            Route::Touch { mib } => {
                fault::touch(mib);
                reply::full(200, DONE)
            }
            Route::InBody { fault, length, pause_ms, bytes } => in_body(fault, length, pause_ms, bytes),
            Route::AfterBody(fault) => after_body(fault),
            Route::Stream { bytes } => stream(bytes),
            Route::Answer { status, headers, length, bytes } => answer(status, headers, length, bytes),
            Route::Nothings => nothings(),
            Route::Copy => copy(&request),
            Route::Echo => echo::echo(request),
            Route::Count => return echo::count(request).await,
            Route::Method => {
                let method = method(&request);
                reply::with_headers(200, &[("x-method", &method)], b"body\n")
            }
            Route::Env { name } => value(variable(&name)),
            Route::Config { name } => value(config::get(&name)),
            Route::Log { lines, bytes } => {
                print(lines, bytes).await;
                reply::full(200, DONE)
            }
            Route::Out { url } => outbound::fetch(&url).await,
            Route::Leak => {
                std::mem::forget(Fields::new());
                reply::full(200, DONE)
            }
            Route::Random => reply::full(200, hex(&random::get_random_bytes(16)).as_bytes()),
            Route::Clock => reply::full(200, system_clock::now().seconds.to_string().as_bytes()),
            Route::Grpc(rpc) => echo::grpc(rpc, request),
            Route::NotFound => reply::full(404, b"not found\n"),
        })
    }
}

async fn misbehave(fault: Fault) {
    match fault {
        Fault::Loop => fault::spin_forever(),
        Fault::Alloc => fault::allocate_forever(),
        Fault::Trap => fault::trap(),
        Fault::Never => monotonic_clock::wait_for(HOUR_NANOS).await,
    }
}

fn in_body(fault: Fault, length: bool, pause_ms: u64, bytes: usize) -> Response {
    let claimed = BODY_CLAIMED.to_string();
    let headers = [("content-length", claimed.as_str())];
    let (response, mut reply) = Reply::start(200, if length { &headers } else { &[] });
    wasip3::spawn(async move {
        for piece in vec![b'x'; bytes].chunks(BODY_CHUNK) {
            reply.write(piece.to_vec()).await;
        }
        if pause_ms > 0 {
            monotonic_clock::wait_for(pause_ms * 1_000_000).await;
        }
        misbehave(fault).await;
    });
    response
}

fn after_body(fault: Fault) -> Response {
    let length = HELLO.len().to_string();
    let (response, mut reply) = Reply::start(200, &[("content-length", &length)]);
    wasip3::spawn(async move {
        reply.write(HELLO.to_vec()).await;
        // Until the host has all of it: a loop would keep the host from taking it.
        reply.finish(None).await;
        misbehave(fault).await;
    });
    response
}

fn answer(status: u16, headers: usize, length: Option<u64>, bytes: usize) -> Response {
    let length = length.map(|length| length.to_string());
    let mut all = vec![("pillion-error", "trap")];
    all.extend(length.as_deref().map(|length| ("content-length", length)));
    all.extend(std::iter::repeat_n(("h", "x"), headers));
    let (response, mut reply) = Reply::start(status, &all);
    wasip3::spawn(async move {
        reply.write(vec![b'x'; bytes]).await;
        reply.finish(None).await;
    });
    response
}

fn nothings() -> Response {
    let (response, mut reply) = Reply::start(200, &[]);
    wasip3::spawn(async move {
        loop {
            reply.write_nothing().await;
            monotonic_clock::wait_for(1_000_000).await;
        }
    });
    response
}

/// The sizes of copies of the request's headers that were made in both ways.
fn copy(request: &Request) -> Response {
    let entries = request.get_headers().copy_all();
    let listed = Fields::from_list(&entries).map_or(0, |fields| fields.copy_all().len());
    let appended = Fields::new();
    let failed = entries.iter().filter(|(name, value)| appended.append(name, value).is_err()).count();
    reply::full(200, format!("{} {listed} {failed}", entries.len()).as_bytes())
}

fn stream(bytes: u64) -> Response {
    let (response, mut reply) = Reply::start(200, &[]);
    wasip3::spawn(async move {
        let mut pattern = Pattern::new(bytes);
        while let Some(piece) = pattern.next_piece() {
            if !reply.write(piece.to_vec()).await {
                return;
            }
        }
        reply.finish(None).await;
    });
    response
}

/// 200 with the value, or 404.
fn value(value: Option<String>) -> Response {
    match value {
        Some(value) => reply::full(200, value.as_bytes()),
        None => reply::full(404, b"no value\n"),
    }
}

fn variable(name: &str) -> Option<String> {
    let all = environment::get_environment();
    all.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

/// Standard output through p3, standard error through the p2 interface of Rust's standard library: guests do either.
async fn print(lines: usize, bytes: usize) {
    let (mut sender, receiver) = wasip3::wit_stream::new();
    let written = stdout::write_via_stream(receiver);
    for number in 0..lines {
        let line = log::line(number, bytes) + "\n";
        sender.write_all(line.into_bytes()).await;
    }
    drop(sender);
    let _ = written.await;
    eprintln!("{}", log::summary(lines, bytes));
}

fn method(request: &Request) -> String {
    match request.get_method() {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
        Method::Other(name) => return name,
    }
    .to_owned()
}
