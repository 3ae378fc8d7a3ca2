//! What every bench needs to know: which programs, how often, on which cores.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use pillion_sockets::listen;

/// Fewer runs than this are for trying out, not for publishing.
pub const RUNS: usize = 7;

/// The options that all benches share.
#[derive(Args)]
pub struct Options {
    /// The program that is measured [default: release/pillion in the target directory that holds this program]
    #[arg(long, value_name = "FILE", global = true)]
    pillion: Option<PathBuf>,
    /// wasmtime 48.0.8 [default: tools/wasmtime-48.0.8/bin/wasmtime in the cache directory]
    #[arg(long, value_name = "FILE", global = true)]
    wasmtime: Option<PathBuf>,
    /// busybox, the smallest sidecar process [default: from PATH; without one, the plain hyper server]
    #[arg(long, value_name = "FILE", global = true)]
    busybox: Option<PathBuf>,
    /// Holds guests, tools and what is made once [default: pillion in the user's cache directory]
    #[arg(long, value_name = "DIR", env = "PILLION_CACHE", global = true)]
    cache: Option<PathBuf>,
    /// How often everything is measured, in turns; figures are medians
    #[arg(long, value_name = "N", default_value_t = RUNS, global = true)]
    runs: usize,
    /// Two short runs of little: to see whether it works, not for publishing
    #[arg(long, global = true)]
    short: bool,
    /// What goes to standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
    /// Writes the JSON report to this file as well
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Exit code 1 if a figure misses what it must reach
    #[arg(long, global = true)]
    strict: bool,
}

/// The report's form.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The options, resolved.
pub struct Setup {
    /// The program that is measured.
    pub pillion: PathBuf,
    /// The program that it is measured against.
    pub wasmtime: PathBuf,
    /// busybox, if there is one.
    pub busybox: Option<PathBuf>,
    /// Guests, tools and what is made once.
    pub cache: PathBuf,
    /// How often everything is measured.
    pub runs: usize,
    /// Little of everything.
    pub short: bool,
    /// What goes to standard output.
    pub output: Output,
    /// Where the JSON report goes too.
    pub json: Option<PathBuf>,
    /// A missed target is an error.
    pub strict: bool,
}

impl Setup {
    /// Resolves the defaults.
    ///
    /// # Errors
    ///
    /// No program to measure.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        ensure!((1..=1000).contains(&options.runs), "--runs {}: allowed are 1 to 1000", options.runs);
        let cache = match &options.cache {
            Some(cache) => cache.clone(),
            None => user_cache()?,
        };
        let pillion = match &options.pillion {
            Some(pillion) => pillion.clone(),
            None => released_pillion()?,
        };
        ensure!(
            pillion.is_file(),
            "{}: no such program. Build it with `cargo build --release -p pillion-host`, or name it with --pillion",
            pillion.display()
        );
        let wasmtime = options.wasmtime.clone().unwrap_or_else(|| cache.join("tools/wasmtime-48.0.8/bin/wasmtime"));
        let busybox = options.busybox.clone().or_else(|| in_path("busybox"));
        Ok(Self {
            pillion: absolute(&pillion)?,
            wasmtime,
            busybox,
            cache: absolute(&cache)?,
            runs: if options.short { options.runs.min(2) } else { options.runs },
            short: options.short,
            output: options.output,
            json: options.json.clone(),
            strict: options.strict,
        })
    }

    /// A guest by its name.
    ///
    /// # Errors
    ///
    /// One that is not built.
    pub fn guest(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.cache.join("guests").join(format!("{name}.wasm"));
        ensure!(path.is_file(), "{}: no such guest. Build it with `tests/guests/build {name}`", path.display());
        Ok(path)
    }

    /// A directory for what can be made again, inside the cache.
    ///
    /// # Errors
    ///
    /// A directory that cannot be made.
    pub fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.cache.join("bench").join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("{}: create the directory", path.display()))?;
        Ok(path)
    }

    /// A store for components that are few and small, kept between runs.
    ///
    /// # Errors
    ///
    /// A directory that cannot be made.
    pub fn store(&self) -> anyhow::Result<PathBuf> {
        self.directory("store")
    }

    /// The command that measures the same again.
    pub fn command(&self, bench: &str) -> String {
        let short = if self.short { " --short" } else { "" };
        format!("pillion-bench {bench} --runs {}{short}", self.runs)
    }

    /// `full`, or `short` where little is asked for.
    pub fn either<T>(&self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }
}

/// Two cores that this process may use: one for the server, one for who asks it.
///
/// # Errors
///
/// Fewer than two.
pub fn two_cores() -> anyhow::Result<(usize, usize)> {
    let allowed = rustix::thread::sched_getaffinity(None).context("the allowed cores cannot be read")?;
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    match (cores.next(), cores.next()) {
        (Some(server), Some(client)) => Ok((server, client)),
        _ => bail!("two cores are needed: one for the server, one for who asks it"),
    }
}

/// Raises the number of files that this process may open to what the kernel allows; gives that number.
pub fn raise_open_files() -> u64 {
    listen::raise_descriptor_limit();
    listen::descriptor_limit()
}

fn released_pillion() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("this program's own path cannot be read")?;
    let target =
        this.parent().and_then(Path::parent).context("this program is in no target directory: use --pillion")?;
    Ok(target.join("release/pillion"))
}

fn user_cache() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("pillion"))
        .context("neither PILLION_CACHE nor HOME is set: use --cache")
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: no absolute path", path.display()))
}
