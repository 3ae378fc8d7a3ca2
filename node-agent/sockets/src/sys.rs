//! The only `unsafe` of this crate: socket options that no library reads, or not as they are.

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
    // SAFETY: any eight bytes are a number.
    unsafe { option(socket, SO_NETNS_COOKIE, &mut cookie) }?;
    Ok(cookie)
}

/// The user at the other end of a Unix socket (`SO_PEERCRED`).
///
/// Libraries read the process number with it, and take 0 for none there can be. It is 0 where the other end is in another PID namespace, as
/// containers of one pod are.
///
/// # Errors
///
/// A descriptor that is no Unix socket.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    // SAFETY: any bytes are three numbers.
    unsafe { option(socket, libc::SO_PEERCRED, &mut peer) }?;
    Ok(peer.uid)
}

/// Reads a socket option.
///
/// # Safety
///
/// Whatever the kernel writes must be a `T`.
unsafe fn option<T>(socket: impl AsFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `value`, and both live until the call returns.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(value).cast(),
            &raw mut length,
        )
    };
    if got == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
