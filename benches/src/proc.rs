//! What the kernel says about processes, sockets and this machine.

use std::{fmt, fs, time::Duration};

use anyhow::Context;
use serde::Serialize;

/// The machine that figures come from.
#[derive(Serialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    /// Processes that ran or wanted to, over the last minute before the bench.
    load: f64,
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Proportional set size: private pages and a fair share of shared ones.
    pub pss: f64,
    /// The part of it that is in no file: cannot be dropped and read again.
    pub anonymous: f64,
    /// Page tables, which the kernel holds and `pss` does not count.
    pub page_tables: f64,
}

impl Machine {
    /// This machine, now.
    pub fn read() -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = text("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
        Self {
            processor: processor.unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes(&text("/proc/meminfo"), "MemTotal").unwrap_or_default() as u64,
            kernel,
            load: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_bytes, kernel, load } = self;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "{processor}, {cores} cores, {gib:.0} GiB, Linux {kernel}, load before the bench {load}")
    }
}

impl Memory {
    /// Memory of the process `pid`.
    ///
    /// # Errors
    ///
    /// A process that has gone.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let rollup = read(pid, "smaps_rollup")?;
        let status = read(pid, "status")?;
        let field = |text, name| kilobytes(text, name).with_context(|| format!("process {pid} has no {name}"));
        Ok(Self {
            pss: field(&rollup, "Pss")?,
            anonymous: field(&rollup, "Pss_Anon")?,
            page_tables: field(&status, "VmPTE")?,
        })
    }

    /// Memory of several processes together.
    ///
    /// # Errors
    ///
    /// A process that has gone.
    pub fn of_all(pids: &[u32]) -> anyhow::Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| {
            let one = Self::of(*pid)?;
            Ok(Self {
                pss: sum.pss + one.pss,
                anonymous: sum.anonymous + one.anonymous,
                page_tables: sum.page_tables + one.page_tables,
            })
        })
    }

    /// How much more this is than `before`, for each of `count`.
    pub fn since(self, before: Self, count: usize) -> Self {
        let each = count.max(1) as f64;
        Self {
            pss: (self.pss - before.pss) / each,
            anonymous: (self.anonymous - before.anonymous) / each,
            page_tables: (self.page_tables - before.page_tables) / each,
        }
    }
}

/// Kernel memory of the whole machine that cannot be reclaimed, in bytes. Of what changes when sockets are opened, they are most.
///
/// # Errors
///
/// A kernel that does not tell.
pub fn kernel_memory() -> anyhow::Result<f64> {
    let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kilobytes(&memory, "SUnreclaim").context("/proc/meminfo has no SUnreclaim")
}

/// How many sockets the process `pid` has open.
///
/// # Errors
///
/// A process that has gone.
pub fn open_sockets(pid: u32) -> anyhow::Result<usize> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("process {pid}: open files"))?;
    let is_socket = |file: &fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    Ok(files.flatten().filter(is_socket).count())
}

/// CPU time that the process `pid` has used, in user and kernel mode.
///
/// # Errors
///
/// A process that has gone.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let ticks = stat_field(pid, 14).zip(stat_field(pid, 15)).map(|(user, system)| user + system);
    let ticks = ticks.with_context(|| format!("process {pid} has gone"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// When the process `pid` started, in ticks since boot: with the number, this names a process for ever.
pub fn started(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Whether the process `pid` has ended and only its status is left.
pub fn is_zombie(pid: u32) -> bool {
    read(pid, "stat").is_ok_and(|text| text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// How many mappings the process `pid` has, and how many files with this ending are among them.
///
/// # Errors
///
/// A process that has gone.
pub fn mappings(pid: u32, ending: &str) -> anyhow::Result<(usize, usize)> {
    let maps = read(pid, "maps")?;
    let mut files: Vec<&str> = maps.lines().filter_map(|line| line.split(' ').next_back()).collect();
    let all = files.len();
    files.retain(|file| file.ends_with(ending));
    files.sort_unstable();
    files.dedup();
    Ok((all, files.len()))
}

/// A field of `/proc/PID/stat`, counted from 1 as in proc_pid_stat(5). The second is in parentheses and may hold anything.
fn stat_field(pid: u32, field: usize) -> Option<u64> {
    let text = read(pid, "stat").ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    after_name.split(' ').nth(field.checked_sub(3)?)?.parse().ok()
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("process {pid}: {file} cannot be read"))
}

/// The bytes of a line `NAME:   N kB`.
fn kilobytes(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: f64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_time_and_mappings() {
        let this = std::process::id();
        let memory = Memory::of(this).unwrap();
        assert!(memory.pss > 100_000.0 && memory.anonymous > 0.0 && memory.page_tables > 0.0, "{memory:?}");
        assert!(memory.anonymous <= memory.pss);
        assert!(started(this).unwrap() > 0);
        cpu_time(this).unwrap();
        assert!(mappings(this, ".so.6").unwrap().1 >= 1);
    }

    #[test]
    fn a_process_that_has_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(Memory::of(child.id()).is_err() && cpu_time(child.id()).is_err() && started(child.id()).is_none());
    }

    #[test]
    fn the_kernel_tells_about_sockets() {
        let this = std::process::id();
        let before = open_sockets(this).unwrap();
        let _listeners: Vec<_> = (0..50).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        assert!(open_sockets(this).unwrap() >= before + 40, "other tests may close some");
        assert!(kernel_memory().unwrap() > 0.0);
    }
}
