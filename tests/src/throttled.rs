//! A pipe that is read slowly.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// What is read at once.
const PIECE: usize = 4 << 10;

/// Reads no more than so many bytes a second.
pub(crate) struct Throttled<R> {
    inner: R,
    /// 0 for as fast as they come.
    rate: Arc<AtomicU64>,
}

impl<R> Throttled<R> {
    pub(crate) fn new(inner: R, rate: Arc<AtomicU64>) -> Self {
        Self { inner, rate }
    }
}

impl<R: Read> Read for Throttled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return self.inner.read(buffer);
        }
        let piece = buffer.len().min(PIECE);
        let read = self.inner.read(buffer.get_mut(..piece).unwrap_or_default())?;
        thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
        Ok(read)
    }
}
