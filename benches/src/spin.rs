//! A program that spins: what the neighbour bench keeps the cores busy with where it asks what the machine itself costs.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;

use crate::child::Running;

/// Its options.
#[derive(Args)]
pub struct Arguments {
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
}

/// Spins.
pub fn spin(arguments: &Arguments) {
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// One for each core, in the class that `pillion` runs long guests in. They end when this is dropped, and by themselves.
///
/// # Errors
///
/// A program that cannot be started.
pub fn one_each_core(time: Duration) -> anyhow::Result<Vec<Running>> {
    let this = std::env::current_exe().context("this program's own path cannot be read")?;
    let cores = thread::available_parallelism().context("the number of cores is unknown")?;
    let seconds = time.as_secs().to_string();
    let start = |_| {
        let mut command = Command::new("chrt");
        Running::start("spin", command.args(["--idle", "0"]).arg(&this).args(["spin", "--seconds", &seconds]))
    };
    (0..cores.get()).map(start).collect()
}
