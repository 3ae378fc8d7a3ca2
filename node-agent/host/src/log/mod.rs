//! What this program's processes say on standard error, and what guests say there.
//!
//! Whoever reads standard error may be slow, and must hold up nobody: lines are queued, and a thread of its own writes them. What the
//! program itself says goes first and is given up last; guests may write so many bytes, and what they write beyond is counted.
//!
//! | file | holds |
//! |---|---|
//! | `allowance` | so much in a time |
//! | `budget` | how much guests may write |
//! | `lanes` | lines that are not written yet |
//! | `lines` | the queue between whoever says a line and the thread that writes it |
//! | `origin` | who a guest is |

mod allowance;
mod budget;
mod lanes;
mod lines;
mod origin;

use std::{io, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use self::lines::Sink;
pub(crate) use self::origin::tell;
pub use self::{
    allowance::{Allowance, Rate},
    lines::{Account, Lines},
    origin::Origin,
};

/// How long the end of a process waits for its last lines to be written.
pub const END: Duration = Duration::from_secs(1);

/// What is logged, and how. Logs go to standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    /// Lines for people, or JSON for machines.
    pub format: LogFormat,
    /// Which lines, in the syntax of `tracing_subscriber::EnvFilter`; `None` for the format's default.
    pub filter: Option<String>,
}

/// Lines for people, or JSON for machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: guests' lines, and what is wrong.
    #[default]
    Text,
    /// For machines: everything from `info` on.
    Json,
}

/// This process's log, for as long as it lives: its end waits for the last lines.
pub struct Logging(Arc<Lines>);

impl Log {
    /// Starts logging in this process, which is confined before: a thread begins.
    ///
    /// # Errors
    ///
    /// A thread that cannot be started.
    pub fn start(&self) -> io::Result<Logging> {
        // What these say of calls out names no component; the lines "call out …" say the same and do.
        let default = match self.format {
            LogFormat::Text => "warn,guest=info,wasmtime_wasi_http=off,rustls=off",
            LogFormat::Json => "info,wasmtime_wasi_http=off,rustls=off",
        };
        let lines = Lines::start(io::stderr())?;
        let filter = tracing_subscriber::EnvFilter::new(self.filter.as_deref().unwrap_or(default));
        let format = tracing_subscriber::fmt().with_writer(Sink(Arc::clone(&lines))).with_env_filter(filter);
        match self.format {
            LogFormat::Text => format.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
            LogFormat::Json => format.json().flatten_event(true).init(),
        }
        Ok(Logging(lines))
    }
}

impl Logging {
    /// Where guests write.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.0
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush(END);
    }
}
