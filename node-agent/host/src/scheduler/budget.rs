//! The node's budgets: what all bindings together may use.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Host memory that a request is charged for before it begins: buffers of its connection and bodies, headers, resource table.
pub const REQUEST_OVERHEAD: u64 = 128 << 10;

/// Memory for all guests of the node.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    limit: u64,
    used: AtomicU64,
}

/// One request's part of the budget; given back when this is dropped.
#[derive(Debug)]
pub struct MemoryShare {
    budget: MemoryBudget,
    bytes: u64,
}

/// Instances of the node. A pool has so many slots, and taking one more is an error deep in an engine.
#[derive(Clone, Debug)]
pub struct InstanceBudget(Arc<Semaphore>);

impl MemoryBudget {
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Memory { limit, used: AtomicU64::new(0) }))
    }

    /// A share with nothing in it.
    pub fn share(&self) -> MemoryShare {
        MemoryShare { budget: self.clone(), bytes: 0 }
    }

    /// Bytes in all shares.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }
}

impl MemoryShare {
    /// Takes so many bytes more; false, and nothing taken, if the budget has not got them.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let Memory { limit, used } = &*self.budget.0;
        let taken = used.try_update(Relaxed, Relaxed, |used| used.checked_add(bytes).filter(|sum| sum <= limit));
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Relaxed);
    }
}

impl InstanceBudget {
    /// So many instances.
    pub fn new(instances: u32) -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(instances).unwrap_or(usize::MAX))))
    }

    /// Takes one, if there is one.
    pub fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

/// The memory that guests of this process may use together: what its cgroup allows, or the machine has, less a reserve of a
/// fifth for the host itself, code and the page cache.
pub fn node_memory() -> u64 {
    let machine = {
        let info = rustix::system::sysinfo();
        (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
    };
    let allowed = cgroup_limit(Path::new("/")).unwrap_or(u64::MAX).min(machine);
    allowed / 5 * 4
}

/// The memory limit of this process's cgroup, version 2 or 1; `None` if there is none. `root` is `/`, but for tests.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounted = root.join("sys/fs/cgroup");
    let limit = |file: std::path::PathBuf| fs::read_to_string(file).ok()?.trim().parse().ok();
    membership
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start_matches('/'));
            // In a container the cgroup is mounted as the root: the path that /proc tells may not exist there.
            if controllers.is_empty() {
                let of = |dir: &Path| limit(dir.join("memory.max"));
                of(&mounted.join(path)).or_else(|| of(&mounted))
            } else if controllers.split(',').any(|c| c == "memory") {
                let of = |dir: &Path| limit(dir.join("memory.limit_in_bytes"));
                let v1 = mounted.join("memory");
                of(&v1.join(path)).or_else(|| of(&v1))
            } else {
                None
            }
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_never_takes_what_is_not_there() {
        let budget = MemoryBudget::new(100);
        let (mut first, mut second) = (budget.share(), budget.share());
        assert!(first.grow(60));
        assert!(!second.grow(41));
        assert!(!second.grow(u64::MAX));
        assert!(second.grow(40));
        drop(first);
        assert_eq!(budget.used(), 40);
    }

    #[test]
    fn the_cgroup_limit_is_found_in_either_version_and_in_a_container() {
        let write = |root: &Path, path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let table = [
            ("0::/pod/x\n", "sys/fs/cgroup/pod/x/memory.max", "1000\n", Some(1000)),
            ("0::/../../x\n", "sys/fs/cgroup/memory.max", "1000\n", Some(1000)),
            ("0::/x\n", "sys/fs/cgroup/x/memory.max", "max\n", None),
            ("5:cpu:/x\n4:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000\n", Some(2000)),
            ("5:cpu:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000\n", None),
        ];
        for (membership, file, text, expected) in table {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "proc/self/cgroup", membership);
            write(root.path(), file, text);
            assert_eq!(cgroup_limit(root.path()), expected, "{membership}");
        }
        assert!(node_memory() > 0);
    }
}
