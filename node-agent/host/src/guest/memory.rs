//! A request's memory: linear memories, tables and the host's objects of its instance together, under the component's limit and the node's budget.
//!
//! Wasmtime asks about each memory and table by itself; their sum is kept here.

use wasmtime::ResourceLimiter;

use crate::scheduler::budget::{MemoryBudget, MemoryShare};

/// Bytes that the host keeps for each element of a table.
const TABLE_ELEMENT: usize = 8;

/// Why a growth was denied, for the one who asks why the guest then ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// By the component's `limits.memory`.
    Component,
    /// By the node's budget.
    Node,
}

/// Counts and limits the memory of one instance, and gives it back to the node when it is dropped.
#[derive(Debug)]
pub struct MemoryLimiter {
    limit: u64,
    used: u64,
    share: MemoryShare,
    denied: Option<Denied>,
}

impl MemoryLimiter {
    /// At most `limit` bytes, taken from `budget`.
    pub fn new(limit: u64, budget: &MemoryBudget) -> Self {
        Self { limit, used: 0, share: budget.share(), denied: None }
    }

    /// The last growth that was denied, if one was.
    pub fn denied(&self) -> Option<Denied> {
        self.denied
    }

    /// Another request begins in the same instance: what was denied to the one before explains nothing of it.
    pub fn begin_anew(&mut self) {
        self.denied = None;
    }

    /// Charges what the host holds for the guest. False, and it is noted, if that is more than there is.
    pub fn charge(&mut self, bytes: u64) -> bool {
        self.take(bytes)
    }

    fn grow(&mut self, current: usize, desired: usize, each: usize) -> bool {
        self.take(desired.saturating_sub(current).saturating_mul(each) as u64)
    }

    fn take(&mut self, more: u64) -> bool {
        let denied = if self.used.saturating_add(more) > self.limit {
            Denied::Component
        } else if !self.share.grow(more) {
            Denied::Node
        } else {
            self.used += more;
            return true;
        };
        self.denied = Some(denied);
        false
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|most| desired <= most) && self.grow(current, desired, 1))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|most| desired <= most) && self.grow(current, desired, TABLE_ELEMENT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_count_together() {
        let budget = MemoryBudget::new(1_000_000);
        let mut limiter = MemoryLimiter::new(1_000, &budget);
        assert!(limiter.memory_growing(0, 400, None).unwrap());
        assert!(limiter.memory_growing(0, 200, None).unwrap(), "a second memory");
        assert!(limiter.table_growing(0, 50, None).unwrap());
        assert_eq!((limiter.denied(), budget.used()), (None, 1_000));
        assert!(!limiter.memory_growing(400, 401, None).unwrap());
        assert_eq!(limiter.denied(), Some(Denied::Component));
        drop(limiter);
        assert_eq!(budget.used(), 0, "what was taken comes back");
    }

    #[test]
    fn the_nodes_budget_is_shared() {
        let budget = MemoryBudget::new(1_000);
        let mut first = MemoryLimiter::new(900, &budget);
        let mut second = MemoryLimiter::new(900, &budget);
        assert!(first.memory_growing(0, 900, None).unwrap());
        assert!(!second.memory_growing(0, 900, None).unwrap());
        assert_eq!(second.denied(), Some(Denied::Node));
        drop(first);
        assert!(second.memory_growing(0, 900, None).unwrap());
    }
}
