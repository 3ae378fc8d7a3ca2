//! A guest's standard output and standard error: structured log lines, bounded in length and in rate.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use pillion_protocol::pod::Pod;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

/// The longest line, in bytes; what is longer continues on the next.
const LINE: usize = 8 << 10;

/// Lines a second that one binding may write for long.
const LINES_PER_SECOND: f64 = 100.0;

/// Lines that it may write at once after it was quiet.
const BURST: f64 = 200.0;

/// Where the guests of one binding write.
#[derive(Clone)]
pub struct Logs(Arc<Binding>);

struct Binding {
    component: String,
    binding: String,
    /// Its pod's namespace and name, where it has one.
    pod: Option<(String, String)>,
    allowance: Mutex<Allowance>,
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    lines: f64,
    refilled: Instant,
    dropped: u64,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Write {
        /// Lines that were dropped since the last one that was written.
        dropped: u64,
    },
    Drop,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, refilled: now, dropped: 0 }
    }

    fn take(&mut self, now: Instant) -> Verdict {
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.lines = (self.lines + passed * LINES_PER_SECOND).min(BURST);
        self.refilled = now;
        if self.lines < 1.0 {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.lines -= 1.0;
        Verdict::Write { dropped: std::mem::take(&mut self.dropped) }
    }
}

impl Logs {
    /// Logs of `component`, called through `binding`, in `pod`.
    pub fn new(component: &str, binding: &str, pod: Option<&Pod>) -> Self {
        let allowance = Mutex::new(Allowance::new(Instant::now()));
        let pod = pod.map(|pod| (pod.namespace.clone(), pod.name.clone()));
        Self(Arc::new(Binding { component: component.into(), binding: binding.into(), pod, allowance }))
    }

    pub(super) fn stdout(&self) -> Stream {
        Stream { logs: self.clone(), name: "stdout" }
    }

    pub(super) fn stderr(&self) -> Stream {
        Stream { logs: self.clone(), name: "stderr" }
    }

    fn line(&self, stream: &'static str, line: &[u8]) {
        let Binding { component, binding, pod, allowance } = &*self.0;
        let (namespace, pod) = pod.as_ref().map(|(namespace, pod)| (namespace.as_str(), pod.as_str())).unzip();
        let verdict = allowance.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Verdict::Write { dropped } = verdict else { return };
        if dropped > 0 {
            tracing::warn!(target: "guest", namespace, pod, component, binding, dropped, "lines of the guest were dropped: it wrote too many");
        }
        // Control characters would let a guest write to the terminal of whoever reads the log.
        let text: String = String::from_utf8_lossy(line)
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
            .collect();
        tracing::info!(target: "guest", namespace, pod, component, binding, stream, "{text}");
    }
}

/// Standard output or standard error of one instance.
pub(super) struct Stream {
    logs: Logs,
    name: &'static str,
}

/// An open stream with the part of a line that has no end yet.
struct Writer {
    logs: Logs,
    name: &'static str,
    partial: Vec<u8>,
}

impl Stream {
    fn open(&self) -> Writer {
        Writer { logs: self.logs.clone(), name: self.name, partial: Vec::new() }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.open())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.open())
    }
}

impl Writer {
    fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            for chunk in text.chunks(LINE) {
                if self.partial.len() + chunk.len() > LINE {
                    self.flush_line();
                }
                self.partial.extend_from_slice(chunk);
            }
            if ends {
                self.flush_line();
            }
        }
    }

    fn flush_line(&mut self) {
        self.logs.line(self.name, &self.partial);
        self.partial.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.partial.is_empty() {
            self.flush_line();
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {}
}

impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate_and_what_was_dropped_is_counted() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let written = (0..1_000).filter(|_| allowance.take(start) != Verdict::Drop).count();
        assert_eq!(written, 200);
        assert_eq!(allowance.take(start + Duration::from_millis(15)), Verdict::Write { dropped: 800 });
        assert_eq!(allowance.take(start + Duration::from_millis(15)), Verdict::Drop);
    }

    #[test]
    fn lines_are_put_together_and_cut_at_the_longest() {
        let mut writer = Stream { logs: Logs::new("c", "b", None), name: "stdout" }.open();
        writer.push(b"half a ");
        assert_eq!(writer.partial, b"half a ");
        writer.push(b"line\nnext");
        assert_eq!(writer.partial, b"next");
        writer.push(&[b'x'; 3 * LINE]);
        assert!(writer.partial.len() <= LINE);
    }
}
