//! Processes that a bench starts. Each one ends with the value that stands for it, on errors and signals too; nothing else is
//! ever signalled, since each is known by its number and its start time. What the tests' fixtures start ends with them, and on
//! signals as a child of this process.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pillion_tests::process;
use rustix::process::{Pid, Signal, kill_process};

use crate::proc;

/// How long a process may take to end when it is asked to.
const END: Duration = Duration::from_secs(2);

/// What is shown of a failed process's standard error.
const SHOWN: usize = 2_000;

/// Every process that is to be ended.
static STARTED: Mutex<Vec<Id>> = Mutex::new(Vec::new());

/// A process: its number, and when it started, since numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    pid: u32,
    started: u64,
}

/// A process that ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    ids: Vec<Id>,
    errors: File,
}

/// Ends every started process, and this one, on SIGINT and SIGTERM.
///
/// # Errors
///
/// Signals that cannot be handled.
pub fn end_all_on_signals() -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let children = || process::children(std::process::id()).into_iter().filter_map(Id::of);
    // A shell that became this program may have started some.
    let others: Vec<Id> = children().collect();
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Stays locked: nothing is started any more.
            let mut started = lock();
            started.extend(children().filter(|id| !others.contains(id)));
            end(&started);
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

impl Running {
    /// Starts `command`, called `name` in errors. Its standard output is a pipe, its standard error is kept for errors.
    ///
    /// # Errors
    ///
    /// A program that cannot be started.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let errors = tempfile::tempfile().context("a temporary file cannot be made")?;
        // With it set, wasmtime takes a backtrace for every error, and each served request has one.
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut started = lock();
        let child = command.spawn().with_context(|| format!("{name} cannot be started: {command:?}"))?;
        let mut running = Self { name: name.to_owned(), child, ids: Vec::new(), errors };
        if let Some(id) = Id::of(running.pid()) {
            started.push(id);
            running.ids.push(id);
        }
        Ok(running)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Ends the process `pid` too, which this one has started.
    pub fn adopt(&mut self, pid: u32) {
        if let Some(id) = Id::of(pid).filter(|id| !self.ids.contains(id)) {
            lock().push(id);
            self.ids.push(id);
        }
    }

    /// That it still runs.
    ///
    /// # Errors
    ///
    /// It has ended; with the last of what it said.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.last_errors()),
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// It did not within `time`.
    pub fn wait(&mut self, time: Duration) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "{} did not end within {time:?}: {}", self.name, self.last_errors());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The end of what it wrote to standard error.
    pub fn last_errors(&self) -> String {
        let (mut text, mut errors) = (Vec::new(), &self.errors);
        let read = errors.seek(SeekFrom::Start(0)).and_then(|_| errors.read_to_end(&mut text));
        match read {
            Err(error) => format!("(its standard error cannot be read: {error})"),
            Ok(_) => {
                let start = text.len().saturating_sub(SHOWN);
                String::from_utf8_lossy(text.get(start..).unwrap_or_default()).trim().to_owned()
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&self.ids);
        _ = self.child.wait();
        lock().retain(|id| !self.ids.contains(id));
    }
}

impl Id {
    fn of(pid: u32) -> Option<Self> {
        proc::started(pid).map(|started| Self { pid, started })
    }

    /// Whether it runs. A zombie counts until someone has asked for its status.
    fn lives(self) -> bool {
        Self::of(self.pid) == Some(self) && !proc::is_zombie(self.pid)
    }

    fn signal(self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.lives()) {
            _ = kill_process(pid, signal);
        }
    }
}

/// Asks, waits, and then does not ask.
fn end(ids: &[Id]) {
    ids.iter().for_each(|id| id.signal(Signal::TERM));
    let until = Instant::now() + END;
    while ids.iter().any(|id| id.lives()) && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    ids.iter().for_each(|id| id.signal(Signal::KILL));
}

fn lock() -> MutexGuard<'static, Vec<Id>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
///
/// It fails, or takes longer than `time`.
pub fn output(name: &str, command: &mut Command, time: Duration) -> anyhow::Result<String> {
    let mut running = Running::start(name, command)?;
    let reader = running.stdout().map(|mut stdout| {
        thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        })
    });
    let status = running.wait(time)?;
    ensure!(status.success(), "{name} failed ({status}): {}", running.last_errors());
    let text = reader.and_then(|reader| reader.join().ok()).context("the output was lost")??;
    Ok(text)
}

/// What `program --version` says.
pub fn version(program: &Path) -> String {
    output("--version", Command::new(program).arg("--version"), Duration::from_secs(10))
        .map_or_else(|_| format!("{} (no version)", program.display()), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_with_its_value_and_so_does_one_it_started() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 600 & echo $!; wait"]);
        let mut running = Running::start("shell", &mut shell).unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(running.stdout().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        running.adopt(line.trim().parse().unwrap());
        let ids = running.ids.clone();
        assert!(ids.len() == 2 && ids.iter().all(|id| id.lives()));
        drop(running);
        assert!(!ids.iter().any(|id| id.lives()));
        assert!(!ids.iter().any(|id| lock().contains(id)));
    }

    #[test]
    fn a_failure_holds_what_the_process_said() {
        let error = output("sh", Command::new("sh").args(["-c", "echo no >&2; exit 3"]), END).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no"), "{error}");
        let error = output("sleep", Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sleep did not end within 50ms"), "{error}");
    }
}
