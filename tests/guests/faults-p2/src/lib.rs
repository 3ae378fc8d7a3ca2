//! One component, every way a p2 guest can behave or misbehave; the path says which. README.md lists them.

mod echo;
mod outbound;
mod reply;

use behaviour::fault::{self, Fault};
use behaviour::pattern::Pattern;
use behaviour::route::Route;
use behaviour::{BODY_CHUNK, BODY_CLAIMED, DONE, HELLO, HOUR_NANOS, config, hex, log};
use reply::Reply;
use wasip2::cli::environment;
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{ErrorCode, Fields, IncomingRequest, Method, ResponseOutparam};
use wasip2::io::streams::StreamError;
use wasip2::random::random;

struct Faults;

wasip2::http::proxy::export!(Faults);

impl Guest for Faults {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        // The only errors are those of streams whose other end has gone: then nobody is left to tell.
        let _ = match Route::parse(&path) {
            Route::Hello => reply::full(out, 200, HELLO),
            Route::BeforeHead(fault) => {
                misbehave(fault);
                reply::full(out, 200, DONE)
            }
            Route::NoResponse => Ok(()),
            Route::ErrorCode => {
                ResponseOutparam::set(out, Err(ErrorCode::ConfigurationError));
                Ok(())
            }
            Route::Spin { ms } => {
                fault::spin_for(ms * 1_000_000, monotonic_clock::now);
                reply::full(out, 200, DONE)
            }
            Route::Sleep { ms } => {
                sleep(ms * 1_000_000);
                reply::full(out, 200, DONE)
            }
            Route::Touch { mib } => {
                fault::touch(mib);
                reply::full(out, 200, DONE)
            }
            Route::InBody { fault, length, pause_ms, bytes } => in_body(out, fault, length, pause_ms, bytes),
            Route::AfterBody(fault) => {
                let sent = reply::full(out, 200, HELLO);
                misbehave(fault);
                sent
            }
            Route::Stream { bytes } => stream(out, bytes),
            Route::Answer { status, headers, length, bytes } => answer(out, status, headers, length, bytes),
            Route::Nothings => nothings(out),
            Route::Copy => copy(request, out),
            Route::Echo => echo::echo(request, out),
            Route::Count => echo::count(request, out),
            Route::Method => {
                let method = method(&request);
                reply::with_headers(out, 200, &[("x-method", &method)], b"body\n")
            }
            Route::Env { name } => value(out, variable(&name)),
            Route::Config { name } => value(out, config::get(&name)),
            Route::Log { lines, bytes } => {
                print(lines, bytes);
                reply::full(out, 200, DONE)
            }
            Route::Out { url } => outbound::fetch(&url, out),
            Route::Leak => {
                std::mem::forget(Fields::new());
                reply::full(out, 200, DONE)
            }
            Route::Random => {
                let bytes = random::get_random_bytes(16);
                reply::full(out, 200, hex(&bytes).as_bytes())
            }
            Route::Clock => {
                let seconds = wall_clock::now().seconds.to_string();
                reply::full(out, 200, seconds.as_bytes())
            }
            Route::Grpc(rpc) => echo::grpc(rpc, request, out),
            Route::NotFound => reply::full(out, 404, b"not found\n"),
        };
    }
}

fn misbehave(fault: Fault) {
    match fault {
        Fault::Loop => fault::spin_forever(),
        Fault::Alloc => fault::allocate_forever(),
        Fault::Trap => fault::trap(),
        Fault::Never => sleep(HOUR_NANOS),
    }
}

fn sleep(nanos: u64) {
    monotonic_clock::subscribe_duration(nanos).block();
}

fn in_body(out: ResponseOutparam, fault: Fault, length: bool, pause_ms: u64, bytes: usize) -> Result<(), StreamError> {
    let claimed = BODY_CLAIMED.to_string();
    let headers = [("content-length", claimed.as_str())];
    let reply = Reply::start(out, 200, if length { &headers } else { &[] });
    for piece in vec![b'x'; bytes].chunks(BODY_CHUNK) {
        reply.write(piece)?;
        reply.flush()?;
    }
    if pause_ms > 0 {
        sleep(pause_ms * 1_000_000);
    }
    misbehave(fault);
    Ok(())
}

fn answer(
    out: ResponseOutparam,
    status: u16,
    headers: usize,
    length: Option<u64>,
    bytes: usize,
) -> Result<(), StreamError> {
    let length = length.map(|length| length.to_string());
    let mut all = vec![("pillion-error", "trap")];
    all.extend(length.as_deref().map(|length| ("content-length", length)));
    all.extend(std::iter::repeat_n(("h", "x"), headers));
    let reply = Reply::start(out, status, &all);
    reply.write(&vec![b'x'; bytes])?;
    reply.finish(None);
    Ok(())
}

fn nothings(out: ResponseOutparam) -> Result<(), StreamError> {
    let reply = Reply::start(out, 200, &[]);
    loop {
        reply.write_nothing()?;
    }
}

/// The sizes of copies of the request's headers that were made in both ways.
fn copy(request: IncomingRequest, out: ResponseOutparam) -> Result<(), StreamError> {
    let entries = request.headers().entries();
    let listed = Fields::from_list(&entries).map_or(0, |fields| fields.entries().len());
    let appended = Fields::new();
    let failed = entries.iter().filter(|(name, value)| appended.append(name, value).is_err()).count();
    reply::full(out, 200, format!("{} {listed} {failed}", entries.len()).as_bytes())
}

fn stream(out: ResponseOutparam, bytes: u64) -> Result<(), StreamError> {
    let reply = Reply::start(out, 200, &[]);
    let mut pattern = Pattern::new(bytes);
    while let Some(piece) = pattern.next_piece() {
        reply.write(piece)?;
    }
    reply.finish(None);
    Ok(())
}

/// 200 with the value, or 404.
fn value(out: ResponseOutparam, value: Option<String>) -> Result<(), StreamError> {
    match value {
        Some(value) => reply::full(out, 200, value.as_bytes()),
        None => reply::full(out, 404, b"no value\n"),
    }
}

fn variable(name: &str) -> Option<String> {
    let all = environment::get_environment();
    all.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

fn print(lines: usize, bytes: usize) {
    for number in 0..lines {
        println!("{}", log::line(number, bytes));
    }
    eprintln!("{}", log::summary(lines, bytes));
}

fn method(request: &IncomingRequest) -> String {
    match request.method() {
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
