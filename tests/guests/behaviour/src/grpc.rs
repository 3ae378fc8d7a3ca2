//! gRPC by hand: frames of a five-byte prefix (flag, length), and the one message
//! `message Ping { string text = 1; uint32 count = 2; }`.

/// gRPC status codes that the guests answer.
pub const OK: &str = "0";
pub const INVALID_ARGUMENT: &str = "3";
pub const INTERNAL: &str = "13";

/// The headers of every answer. `trailer`: HTTP/1.1 servers send no trailers that it does not name.
pub const HEADERS: &[(&str, &str)] = &[("content-type", "application/grpc"), ("trailer", "grpc-status, grpc-message")];

const PREFIX: usize = 5;
const TEXT: u64 = 1 << 3 | 2;
const COUNT: u64 = 2 << 3;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ping {
    pub text: String,
    pub count: u32,
}

/// The peer sent what is no frame or no message: compressed, cut or malformed.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Ping {
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut ping = Self::default();
        while !bytes.is_empty() {
            match varint(&mut bytes)? {
                TEXT => {
                    let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Malformed)?;
                    let (text, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
                    ping.text = String::from_utf8(text.to_vec()).map_err(|_| Malformed)?;
                    bytes = rest;
                }
                COUNT => ping.count = varint(&mut bytes)? as u32,
                _ => return Err(Malformed),
            }
        }
        Ok(ping)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text.len() + 12);
        if !self.text.is_empty() {
            push_varint(&mut out, TEXT);
            push_varint(&mut out, self.text.len() as u64);
            out.extend_from_slice(self.text.as_bytes());
        }
        if self.count != 0 {
            push_varint(&mut out, COUNT);
            push_varint(&mut out, self.count.into());
        }
        out
    }

    /// The message in its frame.
    pub fn frame(&self) -> Vec<u8> {
        let message = self.encode();
        let mut out = Vec::with_capacity(PREFIX + message.len());
        out.push(0);
        out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        out.extend_from_slice(&message);
        out
    }
}

/// Takes a body's bytes as they come and gives messages.
#[derive(Default)]
pub struct Deframer {
    pending: Vec<u8>,
}

impl Deframer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next message that is there as a whole.
    pub fn next_message(&mut self) -> Result<Option<Ping>, Malformed> {
        let Some((&[flag, a, b, c, d], rest)) = self.pending.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        if flag != 0 {
            return Err(Malformed);
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let ping = Ping::decode(message)?;
        self.pending.drain(..PREFIX + length);
        Ok(Some(ping))
    }

    /// At the body's end: nothing may be left.
    pub fn finish(self) -> Result<(), Malformed> {
        self.pending.is_empty().then_some(()).ok_or(Malformed)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame_in_single_bytes() {
        let ping = Ping { text: "x".repeat(300), count: 70_000 };
        let mut deframer = Deframer::default();
        for byte in ping.frame() {
            assert_eq!(deframer.next_message(), Ok(None));
            deframer.push(&[byte]);
        }
        assert_eq!(deframer.next_message(), Ok(Some(ping)));
        assert_eq!(deframer.finish(), Ok(()));
    }

    #[test]
    fn a_compressed_frame_is_malformed() {
        let mut deframer = Deframer::default();
        deframer.push(&[1, 0, 0, 0, 0]);
        assert_eq!(deframer.next_message(), Err(Malformed));
    }
}
