//! `pillion compile`: native code ahead of time, by the same compiler child as the node's.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::Context;
use pillion_protocol::{digest::Digest, text::plain};
use serde::Serialize;

use super::{Output, StoreArgs, output, say};
use crate::{engine::settings::World, scheduler::cores, store::Library, supervisor::child};

/// Compiles components ahead of time into the store.
#[derive(clap::Args)]
pub(super) struct Compile {
    /// Component files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// How results are written
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Compiled<'a> {
    file: &'a Path,
    digest: Digest,
    world: World,
    native_bytes: u64,
    /// False: native code was there.
    compiled: bool,
    seconds: f64,
}

fn compile<'a>(library: &Library, file: &'a Path) -> anyhow::Result<Compiled<'a>> {
    let began = Instant::now();
    let artifact = library.add(file)?;
    let found = library.native(&artifact, false);
    let compiled = found.is_none();
    let native = match found {
        Some(native) => native,
        None => {
            let job = library.job(&artifact)?;
            let facts = child::compile(job.descriptors()?.into()).map_err(anyhow::Error::msg)?;
            library.finish(&artifact, job, facts)?;
            library.native(&artifact, true).context("the native code has gone")?
        }
    };
    let (world, native_bytes) = (native.world, native.size);
    Ok(Compiled {
        file,
        digest: artifact.digest,
        world,
        native_bytes,
        compiled,
        seconds: began.elapsed().as_secs_f64(),
    })
}

impl Compiled<'_> {
    fn print(&self, output: Output) {
        match output {
            Output::Json => _ = say::json(self),
            Output::Text => {
                let Self { file, digest, world, native_bytes, compiled, seconds } = self;
                let how = if *compiled { format!("compiled in {seconds:.2} s") } else { "was compiled before".into() };
                let file = file.display();
                say::out(format_args!("{file}: {world}, {how}, {native_bytes} bytes of native code, {digest}"));
            }
        }
    }
}

impl Compile {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let library = Library::open(&self.store.path()?)?;
        let progress = output::progress(self.files.len());
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            while let Some(file) = self.files.get(next.fetch_add(1, Relaxed)) {
                progress.set_message(plain(&file.display().to_string()).into_owned());
                let compiled = compile(&library, file).with_context(|| file.display().to_string());
                progress.suspend(|| match compiled {
                    Ok(compiled) => compiled.print(self.output),
                    Err(error) => {
                        failed.store(true, Relaxed);
                        say::err(format_args!("error: {error:#}"));
                    }
                });
                progress.inc(1);
            }
        };
        thread::scope(|scope| {
            for _ in 0..cores().min(self.files.len()) {
                scope.spawn(work);
            }
        });
        progress.finish_and_clear();
        Ok(if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
