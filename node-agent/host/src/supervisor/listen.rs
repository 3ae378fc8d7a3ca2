//! Listeners for `pillion run`. In a cluster the keeper makes them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

/// Connections that the kernel queues for one listener while there is no worker. net.core.somaxconn bounds it too.
const BACKLOG: i32 = 4096;

/// Opens a listener.
///
/// SO_REUSEADDR, so that a restart does not wait for old connections; never SO_REUSEPORT, with which another process could
/// take a part of the connections.
///
/// # Errors
///
/// What the kernel says, for example that the port is in use.
pub fn open(address: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let (family, address) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, SocketAddr::new(address, port)),
        IpAddr::V6(_) => (AddressFamily::INET6, SocketAddr::new(address, port)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
