//! What `faults-p2` and `faults-p3` share: the list of behaviours by path, the faults themselves, gRPC framing.
//! Nothing here knows `wasi:http`, so both generations behave alike.

pub mod config;
pub mod fault;
pub mod grpc;
pub mod log;
pub mod pattern;
pub mod route;

/// The answer to requests that need none.
pub const HELLO: &[u8] = b"hello\n";
/// The answer when the work asked for is done.
pub const DONE: &[u8] = b"done\n";
/// Long enough to be for ever in a test.
pub const HOUR_NANOS: u64 = 3600 * 1_000_000_000;
/// What `/body-*` sends before its fault.
pub const BODY_CHUNKS: usize = 10;
pub const BODY_CHUNK: usize = 1024;
/// The content-length that `/body-*?length=1` claims: twice what it sends.
pub const BODY_CLAIMED: usize = 2 * BODY_CHUNKS * BODY_CHUNK;
/// The largest piece of a body read or written at once.
pub const PIECE: usize = 64 * 1024;

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
