//! How many listeners a node can hold: each is a descriptor, here and in the host.

use pillion_sockets::listen;

/// Descriptors that are kept free: for clients, files, and listeners on their way.
const RESERVE: usize = 512;

/// What this process can hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    descriptors: usize,
}

/// There is no room for a pod's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{missing} more endpoints need {needed} listeners, and this node can hold {max}, of which {held} are taken: raise the limit on descriptors (RLIMIT_NOFILE) of keeper and host, or bind less here"
)]
pub struct Full {
    missing: usize,
    needed: usize,
    held: usize,
    max: usize,
}

impl Capacity {
    /// By this process's limit on descriptors.
    pub fn of_this_process() -> Self {
        Self { descriptors: usize::try_from(listen::descriptor_limit()).unwrap_or(usize::MAX) }
    }

    /// The most listeners for so many pods, each of which holds a descriptor of its namespace, given what hosts can take.
    pub fn listeners_max(self, hosts: Option<usize>, pods: usize) -> usize {
        let own = self.descriptors.saturating_sub(RESERVE + pods);
        hosts.map_or(own, |hosts| own.min(hosts))
    }

    /// Whether `missing` more endpoints have room beside `held` listeners.
    ///
    /// # Errors
    ///
    /// See [`Full`].
    pub fn allows(self, hosts: Option<usize>, pods: usize, held: usize, missing: usize) -> Result<(), Full> {
        let (needed, max) = (missing * 2, self.listeners_max(hosts, pods));
        if missing == 0 || held + needed <= max { Ok(()) } else { Err(Full { missing, needed, held, max }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_all_numbers() {
        let capacity = Capacity { descriptors: 1_256 };
        assert_eq!(capacity.listeners_max(None, 44), 700);
        assert_eq!(capacity.listeners_max(Some(500), 44), 500);
        assert_eq!(capacity.allows(None, 44, 690, 5), Ok(()));
        let full = capacity.allows(None, 44, 691, 5).unwrap_err().to_string();
        assert!(full.contains("5 more endpoints need 10 listeners") && full.contains("700, of which 691"), "{full}");
        assert_eq!(capacity.allows(None, 44, 900, 0), Ok(()), "what is there already is not refused");
    }
}
