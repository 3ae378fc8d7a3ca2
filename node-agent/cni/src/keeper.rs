//! The conversation with the keeper: one request, one answer, within a time.

use std::{
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use pillion_protocol::keeper::{Answer, Call, MAX_MESSAGE, Request, VERSION};
use pillion_sockets::{heard::Heard, link::Link};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::output::Failure;

/// How long to wait before the keeper is asked again: while it is replaced, its socket is gone for a moment.
const AGAIN: Duration = Duration::from_millis(50);

/// Asks the keeper, again and again if it is away, for `time` at most: every call can be made twice.
pub fn ask(socket: &Path, call: Call, netns: Option<BorrowedFd<'_>>, time: Duration) -> Result<Answer, Failure> {
    let deadline = Instant::now() + time;
    let request = Request { version: VERSION, call };
    loop {
        let error = match once(socket, &request, netns, deadline) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let over = Instant::now() + AGAIN >= deadline;
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if over => {
                return Err(Failure::silent(socket, &format!("no answer within {time:?}")));
            }
            _ if over => return Err(Failure::silent(socket, &error.to_string())),
            _ => thread::sleep(AGAIN),
        }
    }
}

fn once(socket: &Path, request: &Request, netns: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<Answer> {
    // A blocking connect would wait for a keeper that hangs and accepts nothing.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&connection, &SocketAddrUnix::new(socket)?)?;
    let connection = UnixStream::from(connection);
    connection.set_nonblocking(false)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    connection.set_read_timeout(Some(left))?;
    connection.set_write_timeout(Some(left))?;
    let mut link = Link::bounded(connection, MAX_MESSAGE);
    link.send(request, netns.as_slice())?;
    Ok(match link.receive::<Heard<Answer>>()?.message {
        Heard::Known(answer) => answer,
        Heard::Unknown { kind, why } => {
            Answer::Refused(format!("the keeper's answer {kind:?} is not understood: {why}"))
        }
    })
}
