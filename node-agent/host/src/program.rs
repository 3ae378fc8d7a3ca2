//! Other programs, run to their end: what they are told, what they say, and for how long.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};

/// The longest line that is kept, in bytes; what is longer is cut.
const LINE: usize = 1 << 20;

/// Hands over each line that comes out of `pipe`, until its end.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] after `within`; what the kernel says.
pub fn lines(pipe: OwnedFd, within: Duration, mut each: impl FnMut(&str)) -> io::Result<()> {
    let (mut pipe, deadline) = (File::from(pipe), Instant::now() + within);
    let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&pipe.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let read = pipe.read(&mut buffer)?;
        for &byte in buffer.get(..read).unwrap_or_default() {
            match byte {
                b'\n' => each(&String::from_utf8_lossy(&std::mem::take(&mut line))),
                _ if line.len() < LINE => line.push(byte),
                _ => {}
            }
        }
        if read == 0 {
            if !line.is_empty() {
                each(&String::from_utf8_lossy(&line));
            }
            return Ok(());
        }
    }
}

/// When a program is told its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell<'a> {
    /// At once.
    AtOnce,
    /// When it has said this line: before, it may not be what it is to be.
    After(&'a str),
}

/// Runs a program to its end: tells it `input`, and hands over each line that it says on standard output.
///
/// # Errors
///
/// A program that cannot be started; [`io::ErrorKind::TimedOut`] after `within`, and then it is ended.
pub fn run(
    mut command: Command,
    input: &[u8],
    tell: Tell<'_>,
    within: Duration,
    each: impl FnMut(&str),
) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + within;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let ended = speak(&mut child, input, tell, within, each).and_then(|()| wait(&mut child, deadline));
    if ended.is_err() {
        _ = child.kill();
        _ = child.wait();
    }
    ended
}

/// One that has said everything may still not end.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    const LOOK: Duration = Duration::from_millis(2);
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status),
            None if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            None => std::thread::sleep(LOOK),
        }
    }
}

fn speak(
    child: &mut Child,
    input: &[u8],
    tell: Tell<'_>,
    within: Duration,
    mut each: impl FnMut(&str),
) -> io::Result<()> {
    let mut stdin = child.stdin.take();
    let mut tell_it = move || match stdin.take().map(|mut stdin| stdin.write_all(input)) {
        // One that ends before it has heard everything says why itself.
        Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    };
    let mut told = Ok(());
    if tell == Tell::AtOnce {
        tell_it()?;
    }
    let hear = |line: &str| match tell {
        Tell::After(greeting) if line == greeting => told = tell_it(),
        _ => each(line),
    };
    child.stdout.take().map_or(Ok(()), |stdout| lines(stdout.into(), within, hear))?;
    told
}

/// Ends this process with the one that started it, which is `parent`.
///
/// # Errors
///
/// A parent that has ended already; what the kernel says.
pub fn end_with(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before it was said: then nobody would tell.
    let now = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get().unsigned_abs());
    if now == parent { Ok(()) } else { Err(io::Error::other("whoever started this process has ended")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, within: Duration) -> io::Result<(ExitStatus, Vec<String>)> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let mut said = Vec::new();
        let status = run(command, input.as_bytes(), Tell::AtOnce, within, |line| said.push(line.to_owned()))?;
        Ok((status, said))
    }

    #[test]
    fn a_program_is_told_and_heard_to_its_end() {
        let (status, said) = shell("cat; printf '\\nlast'; exit 3", "one\ntwo", Duration::from_secs(10)).unwrap();
        assert_eq!((status.code(), said), (Some(3), ["one", "two", "last"].map(String::from).to_vec()));
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        for script in ["exec sleep 60", "exec >/dev/null; exec sleep 60"] {
            let error = shell(script, "", Duration::from_millis(50)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[test]
    fn one_may_be_told_only_when_it_is_ready() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo ready; read word; echo heard $word"]);
        let mut said = Vec::new();
        let hear = |line: &str| said.push(line.to_owned());
        run(command, b"it\n", Tell::After("ready"), Duration::from_secs(10), hear).unwrap();
        assert_eq!(said, ["heard it"]);
    }
}
