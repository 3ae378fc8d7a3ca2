//! A link between two processes: messages in JSON over a Unix socket, with descriptors beside them.
//!
//! A frame is four bytes of length (big endian) and so many bytes of JSON. Descriptors travel beside the four bytes, which are
//! sent by a call of their own: the kernel never merges what has descriptors with what came before.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Mutex,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message between processes that trust each other. Others say how much they read.
const MAX_MESSAGE: usize = 16 << 20;

/// The most descriptors beside one message between processes that trust each other; the kernel allows 253.
pub const MAX_DESCRIPTORS: usize = 250;

/// The most descriptors that are taken from others.
const FEW_DESCRIPTORS: usize = 16;

/// One end of the link.
pub struct Link {
    socket: UnixStream,
    /// The longest message that is read, and the most descriptors beside it.
    longest: usize,
    descriptors: usize,
    /// Two threads' frames must not mix.
    sending: Mutex<()>,
}

/// A message with its descriptors.
#[derive(Debug)]
pub struct Incoming<T> {
    /// The message.
    pub message: T,
    /// The descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

impl Link {
    /// A link over one end of a socket pair.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, longest: MAX_MESSAGE, descriptors: MAX_DESCRIPTORS, sending: Mutex::new(()) }
    }

    /// A link to a process that may send anything: what is longer than `longest` bytes is refused before it is read.
    pub fn bounded(socket: UnixStream, longest: usize) -> Self {
        Self { socket, longest, descriptors: FEW_DESCRIPTORS, sending: Mutex::new(()) }
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Another handle, for the thread that receives.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let Self { longest, descriptors, .. } = *self;
        Ok(Self { socket: self.socket.try_clone()?, longest, descriptors, sending: Mutex::new(()) })
    }

    /// Sends a message. Waits while the other side does not read.
    ///
    /// # Errors
    ///
    /// The other side is gone, or the message too long.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let too_long =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes is too long", body.len()));
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE).ok_or_else(too_long)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} descriptors are too many", descriptors.len()),
            ));
        }
        let _sending = self.sending.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let header = length.to_be_bytes();
        // Four bytes are sent whole or not at all.
        sendmsg(&self.socket, &[IoSlice::new(&header)], &mut ancillary, SendFlags::NOSIGNAL)?;
        (&self.socket).write_all(&body)
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// The other side is gone, or sends what is no message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Incoming<T>> {
        let mut header = [0; 4];
        let mut descriptors = Vec::new();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let room = rustix::cmsg_space!(ScmRights(FEW_DESCRIPTORS));
        let few = self.descriptors <= FEW_DESCRIPTORS;
        let mut ancillary = RecvAncillaryBuffer::new(if few { space.split_at_mut(room).0 } else { &mut space });
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut header)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if received.bytes != header.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let text = format!(
                "a message came with more than {} descriptors, or this process has none left",
                self.descriptors
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if length > self.longest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long")));
        }
        let mut body = vec![0; length];
        (&self.socket).read_exact(&mut body)?;
        Ok(Incoming { message: serde_json::from_slice(&body)?, descriptors })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn messages_arrive_in_order_each_with_its_own_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, mut receiver) = (Link::new(ours), Link::new(theirs));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        sender.send(&"first", &[]).unwrap();
        sender.send(&"second", &[file.as_fd()]).unwrap();
        sender.send(&"third", &[]).unwrap();
        drop(sender);
        let mut next = || receiver.receive::<String>();
        assert_eq!(next().unwrap().message, "first");
        let mut second = next().unwrap();
        assert_eq!((second.message.as_str(), second.descriptors.len()), ("second", 1));
        let received = File::from(second.descriptors.remove(0));
        assert_eq!(received.metadata().unwrap().len(), 18);
        assert!(next().unwrap().descriptors.is_empty());
        assert!(next().is_err(), "the other side is gone");
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_memory_is_taken() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let error = Link::new(theirs).receive::<String>().unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
