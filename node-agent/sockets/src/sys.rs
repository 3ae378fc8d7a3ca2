//! The only `unsafe` of this crate: a socket option that no library reads.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// The cookie of the network namespace that a socket was made in (`SO_NETNS_COOKIE`, Linux 5.14): a number that is not used
/// again while the kernel runs, other than the namespace's inode.
///
/// # Errors
///
/// A descriptor that is no socket, or a kernel that does not know the option.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`, and both live until the call returns.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if got == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
