//! How a worker's descriptors are shared between listeners, connections and everything else.

use pillion_sockets::listen;

use crate::{engine::settings::Capacity, outbound};

/// Descriptors that neither listeners nor connections take, beside those of loaded components and calls out: for files and the
/// runtimes.
const RESERVE: u64 = 256;

/// Memory that a connection may take before its head is whole: as much of the node's memory bounds how many there are.
const CONNECTION_MEMORY: u64 = 64 << 10;

/// The fewest connections, however little memory there is.
const CONNECTIONS: u64 = 64;

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The most listeners: a quarter of what they share with connections is left to these.
    pub listeners: u64,
    /// The most connections, while there are few listeners.
    pub connections: u64,
    /// Descriptors that connections do not need, since memory bounds them: the first listeners take these, the next ones a
    /// connection's place each.
    pub spare: u64,
}

impl Room {
    /// In a process of so many descriptors, of which so many loaded components take one each, with so much memory for guests.
    pub fn new(descriptors: u64, loaded: u64, memory: u64) -> Self {
        let others = RESERVE + loaded + outbound::calls(descriptors);
        let shared = descriptors.saturating_sub(others);
        let connections = shared.min(memory / CONNECTION_MEMORY).max(CONNECTIONS);
        Self { listeners: shared / 4 * 3, connections, spare: shared.saturating_sub(connections) }
    }
}

/// The most listeners that a worker with this process's limits takes.
pub fn listeners_max() -> usize {
    let loaded = u64::from(Capacity::by_numbers().loaded);
    usize::try_from(Room::new(listen::descriptor_limit(), loaded, u64::MAX).listeners).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_leave_a_quarter_to_connections_and_memory_bounds_these_alone() {
        let roomy = Room::new(20_000, 4_000, 16 << 30);
        assert_eq!(roomy, Room { listeners: 11_040, connections: 14_720, spare: 0 });
        let tight = Room::new(20_000, 4_000, 64 << 20);
        assert_eq!(tight, Room { listeners: 11_040, connections: 1_024, spare: 13_696 });
        assert_eq!(Room::new(100, 16, 1 << 30), Room { listeners: 0, connections: 64, spare: 0 });
    }
}
