//! Which path asks for what. README.md has the table for people.

use crate::fault::Fault;
use crate::grpc::Ping;

/// A behaviour, with its parameters.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Hello,
    /// The fault happens before the response's head.
    BeforeHead(Fault),
    NoResponse,
    ErrorCode,
    Spin {
        ms: u64,
    },
    Sleep {
        ms: u64,
    },
    Touch {
        mib: usize,
    },
    /// Head, this many bytes, a pause, then the fault.
    InBody {
        fault: Fault,
        length: bool,
        pause_ms: u64,
        bytes: usize,
    },
    /// The fault happens after a complete response.
    AfterBody(Fault),
    Stream {
        bytes: u64,
    },
    /// A status, many headers with one of the host's own, a content-length, and a body that may be another's.
    Answer {
        status: u16,
        headers: usize,
        length: Option<u64>,
        bytes: usize,
    },
    /// Head, then writes of no bytes for ever.
    Nothings,
    /// Copies the request's headers.
    Copy,
    Echo,
    Count,
    Method,
    Env {
        name: String,
    },
    Config {
        name: String,
    },
    Log {
        lines: usize,
        bytes: usize,
    },
    Out {
        url: Url,
    },
    Random,
    /// Keeps one of the host's objects for ever.
    Leak,
    Clock,
    Grpc(Rpc),
    NotFound,
}

/// The methods of the service `pillion.test.Echo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    Unary,
    Stream,
    Fail,
}

impl Rpc {
    /// How often a message comes back.
    pub fn copies(self, ping: &Ping) -> u32 {
        match self {
            Self::Unary => 1,
            Self::Stream => ping.count,
            Self::Fail => 0,
        }
    }
}

/// As much of a URL as an outgoing request is made of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub authority: String,
    pub path: String,
}

impl Url {
    fn parse(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { scheme: scheme.to_owned(), authority: authority.to_owned(), path: path.to_owned() }
    }
}

impl Route {
    /// Parameters that are missing or malformed are 0 or empty.
    pub fn parse(path_with_query: &str) -> Self {
        let (path, query) = path_with_query.split_once('?').unwrap_or((path_with_query, ""));
        let query = Query(query);
        let in_body = |fault| Self::InBody {
            fault,
            length: query.text("length") == "1",
            pause_ms: query.number("pause", 50),
            bytes: query.number("bytes", crate::BODY_CHUNKS * crate::BODY_CHUNK),
        };
        match path {
            "/hello" => Self::Hello,
            "/loop" => Self::BeforeHead(Fault::Loop),
            "/alloc" => Self::BeforeHead(Fault::Alloc),
            "/trap" => Self::BeforeHead(Fault::Trap),
            "/never" => Self::BeforeHead(Fault::Never),
            "/no-response" => Self::NoResponse,
            "/error-code" => Self::ErrorCode,
            "/spin" => Self::Spin { ms: query.number("ms", 0) },
            "/sleep" => Self::Sleep { ms: query.number("ms", 0) },
            "/touch" => Self::Touch { mib: query.number("mib", 0) },
            "/body-loop" => in_body(Fault::Loop),
            "/body-alloc" => in_body(Fault::Alloc),
            "/body-trap" => in_body(Fault::Trap),
            "/body-never" => in_body(Fault::Never),
            "/body-complete-then-loop" => Self::AfterBody(Fault::Loop),
            "/body-complete-then-never" => Self::AfterBody(Fault::Never),
            "/stream" => Self::Stream { bytes: query.number("bytes", 0) },
            "/answer" => Self::Answer {
                status: query.number("status", 200),
                headers: query.number("headers", 0),
                length: query.text("length").parse().ok(),
                bytes: query.number("bytes", 0),
            },
            "/nothings" => Self::Nothings,
            "/copy" => Self::Copy,
            "/echo" => Self::Echo,
            "/count" => Self::Count,
            "/method" => Self::Method,
            "/env" => Self::Env { name: query.text("name") },
            "/config" => Self::Config { name: query.text("name") },
            "/log" => Self::Log { lines: query.number("lines", 0), bytes: query.number("bytes", 0) },
            "/out" => Self::Out { url: Url::parse(&query.text("url")) },
            "/random" => Self::Random,
            "/leak" => Self::Leak,
            "/clock" => Self::Clock,
            "/pillion.test.Echo/Unary" => Self::Grpc(Rpc::Unary),
            "/pillion.test.Echo/Stream" => Self::Grpc(Rpc::Stream),
            "/pillion.test.Echo/Fail" => Self::Grpc(Rpc::Fail),
            _ => Self::NotFound,
        }
    }
}

#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    fn text(&self, key: &str) -> String {
        let value = self.0.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name == key).then_some(value)
        });
        percent_decode(value.unwrap_or(""))
    }

    fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> T {
        self.text(key).parse().unwrap_or(default)
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_by_name() {
        assert_eq!(Route::parse("/log?lines=3&bytes=70"), Route::Log { lines: 3, bytes: 70 });
        assert_eq!(Route::parse("/sleep?ms=x"), Route::Sleep { ms: 0 });
    }

    #[test]
    fn an_outgoing_url_may_be_escaped_and_hold_a_query() {
        let Route::Out { url } = Route::parse("/out?url=http://127.0.0.1:80/a%3Fb%3D1%26c=2") else {
            panic!("not /out");
        };
        assert_eq!(url.authority, "127.0.0.1:80");
        assert_eq!(url.path, "/a?b=1&c=2");
    }

    #[test]
    fn a_path_that_nobody_knows_is_not_found() {
        assert_eq!(Route::parse("/"), Route::NotFound);
    }
}
