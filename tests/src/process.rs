//! What `/proc` says of a process.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Sends a signal to a process that this test started.
///
/// # Errors
///
/// A process that is not there.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("0 is no process")?;
    Ok(kill_process(pid, signal)?)
}

/// Whether a process runs: it is there and no zombie.
pub fn runs(pid: u32) -> bool {
    stat(pid).is_ok_and(|stat| stat.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// The fields of `/proc/PID/stat` from the state on: field 3 of proc_pid_stat(5) is the first here.
fn stat(pid: u32) -> Result<Vec<String>> {
    fields(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn fields(stat: &str) -> Result<Vec<String>> {
    // The name before may hold anything, also blanks and brackets.
    let (_, fields) = stat.rsplit_once(')').context("a stat file without a name")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// Fields 14 and 15: the time in user mode and in the kernel.
fn ticks(fields: &[String]) -> Result<u64> {
    let field = |number: usize| -> Result<u64> { Ok(fields.get(number - 3).context("a short stat file")?.parse()?) };
    Ok(field(14)? + field(15)?)
}

/// CPU time that a process used, in clock ticks (10 ms each).
///
/// # Errors
///
/// A process that is not there.
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    ticks(&stat(pid)?)
}

/// CPU time that the threads of a process whose names begin like this used, in clock ticks.
///
/// # Errors
///
/// A process that is not there.
pub fn threads_ticks(pid: u32, name: &str) -> Result<u64> {
    let mut used = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = task?.path();
        // A thread may end meanwhile.
        let Ok(comm) = fs::read_to_string(folder.join("comm")) else { continue };
        if comm.starts_with(name) {
            used += ticks(&fields(&fs::read_to_string(folder.join("stat"))?)?)?;
        }
    }
    Ok(used)
}

/// The process that started a process.
///
/// # Errors
///
/// A process that is not there.
pub fn parent(pid: u32) -> Result<u32> {
    Ok(stat(pid)?.get(1).context("a short stat file")?.parse()?)
}

/// The processes that a process started.
pub fn children(pid: u32) -> Vec<u32> {
    let is_child = |child: &u32| parent(*child).is_ok_and(|parent| parent == pid) && runs(*child);
    all().into_iter().filter(is_child).collect()
}

/// All processes.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process's arguments, with blanks between them.
pub fn arguments(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// What a process's descriptors lead to, without repetitions: several may be the same open file. What this test was itself
/// started with and hands on, by the same number, does not count.
///
/// # Errors
///
/// A process that is not there.
pub fn open_files(pid: u32) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let file = fs::read_link(entry.path())?;
        let ours = fs::read_link(Path::new("/proc/self/fd").join(entry.file_name())).ok();
        if ours.is_none_or(|ours| ours != file) {
            files.insert(file);
        }
    }
    Ok(files)
}

/// How many descriptors a process has.
///
/// # Errors
///
/// A process that is not there.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The number of sockets that a process holds.
///
/// # Errors
///
/// A process that is not there.
pub fn sockets(pid: u32) -> Result<usize> {
    let is_socket =
        |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter(is_socket).count())
}

/// The memory that a process holds, in bytes. Read from `statm`, which unlike `smaps_rollup` does not hold up the process: it
/// would, for as long as it walks the address space, and a worker's is large.
///
/// # Errors
///
/// A process that is not there.
pub fn memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = text.split(' ').nth(1).context("a short statm file")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Watches a process's memory and keeps the most it ever held.
pub struct Peak {
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peak {
    /// Starts to watch.
    pub fn of(pid: u32) -> Self {
        let (most, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (Arc::clone(&most), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            while !end.load(Relaxed) {
                seen.fetch_max(memory(pid).unwrap_or(0), Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { most, over, thread: Some(thread) }
    }

    /// The most so far, in bytes.
    pub fn most(&self) -> u64 {
        self.most.load(Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
