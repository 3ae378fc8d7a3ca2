//! Listeners on localhost, for `pillion run`.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use pillion_protocol::{annotation::Port, name::Name};
use pillion_sockets::listen;

use crate::catalog::CatalogError;

/// Where the search for ports begins when none are given.
const FIRST_PORT: u16 = 8080;

/// Opens listeners for bindings.
pub(super) struct Listeners {
    addresses: Vec<IpAddr>,
    /// No address was given: IPv6 may be missing.
    default: bool,
    next: Cell<u16>,
}

/// A binding's port with its listeners, or why there are none.
pub(super) type Opened = Result<(Port, Vec<OwnedFd>), (Port, String)>;

impl Listeners {
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        let default = addresses.is_empty();
        let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses = if default { localhost.to_vec() } else { addresses.to_vec() };
        for address in addresses.iter().filter(|address| is_open(address)) {
            tracing::warn!(%address, "components are served to everybody who reaches this machine at this address, without TLS and without a question");
        }
        Self { addresses, default, next: Cell::new(FIRST_PORT) }
    }

    /// Opens the binding's port, or the next free one.
    pub(super) fn open(&self, name: &Name, port: Option<Port>) -> anyhow::Result<Opened> {
        if let Some(port) = port {
            return Ok(match self.open_at(port.get()) {
                Ok(listeners) => Ok((port, listeners)),
                Err((address, error)) => {
                    Err((port, format!("port {port} on {address} cannot be listened on: {error}")))
                }
            });
        }
        let first = self.next.get();
        for number in first..=u16::MAX {
            match self.open_at(number) {
                Ok(listeners) => {
                    self.next.set(number.saturating_add(1));
                    return Ok(Ok((Port::try_from(number)?, listeners)));
                }
                Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err((address, error)) => {
                    anyhow::bail!("{address} cannot be listened on: {error}");
                }
            }
        }
        Err(CatalogError::NoPort { name: name.clone(), first: FIRST_PORT }.into())
    }

    fn open_at(&self, port: u16) -> Result<Vec<OwnedFd>, (IpAddr, io::Error)> {
        let mut listeners = Vec::new();
        for &address in &self.addresses {
            match listen::open(address, port) {
                Ok(listener) => listeners.push(listener),
                Err(error) if self.default && address.is_ipv6() && listen::is_no_ipv6(&error) => {}
                Err(error) => return Err((address, error)),
            }
        }
        Ok(listeners)
    }
}

/// Whether others than this machine can reach an address.
fn is_open(address: &IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_reach_is_known() {
        let table = [
            ("127.0.0.1", false),
            ("127.8.0.2", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", true),
            ("::", true),
            ("192.0.2.1", true),
        ];
        for (address, expected) in table {
            assert_eq!(is_open(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
