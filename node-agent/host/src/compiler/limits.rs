//! What the compiler child may use. It limits itself before it reads a byte.

use std::{io, time::Duration};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    engine::settings,
    sys::{ThreadClass, lower_this_thread},
};

/// The name of the variable that says how much CPU time a compilation may use, in seconds.
pub const CPU_SECONDS: &str = "PILLION_COMPILER_CPU_SECONDS";

/// Memory that it may write. The largest components that the field makes (CPython, SpiderMonkey) need 350 MB.
const MEMORY: u64 = 4 << 30;

/// Address space: the same, code and libraries, and the pool that a component is held against, which nothing is written to.
const ADDRESSES: u64 = MEMORY + settings::JUDGING + (1 << 30);

/// Native code on disk. It is two to three times the component's size.
const OUTPUT: u64 = 1 << 30;

/// CPU time by default: CPython takes 15 s.
const CPU: Duration = Duration::from_secs(120);

/// It gives way, and still ends beside programs that spin: against one of them it gets more than a quarter of a core. With
/// `SCHED_IDLE` it would get next to nothing.
const CLASS: ThreadClass = ThreadClass::Nice(4);

/// The limits of one compilation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// CPU time. The kernel ends the child with SIGXCPU after it.
    pub cpu: Duration,
}

impl Limits {
    /// The defaults, with the CPU time that the environment says.
    ///
    /// # Errors
    ///
    /// A value that is no number of seconds.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let cpu = match std::env::var(CPU_SECONDS) {
            Ok(text) => text.parse().ok().filter(|&s| s > 0).map(Duration::from_secs).ok_or_else(|| {
                anyhow::anyhow!("{CPU_SECONDS}={text:?}: expected a whole number of seconds, at least 1")
            })?,
            Err(_) => CPU,
        };
        Ok(Self { cpu })
    }

    /// Puts this process under the limits, for good.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn enter(self) -> io::Result<()> {
        let limit = |resource, most: u64| {
            // A limit that is lower already stays.
            let most = rustix::process::getrlimit(resource).maximum.map_or(most, |now| now.min(most));
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
        };
        limit(Resource::Data, MEMORY)?;
        limit(Resource::As, ADDRESSES)?;
        limit(Resource::Fsize, OUTPUT)?;
        // At the soft limit comes SIGXCPU, which tells why; at the hard one SIGKILL.
        let seconds = self.cpu.as_secs();
        setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds.saturating_add(1)) })?;
        limit(Resource::Core, 0)?;
        limit(Resource::Nofile, 16)?;
        lower_this_thread(CLASS)
    }
}
