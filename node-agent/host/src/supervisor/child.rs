//! The supervisor's children. All are this program, by the very file that is running, each in a process group of its own so
//! that a terminal's Ctrl-C reaches the supervisor alone.

use std::{
    io::{self, PipeWriter},
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use crate::{
    compiler::{Report, facts::Facts},
    program::{self, Tell},
    registry::message::{Failure, GREETING, Pulled, Request, Step, Word},
};

/// How long a compilation may take by the clock. Its CPU time is bounded too, but at the lowest class it may not get any.
const COMPILATION: Duration = Duration::from_secs(900);

/// How long a pull may take, whatever the registry does.
const PULL: Duration = Duration::from_secs(900);

/// The most that is kept of what a compiler says.
const OUTPUT: usize = 1 << 20;

fn this_program(command: &str) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.arg0("pillion").arg(command).process_group(0);
    // With a backtrace for every error of the engine, a request costs a fifth more.
    program.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    program
}

/// Proxies are for registries: a puller's, which may have a password in them.
fn without_proxies(program: &mut Command) -> &mut Command {
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"] {
        program.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    program
}

/// A child that ends with this process, whatever ends it.
fn helper(command: &str) -> Command {
    let mut program = this_program(command);
    program.arg(std::process::id().to_string());
    program
}

/// Starts a worker. Its link is its standard input; what it says when a fault ends it, its standard output.
///
/// # Errors
///
/// What the kernel says.
pub fn worker(link: UnixStream, last_words: PipeWriter) -> io::Result<Child> {
    without_proxies(&mut this_program("worker")).stdin(OwnedFd::from(link)).stdout(last_words).spawn()
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
        helper("compiler").stdin(component).stdout(native).stderr(Stdio::piped()).env_clear_but_limits().spawn();
    let mut child = start.map_err(|error| format!("the compiler cannot be started: {error}"))?;
    let mut said = String::new();
    let hear = |line: &str| {
        if said.len() < OUTPUT {
            said += line;
            said += "\n";
        }
    };
    let heard = child.stderr.take().map_or(Ok(()), |stderr| program::lines(stderr.into(), COMPILATION, hear));
    if heard.is_err() {
        _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("the compiler cannot be waited for: {error}"))?;
    match heard {
        Ok(()) => result(status, &said),
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

/// Starts a follower of control. It is told on its standard input, and says on its standard output.
///
/// # Errors
///
/// What the kernel says.
pub fn follower() -> io::Result<Child> {
    without_proxies(&mut helper("follower")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}

/// Runs a puller to its end; `hear` is told of progress and warnings.
///
/// # Errors
///
/// Why the artifact is not in the store.
pub fn pull(request: &Request, mut hear: impl FnMut(&Word)) -> Result<Pulled, Failure> {
    let failed = |problem: String| Failure {
        image: request.reference.to_string(),
        registry: request.reference.registry().to_owned(),
        step: Step::Pull,
        problem,
        passes: true,
    };
    let asked = serde_json::to_vec(request).map_err(|error| failed(error.to_string()))?;
    let mut last = None;
    let words = |line: &str| match serde_json::from_str(line) {
        Ok(word @ (Word::Progress { .. } | Word::Warning(_))) => hear(&word),
        Ok(word) => last = Some(word),
        Err(_) => {}
    };
    let ended = program::run(helper("puller"), &asked, Tell::After(GREETING), PULL, words);
    match (last, ended) {
        (Some(Word::Pulled(pulled)), _) => Ok(pulled),
        (Some(Word::Failed(failure)), _) => Err(failure),
        (_, Ok(status)) => Err(failed(format!("the puller died ({status})"))),
        (_, Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
            Err(failed(format!("the puller was ended: it took more than {} s", PULL.as_secs())))
        }
        (_, Err(error)) => Err(failed(format!("the puller cannot be run: {error}"))),
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
