//! The supervisor's children. Both are this program, by the very file that is running, each in a process group of its own so
//! that a terminal's Ctrl-C reaches the supervisor alone.

use std::{
    fs::File,
    io::{self, PipeWriter, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::compiler::{Report, facts::Facts};

/// How long a compilation may take by the clock. Its CPU time is bounded too, but at the lowest class it may not get any.
const COMPILATION: Duration = Duration::from_secs(900);

/// The most that is read of what a compiler says.
const OUTPUT: u64 = 1 << 20;

fn this_program(command: &str) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.arg0("pillion").arg(command).process_group(0);
    // With a backtrace for every error of the engine, a request costs a fifth more.
    program.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    program
}

/// Starts a worker. Its link is its standard input; what it says when a fault ends it, its standard output.
///
/// # Errors
///
/// What the kernel says.
pub fn worker(link: UnixStream, last_words: PipeWriter) -> io::Result<Child> {
    this_program("worker").stdin(OwnedFd::from(link)).stdout(last_words).spawn()
}

/// Runs a compiler to its end. The descriptors are the component to read and the file to write; it gets no others.
///
/// # Errors
///
/// Why there is no native code, for people.
pub fn compile(descriptors: Vec<OwnedFd>) -> Result<Facts, String> {
    let Ok([component, native]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err("a compilation was asked for without its two files".into());
    };
    let start =
        this_program("compiler").stdin(component).stdout(native).stderr(Stdio::piped()).env_clear_but_limits().spawn();
    let mut child = start.map_err(|error| format!("the compiler cannot be started: {error}"))?;
    let said =
        child.stderr.take().map_or_else(|| Ok(String::new()), |stderr| read_until_end(OwnedFd::from(stderr).into()));
    if said.is_err() {
        _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("the compiler cannot be waited for: {error}"))?;
    match said {
        Ok(said) => result(status, &said),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(format!("the compiler was ended: it took more than {} s", COMPILATION.as_secs()))
        }
        Err(error) => Err(format!("the compiler cannot be heard: {error}")),
    }
}

trait ClearEnvironment {
    fn env_clear_but_limits(&mut self) -> &mut Self;
}

impl ClearEnvironment for Command {
    /// A compiler needs nothing of our environment but what sets its limits.
    fn env_clear_but_limits(&mut self) -> &mut Self {
        self.env_clear();
        if let Ok(seconds) = std::env::var(crate::compiler::limits::CPU_SECONDS) {
            self.env(crate::compiler::limits::CPU_SECONDS, seconds);
        }
        self
    }
}

/// Reads what a child says until it has ended; kept is only the beginning.
fn read_until_end(mut stderr: File) -> io::Result<String> {
    let deadline = Instant::now() + COMPILATION;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&stderr.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let read = stderr.read(&mut buffer)?;
        if read == 0 {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        if (said.len() as u64) < OUTPUT {
            said.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
    }
}

fn result(status: ExitStatus, said: &str) -> Result<Facts, String> {
    let report = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    match (status.success(), report) {
        (true, Some(Report::Compiled(facts))) => Ok(facts),
        (_, Some(Report::Refused(reason))) => Err(reason),
        _ => Err(death(status, said)),
    }
}

/// In words, how a compiler died. Its limits show as signals.
fn death(status: ExitStatus, said: &str) -> String {
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    match status.signal().map(|signal| (signal, rustix::process::Signal::from_named_raw(signal))) {
        Some((_, Some(rustix::process::Signal::XCPU))) => {
            "the compiler was ended: it used all the CPU time that it may; the component is too large or made to be slow".into()
        }
        Some((_, Some(rustix::process::Signal::XFSZ))) => "the compiler was ended: its native code is too large".into(),
        Some((signal, _)) => format!("the compiler was ended by signal {signal}: {last}"),
        None => format!("the compiler failed ({status}): {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compilers_death_is_told_in_words() {
        let signalled = |signal| result(ExitStatus::from_raw(signal), "memory allocation failed\n").unwrap_err();
        assert!(signalled(24).contains("all the CPU time"));
        assert!(signalled(6).contains("signal 6: memory allocation failed"));
        assert!(result(ExitStatus::from_raw(0), "").unwrap_err().contains("it said nothing"));
        let refused = "noise\n{\"refused\":\"no HTTP export\"}\n";
        assert_eq!(result(ExitStatus::from_raw(0), refused).unwrap_err(), "no HTTP export");
    }
}
