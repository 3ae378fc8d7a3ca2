//! The host's objects that a guest holds: streams, headers, bodies, pollables, timers.
//!
//! A guest with a garbage collector gives them back late, so their number is bounded by what they cost, as part of the request's
//! memory. Neither the table nor the objects tell when they grow; so all are looked at after a few calls, and what has come is charged.

use std::any::Any;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::DynOutputStream;
use wasmtime_wasi_http::{
    FieldMap,
    p2::{
        body::HostOutgoingBody,
        types::{HostOutgoingRequest, HostOutgoingResponse},
    },
};

use super::{FIELD_OVERHEAD, memory::MemoryLimiter};
use crate::outbound::CHUNK;

/// What the host holds for any of them.
const BYTES_EACH: usize = 256;

/// How many more there may be than were there when they were last looked at.
const ROOM: usize = 256;

/// Calls after which they are looked at: none makes more than four.
const CALLS: usize = ROOM / 4;

/// What every request is charged for before it begins.
const FREE: u64 = (ROOM * BYTES_EACH) as u64;

/// The objects of one instance.
#[derive(Debug)]
pub(super) struct Resources {
    table: ResourceTable,
    calls_left: usize,
    charged: u64,
    exhausted: bool,
}

impl Resources {
    pub(super) fn new() -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(ROOM);
        Self { table, calls_left: CALLS, charged: FREE, exhausted: false }
    }

    /// The table, for one call of the guest. What it may hold is charged to `memory`.
    pub(super) fn for_call(&mut self, memory: &mut MemoryLimiter) -> &mut ResourceTable {
        match self.calls_left.checked_sub(1) {
            Some(left) => self.calls_left = left,
            None => self.make_room(memory),
        }
        &mut self.table
    }

    /// Whether they need more memory than the guest may have.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// How many there are.
    pub(super) fn count(&mut self) -> usize {
        self.table.iter_mut().count()
    }

    fn make_room(&mut self, memory: &mut MemoryLimiter) {
        let (mut held, mut bytes) = (0, FREE);
        for object in self.table.iter_mut() {
            held += 1;
            bytes += size(object) as u64;
        }
        self.exhausted = bytes > self.charged && !memory.charge(bytes - self.charged);
        self.charged = self.charged.max(bytes);
        self.table.set_max_capacity(if self.exhausted { 0 } else { held + ROOM });
        self.calls_left = CALLS;
    }
}

/// What the host holds for an object, at most.
fn size(object: &(dyn Any + Send)) -> usize {
    let fields = |fields: &FieldMap| {
        let sizes = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
        sizes.sum::<usize>()
    };
    let has_chunk = object.is::<DynOutputStream>()
        || object.is::<HostOutgoingBody>()
        || object.is::<HostOutgoingRequest>()
        || object.is::<HostOutgoingResponse>();
    BYTES_EACH + if has_chunk { CHUNK } else { object.downcast_ref().map_or(0, fields) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guest::memory::Denied,
        outbound::{Outbound, OutboundHooks},
        scheduler::budget::MemoryBudget,
    };

    fn fill(resources: &mut Resources, memory: &mut MemoryLimiter, many: usize) -> usize {
        (0..many).take_while(|_| resources.for_call(memory).push(0u8).is_ok()).count()
    }

    #[test]
    fn what_a_guest_holds_is_charged_and_bounded_by_its_memory() {
        let budget = MemoryBudget::new(1 << 30);
        let mut memory = MemoryLimiter::new(1 << 20, &budget);
        let mut resources = Resources::new();
        assert_eq!(fill(&mut resources, &mut memory, 2_000), 2_000);
        assert!((400_000..600_000).contains(&budget.used()), "{}", budget.used());
        let more = fill(&mut resources, &mut memory, 10_000);
        assert!((1_900..2_300).contains(&more), "{more} more in a mebibyte");
        assert!(resources.is_exhausted());
        assert_eq!(memory.denied(), Some(Denied::Component));
    }

    #[test]
    fn what_is_given_back_costs_nothing() {
        let budget = MemoryBudget::new(1 << 30);
        let (mut memory, mut resources) = (MemoryLimiter::new(1 << 20, &budget), Resources::new());
        for _ in 0..10_000 {
            let made = resources.for_call(&mut memory).push(0u8).unwrap();
            resources.for_call(&mut memory).delete(made).unwrap();
        }
        assert!(budget.used() <= 2 * BYTES_EACH as u64, "{}", budget.used());
    }

    #[test]
    fn headers_cost_what_they_hold() {
        let mut headers = http::HeaderMap::new();
        headers.insert("x", http::HeaderValue::from_bytes(&[b'y'; 10_000]).unwrap());
        let fields = FieldMap::new_immutable(&mut OutboundHooks::new(Outbound::default()), headers);
        assert!((10_000..11_000).contains(&size(&fields)), "{}", size(&fields));
        assert_eq!(size(&0u8), BYTES_EACH);
    }
}
