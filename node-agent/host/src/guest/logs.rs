//! A guest's standard output and standard error: lines of the log, bounded in length.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use crate::log::Account;

/// The longest line, in bytes; what is longer continues on the next.
const LINE: usize = 8 << 10;

/// Where the guests of one binding write.
#[derive(Clone)]
pub struct Logs(Arc<Account>);

impl Logs {
    /// Logs on this account.
    pub fn new(account: Arc<Account>) -> Self {
        Self(account)
    }

    pub(super) fn stdout(&self) -> Stream {
        Stream { logs: self.clone(), name: "stdout" }
    }

    pub(super) fn stderr(&self) -> Stream {
        Stream { logs: self.clone(), name: "stderr" }
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
        self.logs.0.write(self.name, &self.partial);
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
    use super::*;
    use crate::log::{Lines, Origin};

    #[test]
    fn lines_are_put_together_and_cut_at_the_longest() {
        let origin = Origin { component: "c".parse().unwrap(), part: None, binding: "b".parse().unwrap(), pod: None };
        let logs = Logs::new(Lines::start(std::io::sink()).unwrap().account(Arc::new(origin)));
        let mut writer = Stream { logs, name: "stdout" }.open();
        writer.push(b"half a ");
        assert_eq!(writer.partial, b"half a ");
        writer.push(b"line\nnext");
        assert_eq!(writer.partial, b"next");
        writer.push(&[b'x'; 3 * LINE]);
        assert!(writer.partial.len() <= LINE);
    }
}
