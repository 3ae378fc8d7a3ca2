//! `pillion-cni`: a chained CNI plugin (specification 0.3.0 to 1.1.0). Runtimes start it for every pod on the node.
//!
//! A pod without the annotation `pillion.dev/sidecars` costs nothing but this process: what came before in the chain is printed,
//! and nobody is asked. For one with it, the plugin opens the pod's network namespace, hands it with the annotation to the keeper,
//! and waits until the ports are bound. It never talks to the API server and has no configuration but its entry in the conflist.
//!
//! | file | holds |
//! |---|---|
//! | [`input`] | the environment and standard input, as the specification has them |
//! | [`output`] | results and errors |
//! | [`keeper`] | the conversation with the keeper |

#![forbid(unsafe_code)]

mod input;
mod keeper;
mod output;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use pillion_protocol::keeper::{Add, Answer, Call};

use crate::{
    input::{Command, Config, Environment},
    output::Failure,
};

/// How long a pod's start may wait for the keeper: the kubelet tries again.
const ADD: Duration = Duration::from_millis(4_500);

/// How long a pod's end may. Without an answer the keeper finds out by itself that the namespace is gone.
const DEL: Duration = Duration::from_secs(1);

/// The most bytes that are read of the configuration. A pod's annotations are part of it, 256 KiB at most.
const INPUT: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().take(INPUT).read_to_string(&mut text);
    let done = read.map_err(|error| Failure::input(&error)).and_then(|_| run(|name| std::env::var(name).ok(), &text));
    let (printed, code) = match &done {
        Ok(result) => (result.clone(), ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&input::version_in(&text)), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(printed.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what the runtime asks for and gives what is to be printed.
fn run(variable: impl Fn(&str) -> Option<String>, text: &str) -> Result<String, Failure> {
    let command = Command::read(&variable)?;
    if command == Command::Version {
        return Ok(output::versions());
    }
    let config = Config::read(text);
    match command {
        Command::Add => add(&Environment::read(&variable)?, &config?),
        Command::Del => {
            // It always succeeds: an error would keep the pod from going away.
            if let (Ok(environment), Ok(config)) = (Environment::read(&variable), config) {
                del(environment, &config);
            }
            Ok(String::new())
        }
        // Whether endpoints are there is compared by the keeper, again and again. STATUS must not depend on it: the node would not
        // be ready, and our own replacement could not start.
        Command::Check | Command::Status | Command::Gc | Command::Version => Ok(String::new()),
    }
}

fn add(environment: &Environment, config: &Config<'_>) -> Result<String, Failure> {
    let Some(result) = config.previous else { return Err(Failure::not_chained()) };
    let Some(sidecars) = config.sidecars()? else { return Ok(result.get().to_owned()) };
    let path = environment.netns.as_deref().ok_or_else(|| Failure::environment("CNI_NETNS is not set"))?;
    let netns = File::open(path).map_err(|error| Failure::netns(path, &error))?;
    let (pod, sandbox) = (environment.pod.clone()?, environment.sandbox.clone());
    let call = Call::Add(Add { pod, sandbox, netns: without_links(path), sidecars, wait: config.wait()?, late: false });
    match keeper::ask(&config.socket, call, Some(netns.as_fd()), ADD)? {
        Answer::Done => Ok(result.get().to_owned()),
        Answer::Refused(why) => Err(Failure::refused(why)),
        Answer::Status(_) => Err(Failure::refused("the keeper answered another question".into())),
    }
}

/// The path with its folder's links followed: `/var/run` is one on the node, and perhaps not where the keeper is.
fn without_links(path: &str) -> PathBuf {
    let path = Path::new(path);
    let real = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    real().unwrap_or_else(|| path.into())
}

fn del(environment: Environment, config: &Config<'_>) {
    if config.is_ours() {
        // What cannot be told the keeper finds out by itself.
        _ = keeper::ask(&config.socket, Call::Del { sandbox: environment.sandbox }, None, DEL);
    }
}
