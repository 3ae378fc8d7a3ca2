//! How wasmtime is set up. What decides the native code is the same for the compiler child and for the worker; only how
//! instances get their memory differs.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use super::addresses::{Addresses, TooFewAddresses};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// The exact wasmtime version. Its own check compares the major version only, but fixes in code generation come in patch
/// releases, and native code from before one must not be used after it. A test holds this to the lock file.
const WASMTIME_VERSION: &str = "48.0.8";

/// Address space for each linear memory: no component's memory can be larger.
const MEMORY_RESERVATION: usize = 4 << 30;

/// Addresses behind each linear memory that nothing is ever at.
const MEMORY_GUARD: u64 = 32 << 20;

/// A guest's stack, which is the host's too while the guest calls it.
const STACK: usize = 2 << 20;

/// How many bytes of a freed linear memory stay resident. With `PAGEMAP_SCAN` a small instance gets back pages that are there.
const MEMORY_KEPT: usize = 256 << 10;

/// The same for a table.
const TABLE_KEPT: usize = 64 << 10;

/// How many freed slots may keep pages and mappings: together with [`MEMORY_KEPT`] this bounds what an idle pool holds.
const WARM_SLOTS: u32 = 100;

/// Which interface a component serves HTTP through, and so which engine runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// `wasi:http/incoming-handler@0.2.x`
    P2,
    /// `wasi:http/handler@0.3.x`
    P3,
}

impl World {
    /// Both.
    pub const ALL: [Self; 2] = [Self::P2, Self::P3];
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P2 => "p2",
            Self::P3 => "p3",
        })
    }
}

/// How much one process can hold, which the kernel decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Instances at once, in each engine.
    pub instances: u32,
    /// Loaded components at once.
    pub loaded: u32,
}

impl Capacity {
    /// Instances that a node can run at once by default.
    const INSTANCES: u32 = 2_000;
    /// Loaded components by default: about 72 kB and 3 mappings each.
    const LOADED: u32 = 4_000;

    /// What fits under `max_map_count` mappings (sysctl `vm.max_map_count`) and `descriptors` open files. A slot needs 2 mappings
    /// at rest and 4 more in use, in either engine; a loaded component 3, and a descriptor. Half of the descriptors are left to
    /// listeners and connections.
    pub fn new(max_map_count: u64, descriptors: u64) -> Self {
        let mappings = max_map_count.saturating_sub(5_000);
        let share = |part: u64, each: u64| u32::try_from(mappings * part / 10 / each).unwrap_or(u32::MAX);
        let files = u32::try_from(descriptors / 2).unwrap_or(u32::MAX);
        Self {
            instances: share(5, 8).clamp(16, Self::INSTANCES),
            loaded: share(4, 3).min(files).clamp(16, Self::LOADED),
        }
    }

    /// What the kernel's numbers leave to this process. Where the kernel does not tell, its own defaults are assumed.
    pub fn by_numbers() -> Self {
        let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|n| n.trim().parse().ok());
        Self::new(maps.unwrap_or(65_530), pillion_sockets::listen::descriptor_limit())
    }

    /// What this process can hold, by its address space too.
    ///
    /// # Errors
    ///
    /// An address space that is too small for guests.
    pub fn of_this_process() -> Result<Self, TooFewAddresses> {
        let all = Self::by_numbers();
        Ok(Self { instances: Addresses::of_this_process().slots(all.instances)?, ..all })
    }

    /// Looks whether this process, and the workers that it starts, can hold guests, and warns once where it can hold few.
    ///
    /// # Errors
    ///
    /// An address space that is too small for guests.
    pub fn check() -> Result<(), TooFewAddresses> {
        let (instances, usual) = (Self::of_this_process()?.instances, Self::by_numbers().instances);
        if instances < usual {
            tracing::warn!(
                instances,
                usual,
                "few requests are served at once, since there is little address space: by the kernel, or by \"ulimit -v\""
            );
        }
        Ok(())
    }
}

/// The settings that decide what native code looks like.
fn shared(world: World) -> Config {
    let concurrent = world == World::P3;
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .concurrency_support(concurrent)
        .wasm_component_model_async(concurrent)
        .memory_reservation(MEMORY_RESERVATION as u64)
        .memory_guard_size(MEMORY_GUARD)
        // Native code is a seventh smaller without these; a trap's backtrace still names functions, without offsets. Loading
        // would also register each component's unwind tables in a list that the C library searches one by one.
        .native_unwind_info(false)
        .generate_address_map(false);
    config
}

/// For the compiler child: memory on demand, since a pool would reserve terabytes of addresses under its rlimits.
pub fn compiling(world: World) -> Config {
    let mut config = shared(world);
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config
}

/// What one component may need of the pool. Without these, one of empty memories takes all of it.
const CORE_INSTANCES: u32 = 64;
const MEMORIES: u32 = 4;
const TABLES: u32 = 32;
const TABLE_ELEMENTS: u64 = 100_000;
/// What the engine itself holds of an instance, in bytes.
const INSTANCE: usize = 4 << 20;

/// What a pool of so many slots has of each: more than most components need, and no less than one may.
struct Totals {
    core_instances: u32,
    memories: u32,
    tables: u32,
}

impl Totals {
    fn new(slots: u32) -> Self {
        Self {
            core_instances: slots.saturating_mul(4).max(CORE_INSTANCES),
            memories: slots.saturating_mul(2).max(MEMORIES),
            tables: slots.saturating_mul(4).max(TABLES),
        }
    }
}

/// Addresses that a pool of so many slots reserves: its memories, and what little comes with them.
pub fn pool_bytes(slots: u32) -> u64 {
    const TABLE: u64 = TABLE_ELEMENTS * size_of::<usize>() as u64 + (64 << 10);
    let Totals { memories, tables, .. } = Totals::new(slots);
    let memories = u64::from(memories) * (MEMORY_RESERVATION as u64 + MEMORY_GUARD) + MEMORY_GUARD;
    memories + u64::from(tables) * TABLE + u64::from(slots) * (STACK as u64 + (64 << 10))
}

/// What a pool gives to each instance, whatever it has in all.
fn parts() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memories_per_module(MEMORIES)
        .max_tables_per_module(8)
        .table_elements(usize::try_from(TABLE_ELEMENTS).unwrap_or(usize::MAX))
        .max_core_instance_size(INSTANCE)
        .max_component_instance_size(INSTANCE)
        .max_memory_size(MEMORY_RESERVATION);
    pool
}

/// Addresses that an engine by [`judging`] reserves.
pub const JUDGING: u64 = MEMORY_RESERVATION as u64 + 2 * MEMORY_GUARD + (64 << 20);

/// To look at a component as [`serving`] would: a pool from which nothing is taken, and code that is not run, so that it need not be good. The part of
/// `gone` functions, that others than the module may call and that are not there to be looked at, is taken off beforehand.
pub fn judging(world: World, gone: u32) -> Config {
    /// wasmtime's `VMFuncRef`: four pointers.
    const FUNCTION: usize = 4 * size_of::<usize>();
    let left = INSTANCE.saturating_sub(FUNCTION.saturating_mul(usize::try_from(gone).unwrap_or(usize::MAX)));
    let mut pool = parts();
    pool.max_core_instance_size(left)
        .max_component_instance_size(left)
        .total_component_instances(1)
        .total_core_instances(1)
        .total_memories(1)
        .total_tables(TABLES)
        .total_stacks(1)
        .max_unused_warm_slots(0);
    let mut config = shared(world);
    config.cranelift_opt_level(OptLevel::None);
    config.async_stack_size(STACK).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// For the worker: a pool from which an instance is taken in microseconds.
pub fn serving(world: World, capacity: Capacity) -> Config {
    let totals = Totals::new(capacity.instances);
    let mut pool = parts();
    pool.total_component_instances(capacity.instances)
        .total_core_instances(totals.core_instances)
        .total_memories(totals.memories)
        .total_tables(totals.tables)
        .total_stacks(capacity.instances)
        .max_unused_warm_slots(WARM_SLOTS.min(capacity.instances));
    if pagemap_scan_works() {
        pool.pagemap_scan(Enabled::Auto).linear_memory_keep_resident(MEMORY_KEPT).table_keep_resident(TABLE_KEPT);
    }
    let mut config = shared(world);
    config.async_stack_size(STACK).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Whether the kernel knows `PAGEMAP_SCAN` (Linux 6.7). Without it, keeping pages resident is slower than not: each would be
/// set to zero whether it was touched or not.
fn pagemap_scan_works() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7)
}

/// Names everything that native code of `world` depends on: a folder's name for it.
///
/// # Errors
///
/// An engine that cannot be made on this machine.
pub fn compatibility(world: World) -> wasmtime::Result<String> {
    let engine = Engine::new(&compiling(world))?;
    let mut hasher = Sha256Hasher(Sha256::new_with_prefix(WASMTIME_VERSION));
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let digest: [u8; 32] = hasher.0.finalize().into();
    Ok(format!("{world}-{}", hex::encode(digest.get(..8).unwrap_or(&digest))))
}

/// The standard library's hashers may change with it; this one does not.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Never asked for: [`compatibility`] takes the whole digest.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_in_the_cache_key_is_the_version_in_the_lock_file() {
        let lock = include_str!("../../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"")));
    }

    #[test]
    fn the_worlds_have_native_code_apart_and_the_same_one_each_time() {
        let [p2, p3] = World::ALL.map(|world| compatibility(world).unwrap());
        assert_ne!(p2, p3);
        assert_eq!(p2, compatibility(World::P2).unwrap());
    }

    #[test]
    fn capacity_stays_under_what_the_kernel_allows() {
        let table = [
            (65_530, 20_000, Capacity { instances: 2_000, loaded: 4_000 }),
            (65_530, 1_024, Capacity { instances: 2_000, loaded: 512 }),
            (20_000, 1_000_000, Capacity { instances: 937, loaded: 2_000 }),
            (1_000, 10, Capacity { instances: 16, loaded: 16 }),
            (u64::MAX >> 8, u64::MAX, Capacity { instances: 2_000, loaded: 4_000 }),
        ];
        for (maps, files, expected) in table {
            assert_eq!(Capacity::new(maps, files), expected, "{maps} mappings, {files} descriptors");
        }
    }
}
