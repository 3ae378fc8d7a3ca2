//! The servers that are measured: `pillion run`, `wasmtime serve`, the plain hyper server, busybox httpd.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::{child::Running, client, proc, proc::Memory, setup::Setup};

/// How long a server may take to start; large components are compiled in it.
const START: Duration = Duration::from_secs(120);

/// How long ten thousand bindings may take.
const START_MANY: Duration = Duration::from_secs(900);

/// A component for `pillion run`.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its file.
    pub wasm: PathBuf,
    /// `spec.limits`.
    pub limits: Value,
    /// `spec.instances`.
    pub instances: Value,
}

/// A `pillion run`, with its worker.
pub struct Pillion {
    running: Running,
    events: Receiver<Said>,
    ports: HashMap<String, u16>,
    worker: u32,
}

/// An event of `pillion run`.
#[derive(Clone, Debug)]
pub struct Said {
    /// When it was read.
    pub at: Instant,
    /// What SPECIFICATION.md §3 says of it.
    pub event: Value,
}

/// A server that is one process and serves one thing.
pub struct Server {
    running: Running,
    /// Where it listens.
    pub port: u16,
}

impl Component {
    /// One with every setting at its default.
    pub fn new(name: &str, wasm: PathBuf) -> Self {
        Self { name: name.to_owned(), wasm, limits: json!({}), instances: json!({}) }
    }

    /// The same with these limits.
    pub fn limits(mut self, limits: Value) -> Self {
        self.limits = limits;
        self
    }

    /// The resource. JSON is YAML.
    fn resource(&self) -> Value {
        json!({
            "apiVersion": "pillion.dev/v1alpha1",
            "kind": "Component",
            "metadata": {"name": self.name},
            "spec": {"image": self.wasm, "limits": self.limits, "instances": self.instances},
        })
    }
}

/// `program`, on one core if that is said.
pub fn on_core(core: Option<usize>, program: &Path) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(core.to_string()).arg(program);
            command
        }
    }
}

impl Pillion {
    /// Starts `pillion run` with these components, each with a binding of its own, and waits until all are ready.
    ///
    /// # Errors
    ///
    /// A component that fails.
    pub fn start(setup: &Setup, store: &Path, components: &[Component], core: Option<usize>) -> anyhow::Result<Self> {
        let catalog = tempfile::tempdir().context("a temporary directory cannot be made")?;
        let file = catalog.path().join("components.yaml");
        write_catalog(&file, components).with_context(|| file.display().to_string())?;
        let mut pillion = Self::spawn(Self::command(setup, store, core).arg("-f").arg(&file))?;
        // The file is read by then, and not again.
        pillion.wait_until_serving(if components.len() > 100 { START_MANY } else { START })?;
        Ok(pillion)
    }

    /// Starts `pillion run` with these arguments, and waits until all is ready; gives what it said on the way.
    ///
    /// # Errors
    ///
    /// A component that fails.
    pub fn start_with(setup: &Setup, store: &Path, arguments: &[String]) -> anyhow::Result<(Self, Vec<Said>)> {
        let mut command = Self::command(setup, store, None);
        // Settings and credentials of whoever runs the bench are not for its registry.
        command.args(arguments).env_remove("PILLION_REGISTRIES").env("DOCKER_CONFIG", store);
        let mut pillion = Self::spawn(&mut command)?;
        let said = pillion.wait_until_serving(START)?;
        Ok((pillion, said))
    }

    fn command(setup: &Setup, store: &Path, core: Option<usize>) -> Command {
        let mut command = on_core(core, &setup.pillion);
        command.args(["run", "-o", "json", "--address", "127.0.0.1", "--store"]).arg(store);
        command
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let mut running = Running::start("pillion run", command)?;
        let stdout = running.stdout().context("pillion run has no standard output")?;
        let (sender, events) = channel();
        thread::Builder::new().name("events".into()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let at = Instant::now();
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({"event": "no JSON", "line": line}));
                if sender.send(Said { at, event }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { running, events, ports: HashMap::new(), worker: 0 })
    }

    /// Waits until every binding is decided; gives what was said on the way.
    fn wait_until_serving(&mut self, time: Duration) -> anyhow::Result<Vec<Said>> {
        let until = Instant::now() + time;
        let mut all = Vec::new();
        loop {
            match self.events.recv_timeout(Duration::from_millis(100)) {
                Ok(said) => {
                    let serving = self.take(&said.event)?;
                    all.push(said);
                    if serving {
                        return Ok(all);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.running.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.running.wait(Duration::from_secs(10))?;
                    bail!("pillion run ended ({status}): {}", self.running.last_errors());
                }
            }
            ensure!(Instant::now() < until, "pillion run did not serve within {time:?}");
        }
    }

    /// Takes in an event; true if every binding is decided.
    fn take(&mut self, event: &Value) -> anyhow::Result<bool> {
        let text = |field: &str| event.get(field).and_then(Value::as_str).unwrap_or_default();
        let number = |field: &str| event.get(field).and_then(Value::as_u64).unwrap_or_default();
        match text("event") {
            "worker" => {
                ensure!(number("restarts") == 0, "the worker has died: {}", self.running.last_errors());
                self.worker = u32::try_from(number("pid"))?;
                self.running.adopt(self.worker);
            }
            "ready" => _ = self.ports.insert(text("binding").to_owned(), u16::try_from(number("port"))?),
            "failed" => bail!("{event}"),
            "serving" => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    /// That no worker has died since the start.
    ///
    /// # Errors
    ///
    /// One has.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.running.check()?;
        while let Ok(said) = self.events.try_recv() {
            self.take(&said.event)?;
        }
        Ok(())
    }

    /// The port of the binding `name`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn port(&self, name: &str) -> anyhow::Result<u16> {
        self.ports.get(name).copied().with_context(|| format!("pillion run did not say where {name} is"))
    }

    /// The worker's process number.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// Supervisor and worker.
    fn pids(&self) -> [u32; 2] {
        [self.running.pid(), self.worker]
    }

    /// Memory of both.
    ///
    /// # Errors
    ///
    /// One of them has gone.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of_all(&self.pids())
    }

    /// CPU time of both.
    ///
    /// # Errors
    ///
    /// One of them has gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.pids().into_iter().map(proc::cpu_time).sum()
    }
}

impl Server {
    /// `wasmtime serve`, with its own arguments before the component.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn wasmtime(setup: &Setup, wasm: &Path, arguments: &[&str], core: Option<usize>) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = on_core(core, &setup.wasmtime);
        command.args(["serve", "-Scli", "--addr", &format!("127.0.0.1:{port}")]).args(arguments).arg(wasm);
        Self { running: Running::start("wasmtime serve", &mut command)?, port }.answering()
    }

    /// The plain hyper server.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn hyper(core: Option<usize>) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("this program's own path cannot be read")?;
        let mut command = on_core(core, &this);
        let mut running = Running::start("hyper-hello", command.arg("hyper-hello"))?;
        let mut line = String::new();
        let stdout = running.stdout().context("hyper-hello has no standard output")?;
        BufReader::new(stdout.take(16)).read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("hyper-hello: {}", running.last_errors()))?;
        Self { running, port }.answering()
    }

    /// A static web server of busybox, which serves `folder`.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn busybox(busybox: &Path, folder: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(busybox);
        command.args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"]).arg(folder);
        let mut server = Self { running: Running::start("busybox httpd", &mut command)?, port };
        // It answers in HTTP/1.0 from a child process; that it listens is enough.
        let until = Instant::now() + START;
        while std::net::TcpStream::connect(client::address(port)).is_err() {
            server.running.check()?;
            ensure!(Instant::now() < until, "busybox httpd does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn answering(mut self) -> anyhow::Result<Self> {
        let answering = client::wait_for(self.port, "/", START);
        answering.or_else(|error| self.running.check().and(Err(error)))?;
        Ok(self)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Its CPU time.
    ///
    /// # Errors
    ///
    /// It has gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        proc::cpu_time(self.running.pid())
    }
}

fn write_catalog(file: &Path, components: &[Component]) -> anyhow::Result<()> {
    let mut catalog = std::io::BufWriter::new(std::fs::File::create(file)?);
    for component in components {
        writeln!(catalog, "---\n{}", component.resource())?;
    }
    Ok(catalog.flush()?)
}

/// A port that nobody listens on now.
///
/// # Errors
///
/// There is none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
