//! The program, running.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Component, locked, place, process, program, throttled::Throttled, wait_until};

/// From the start until every binding is decided. The slowest guest takes most of it, once.
const START: Duration = Duration::from_secs(120);

/// From SIGTERM to SIGKILL when a test is over.
const END: Duration = Duration::from_secs(2);

/// A host that is to be started.
pub struct Builder {
    components: Vec<Component>,
    ports: BTreeMap<String, u16>,
    args: Vec<OsString>,
    variables: Vec<(String, String)>,
    store: Option<PathBuf>,
    drain_timeout: &'static str,
    addresses: Option<u64>,
}

/// `pillion run`, as a child process. It ends when this is dropped.
pub struct Host {
    child: Child,
    folder: TempDir,
    ports: BTreeMap<String, u16>,
    events: Arc<Mutex<Vec<Value>>>,
    log: Arc<Mutex<Vec<String>>>,
    log_rate: Arc<AtomicU64>,
}

impl Builder {
    /// With arguments of `pillion run`.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With a variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// With a store of its own.
    #[must_use]
    pub fn store(mut self, store: &Path) -> Self {
        self.store = Some(store.to_owned());
        self
    }

    /// With a component at a port that the test has chosen.
    #[must_use]
    pub fn port(mut self, component: &str, port: u16) -> Self {
        self.ports.insert(component.into(), port);
        self
    }

    /// With a time for requests in flight at the end; 1 s otherwise.
    #[must_use]
    pub fn drain_timeout(mut self, time: &'static str) -> Self {
        self.drain_timeout = time;
        self
    }

    /// With so many GiB of addresses, as by `ulimit -v`; its children, too.
    #[must_use]
    pub fn addresses(mut self, gib: u64) -> Self {
        self.addresses = Some(gib);
        self
    }

    /// Starts it and waits until every binding is decided.
    ///
    /// # Errors
    ///
    /// A program that ends before, with what it said.
    pub async fn start(self) -> Result<Host> {
        let lock = self.store.is_none().then(lock_shared_store).transpose()?;
        let mut host = self.spawn()?;
        wait_until("an event `serving`", START, || {
            let over = host.event("serving").is_some() || host.ended().is_some();
            over.then_some(())
        })
        .await?;
        drop(lock);
        if let Some(status) = host.ended() {
            bail!("pillion run ended ({status})\n{}", host.said());
        }
        Ok(host)
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    ///
    /// A program that is not there.
    pub fn spawn(mut self) -> Result<Host> {
        let folder = tempfile::tempdir()?;
        let resources = folder.path().join("components");
        fs::create_dir(&resources)?;
        for component in &self.components {
            fs::write(resources.join(format!("{}.yaml", component.name())), component.yaml())?;
            let port = place::free_port()?;
            self.ports.entry(component.name().into()).or_insert(port);
        }
        let store = self.store.map_or_else(place::shared_store, Ok)?;
        let mut command = match self.addresses {
            None => Command::new(program::binary()?),
            Some(gib) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &(gib << 20).to_string()]).arg(program::binary()?);
                shell
            }
        };
        for variable in program::VARIABLES {
            command.env_remove(variable);
        }
        command.args(["run", "-o", "json", "--log-format", "json", "--drain-timeout", self.drain_timeout, "--store"]);
        command.arg(store);
        if !self.components.is_empty() {
            let sidecars: Vec<_> = self.ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
            command.arg("-f").arg(&resources).arg("--sidecars").arg(sidecars.join(", "));
        }
        command.args(&self.args).envs(self.variables);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (events, log, log_rate) = (Arc::default(), Arc::default(), Arc::default());
        // A line that is no event is kept as text: tests that look for it say so.
        let event = |line: String| serde_json::from_str(&line).unwrap_or(Value::String(line));
        collect(child.stdout.take(), Arc::clone(&events), event);
        let stderr = child.stderr.take().map(|pipe| Throttled::new(pipe, Arc::clone(&log_rate)));
        collect(stderr, Arc::clone(&log), |line| line);
        Ok(Host { child, folder, ports: self.ports, events, log, log_rate })
    }
}

impl Host {
    /// A host of these components, each at a free port.
    pub fn of(components: impl IntoIterator<Item = Component>) -> Builder {
        Builder {
            components: components.into_iter().collect(),
            ports: BTreeMap::new(),
            args: Vec::new(),
            variables: Vec::new(),
            store: None,
            drain_timeout: "1s",
            addresses: None,
        }
    }

    /// A host of both faults guests, `faults-p2` and `faults-p3`, each changed by `set`.
    ///
    /// # Errors
    ///
    /// Guests or a program that were not built.
    pub async fn of_faults(set: impl Fn(Component) -> Component) -> Result<Self> {
        let components = crate::FAULTS.map(|name| Component::guest(name, name).map(&set));
        Self::of(components.into_iter().collect::<Result<Vec<_>>>()?).start().await
    }

    /// The port of a component.
    ///
    /// # Errors
    ///
    /// A component that this host was not given.
    pub fn port(&self, component: &str) -> Result<u16> {
        self.ports.get(component).copied().with_context(|| format!("{component} has no port in this test"))
    }

    /// A folder that lives as long as the host; the components' YAML files are in `components/` in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything on standard output so far: events, and as strings lines that are none.
    pub fn events(&self) -> Vec<Value> {
        locked(&self.events).clone()
    }

    /// All events of one kind so far.
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// The first event of one kind.
    pub fn event(&self, kind: &str) -> Option<Value> {
        locked(&self.events).iter().find(|event| event["event"] == kind).cloned()
    }

    /// Waits for an event.
    ///
    /// # Errors
    ///
    /// No such event within the time.
    pub async fn wait_for(&self, what: &str, within: Duration, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_until(what, within, || locked(&self.events).iter().find(|event| is(event)).cloned()).await;
        found.with_context(|| self.said())
    }

    /// Lines on standard error so far.
    pub fn log(&self) -> Vec<String> {
        locked(&self.log).clone()
    }

    /// Reads standard error at so many bytes a second from now on; at 0 as fast as it comes.
    pub fn read_log_at(&self, bytes_per_second: u64) {
        self.log_rate.store(bytes_per_second, Relaxed);
    }

    /// Lines of guests so far, as JSON: `component`, `binding`, `stream`, `message`.
    pub fn guest_lines(&self) -> Vec<Value> {
        let lines = self.log();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["target"] == "guest")
            .collect()
    }

    /// The end of what it said, for people.
    fn said(&self) -> String {
        let last = |lines: Vec<String>| lines.into_iter().rev().take(30).rev().collect::<Vec<_>>().join("\n");
        let events = self.events().iter().map(Value::to_string).collect();
        format!("its last events:\n{}\nits last lines:\n{}", last(events), last(self.log()))
    }

    /// The supervisor's process id.
    pub fn supervisor(&self) -> u32 {
        self.child.id()
    }

    /// The current worker's process id.
    ///
    /// # Errors
    ///
    /// No worker so far.
    pub fn worker(&self) -> Result<u32> {
        let last = self.events_of("worker").pop().context("there was no worker event")?;
        Ok(u32::try_from(last.get("pid").and_then(Value::as_u64).context("a worker event without a pid")?)?)
    }

    /// Sends a signal to the supervisor.
    ///
    /// # Errors
    ///
    /// A host that has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.supervisor(), signal)
    }

    /// How the supervisor ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the supervisor's end; everything that it wrote has been read then.
    ///
    /// # Errors
    ///
    /// It does not end within the time.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = wait_until("the end of pillion run", within, || self.ended()).await;
        let status = status.with_context(|| self.said())?;
        // The readers hold these until they have seen the end of the pipes.
        let read = || (Arc::strong_count(&self.events) == 1 && Arc::strong_count(&self.log) == 1).then_some(());
        wait_until("the end of what it wrote", Duration::from_secs(5), read).await?;
        Ok(status)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let worker = self.worker().ok();
        if self.ended().is_none() {
            _ = self.signal(Signal::TERM);
            let end = Instant::now() + END;
            while self.ended().is_none() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
        }
        _ = self.child.kill();
        _ = self.child.wait();
        // The worker ends with its supervisor; one that does not must not outlive the test.
        let Some(worker) = worker else { return };
        let end = Instant::now() + END;
        while process::runs(worker) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        if process::runs(worker) && process::arguments(worker).starts_with("pillion worker") {
            _ = process::signal(worker, Signal::KILL);
        }
        if thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// Collects lines on a thread of its own, until the pipe's end.
fn collect<T: Send + 'static>(
    pipe: Option<impl Read + Send + 'static>,
    lines: Arc<Mutex<Vec<T>>>,
    read: impl Fn(String) -> T + Send + 'static,
) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = read(String::from_utf8_lossy(&line).into_owned());
            locked(&lines).push(line);
        }
    });
}

/// One test at a time starts a host with the shared store: two would both compile what is not there yet.
fn lock_shared_store() -> Result<File> {
    let store = place::shared_store()?;
    let beside = store.with_extension("lock");
    fs::create_dir_all(beside.parent().unwrap_or(&store))?;
    let file = File::create(beside)?;
    file.lock()?;
    Ok(file)
}
