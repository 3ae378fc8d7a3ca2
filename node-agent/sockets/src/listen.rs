//! Listeners: for `pillion run` the supervisor opens them, in a cluster the keeper does, inside each pod's network namespace.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use crate::sys;

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

/// How many descriptors this process may have.
pub fn descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit on descriptors to the hard one, for this process and those that it starts: every listener is one.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Makes a listener listen again if somebody who holds a copy has shut it down; gives whether that was so. It keeps its port.
///
/// # Errors
///
/// It is no socket; or what the kernel says, for example that another socket listens there by now.
pub fn revive(socket: impl AsFd) -> io::Result<bool> {
    let deaf = !listens(&socket)?;
    if deaf {
        listen(&socket, BACKLOG)?;
    }
    Ok(deaf)
}

/// Why a descriptor is not the listener that it should be.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// It is no socket, or the kernel does not tell.
    #[error("it is no socket that can be looked at: {0}")]
    NoSocket(#[from] io::Error),
    /// It does not listen: whoever holds a copy can shut it down.
    #[error("it does not listen")]
    Deaf,
    /// It is bound elsewhere.
    #[error("it is bound to {is}, expected port {expected} of localhost")]
    Address {
        /// Where it is bound, or what it is.
        is: String,
        /// The port that it should be bound to.
        expected: u16,
    },
    /// It belongs to another network namespace.
    #[error("it belongs to another network namespace")]
    Namespace,
}

/// Checks that `socket` is a TCP listener at `port` of localhost in the network namespace with this cookie.
///
/// # Errors
///
/// See [`Wrong`].
pub fn check(socket: impl AsFd, port: u16, netns_cookie: u64) -> Result<(), Wrong> {
    let socket = socket.as_fd();
    let is = rustix::net::getsockname(socket).map_err(io::Error::from)?;
    let address = SocketAddr::try_from(is.clone()).ok().filter(|address| address.ip().is_loopback());
    if address.is_none_or(|address| address.port() != port) {
        let is = SocketAddr::try_from(is).map_or_else(|_| "no internet address".into(), |address| address.to_string());
        return Err(Wrong::Address { is, expected: port });
    }
    if sys::netns_cookie(socket)? != netns_cookie {
        return Err(Wrong::Namespace);
    }
    if !listens(socket)? {
        return Err(Wrong::Deaf);
    }
    Ok(())
}

/// Whether `socket` listens still.
///
/// # Errors
///
/// It is no socket.
pub fn listens(socket: impl AsFd) -> io::Result<bool> {
    Ok(sockopt::socket_acceptconn(socket)?)
}

/// Whether an error of [`open`] for `::1` says that there is no IPv6 (now): none in the kernel, none in the namespace, or a `lo`
/// that is still down.
pub fn is_no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn what_arrives_is_checked() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Asked for by its number, as all of ours are: only then a socket keeps its port when it is shut down.
        let free = open(IpAddr::V4(Ipv4Addr::LOCALHOST), port).unwrap();
        let cookie = sys::netns_cookie(&free).unwrap();
        assert!(check(&free, port, cookie).is_ok());
        assert!(matches!(check(&free, port, cookie + 1), Err(Wrong::Namespace)));
        let error = check(&free, port.wrapping_add(1), cookie).unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
        rustix::net::shutdown(&free, rustix::net::Shutdown::Read).unwrap();
        assert!(matches!(check(&free, port, cookie), Err(Wrong::Deaf)), "whoever holds a copy can shut it down");
        assert!(revive(&free).unwrap());
        assert!(!revive(&free).unwrap(), "it listens");
        check(&free, port, cookie).unwrap();
        let elsewhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = elsewhere.local_addr().unwrap().port();
        assert!(matches!(check(&elsewhere, port, cookie), Err(Wrong::Address { .. })));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(check(&file, port, cookie), Err(Wrong::NoSocket(_))));
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(check(&unix, port, cookie), Err(Wrong::Address { .. })));
    }

    #[test]
    fn a_port_is_nobody_elses() {
        let first = open(IpAddr::V4(Ipv4Addr::LOCALHOST), 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&first).unwrap()).unwrap();
        let second = open(address.ip(), address.port()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}
