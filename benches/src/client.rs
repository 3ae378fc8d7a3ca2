//! One request at a time, timed where it meets the socket.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `pillion-error`, where the host answered in the guest's stead.
    pub reason: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer and how long it took.
#[derive(Debug)]
pub struct Timed {
    /// From just before the request was written to the first byte of the answer.
    pub first_byte: Duration,
    /// The answer.
    pub answer: Answer,
}

/// Where a server on loopback listens.
pub fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The bytes of a GET.
pub fn request(port: u16, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n").into_bytes()
}

/// Asks once, on a new connection that was open for `settle` before the request was written.
///
/// # Errors
///
/// Anything but an answer.
pub fn ask(port: u16, path: &str, settle: Duration) -> anyhow::Result<Timed> {
    let mut stream = TcpStream::connect_timeout(&address(port), PATIENCE).with_context(|| format!("port {port}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = request(port, path);
    thread::sleep(settle);
    let mut read = Vec::with_capacity(4096);
    let before = Instant::now();
    stream.write_all(&request)?;
    let mut first_byte = None;
    loop {
        let more = receive(&mut stream, &mut read)?;
        let first_byte = *first_byte.get_or_insert_with(|| before.elapsed());
        if let Some(answer) = Answer::parse(&read)? {
            return Ok(Timed { first_byte, answer });
        }
        ensure!(more, "port {port}: the connection was closed after {} bytes", read.len());
    }
}

/// Asks until `port` answers with 200.
///
/// # Errors
///
/// It does not within `time`.
pub fn wait_for(port: u16, path: &str, time: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    loop {
        let error = match ask(port, path, Duration::ZERO) {
            Ok(timed) if timed.answer.status == 200 => return Ok(()),
            Ok(timed) => anyhow::anyhow!("{}", timed.answer),
            Err(error) => error,
        };
        if Instant::now() > until {
            return Err(error.context(format!("port {port} does not answer")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Appends what has arrived; false at the end.
pub fn receive(stream: &mut TcpStream, to: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    to.extend_from_slice(buffer.get(..count).unwrap_or_default());
    Ok(count > 0)
}

impl Answer {
    /// Reads an answer of which `bytes` are there; `None` if it is not complete. Enough for the servers that are measured: a
    /// content-length, or chunks of which only the end is looked for.
    ///
    /// # Errors
    ///
    /// What is no answer.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            ensure!(bytes.len() < 64 << 10, "no end of the head within 64 KiB");
            return Ok(None);
        };
        let (head, body) = bytes.split_at(end + 4);
        let head = std::str::from_utf8(head).context("the head is not ASCII")?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let Some(status) = status else { bail!("no HTTP answer: {:?}", head.lines().next()) };
        let header = |name: &str| {
            let mut headers = lines.clone().filter_map(|line| line.split_once(':'));
            headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        let body = match header("content-length") {
            Some(length) => body.get(..length.parse::<usize>().with_context(|| format!("content-length {length:?}"))?),
            None => body.ends_with(b"0\r\n\r\n").then_some(body),
        };
        let reason = header("pillion-error").map(str::to_owned);
        Ok(body.map(|body| Self { status, reason, body: body.to_vec() }))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.status)?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_body_is() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\ndate: x\r\n\r\nhello\n";
        for length in 0..whole.len() {
            assert_eq!(Answer::parse(&whole[..length]).unwrap(), None, "{length}");
        }
        let answer = Answer::parse(whole).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"hello\n".as_slice()));
        let chunked =
            b"HTTP/1.1 504 X\r\npillion-error: cpu-limit\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        let answer = Answer::parse(chunked).unwrap().unwrap();
        assert_eq!(answer.to_string(), "status 504 (cpu-limit)");
        assert!(Answer::parse(b"SSH-2.0\r\n\r\n").is_err());
    }
}
