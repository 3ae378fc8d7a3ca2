//! A caller that says exactly what it is told, for what no client library would say.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// No test waits longer for bytes, unless it says so.
const WAIT: Duration = Duration::from_secs(20);

/// An HTTP/1.1 connection in bytes.
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// An answer as it was on the wire.
#[derive(Debug)]
pub struct RawAnswer {
    /// Its status.
    pub status: u16,
    /// Its head, with the empty line.
    pub head: String,
    /// Its body as it was sent: with the marks of its chunks.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
            .unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new() })
    }

    /// Connects and sends.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub async fn say(port: u16, bytes: impl AsRef<[u8]>) -> Result<Self> {
        let mut raw = Self::connect(port).await?;
        raw.send(bytes).await?;
        Ok(raw)
    }

    /// Connects, sends and reads one answer.
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn ask(port: u16, bytes: impl AsRef<[u8]>) -> Result<RawAnswer> {
        Self::say(port, bytes).await?.answer().await
    }

    /// Sends.
    ///
    /// # Errors
    ///
    /// A connection that is closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.stream.write_all(bytes.as_ref()).await?)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    ///
    /// A connection that is closed.
    pub async fn shut_sending(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Reads one answer: its head, and as much body as the head says.
    ///
    /// # Errors
    ///
    /// An answer that is not whole.
    pub async fn answer(&mut self) -> Result<RawAnswer> {
        let mut answer = self.head().await?;
        let length = answer.header("content-length").parse::<usize>();
        answer.body = match length {
            Ok(length) => self.take(length).await?,
            Err(_) if answer.header("transfer-encoding") == "chunked" => self.until(b"0\r\n\r\n").await?,
            Err(_) => Vec::new(),
        };
        Ok(answer)
    }

    /// Reads an answer's head.
    ///
    /// # Errors
    ///
    /// No head.
    pub async fn head(&mut self) -> Result<RawAnswer> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status in {head:?}"))?;
        Ok(RawAnswer { status, head, body: Vec::new() })
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    ///
    /// Fewer.
    pub async fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.unread.len() < length {
            self.more().await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    /// Reads up to these bytes, and them.
    ///
    /// # Errors
    ///
    /// They do not come.
    pub async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Ok(self.unread.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }

    /// Reads until the other side closes, or resets, the connection.
    ///
    /// # Errors
    ///
    /// It stays open.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        self.rest_within(WAIT).await
    }

    /// The same, with a time.
    ///
    /// # Errors
    ///
    /// It stays open for longer.
    pub async fn rest_within(&mut self, within: Duration) -> Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.unread);
        // A reset counts as closed: what was read before it is what came.
        let read = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = self.stream.read(&mut buffer).await {
                rest.extend_from_slice(buffer.get(..read).unwrap_or_default());
            }
        };
        let closed = tokio::time::timeout(within, read).await;
        closed.with_context(|| format!("the connection is open after {within:?}; read: {:?}", shown(&rest)))?;
        Ok(rest)
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    async fn more(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        let read = tokio::time::timeout(WAIT, self.stream.read(&mut buffer)).await;
        let so_far = || format!("after {:?}", shown(&self.unread));
        let read =
            read.with_context(|| format!("nothing came within {WAIT:?}")).with_context(so_far)?.with_context(so_far)?;
        if read == 0 {
            bail!("the connection was closed after {:?}", shown(&self.unread));
        }
        self.unread.extend_from_slice(buffer.get(..read).unwrap_or_default());
        Ok(())
    }
}

/// The beginning of bytes, for an error.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..400).unwrap_or(bytes)).into_owned()
}
