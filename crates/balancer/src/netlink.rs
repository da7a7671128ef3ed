//! A few raw netlink requests: messages small enough to be written out here.

use std::io;

use netlink_sys::{Socket, SocketAddr};

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const DUMP: u16 = 0x300;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A socket of one netlink family, in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn change(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.exchange(kind, REQUEST | ACK | flags, body, |_| ())
    }

    /// Sends one request and hands every message of the answer to `each`.
    pub(crate) fn dump(&self, kind: u16, body: &[u8], each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(kind, REQUEST | DUMP, body, each)
    }

    /// Asks for one object and hands its message to `each`.
    pub(crate) fn query(&self, kind: u16, body: &[u8], each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(kind, REQUEST | ACK, body, each)
    }

    fn exchange(&self, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        let len = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // sequence and sender: one request at a time on this socket
        message.extend(body);
        self.socket.send(&message, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if read_answer(&datagram, &mut each)? {
                return Ok(());
            }
        }
    }
}

/// Reads the messages of one datagram; `true` when the answer is complete.
fn read_answer(mut rest: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "netlink message cut short");
    while !rest.is_empty() {
        let (len, kind) = header(rest).ok_or_else(short)?;
        let message = rest.get(HEADER..len).ok_or_else(short)?;
        match kind {
            ERROR | DONE => {
                let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(true) };
            }
            _ => each(message),
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    (len >= HEADER).then_some((len, kind))
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cut_short_is_an_error_and_not_a_panic() {
        let mut whole = Vec::new();
        whole.extend(20_u32.to_ne_bytes());
        whole.extend(DONE.to_ne_bytes());
        whole.extend([0; 14]);
        assert!(read_answer(&whole, &mut |_| ()).unwrap());
        for len in 1..whole.len() {
            assert!(read_answer(&whole[..len], &mut |_| ()).is_err(), "{len}");
        }
        whole[0] = 3;
        assert!(read_answer(&whole, &mut |_| ()).is_err(), "a length shorter than its header");
    }

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut message = Vec::new();
        put_attribute(&mut message, 7, b"abcde");
        assert_eq!(message.len(), 12);
        put_attribute(&mut message, 8, b"f");
        assert_eq!(attribute(&message, 7), Some(&b"abcde"[..]));
        assert_eq!(attribute(&message, 8), Some(&b"f"[..]));
        assert_eq!(attribute(&message, 9), None);
        assert_eq!(attribute(&[0; 8], 9), None, "an attribute shorter than its header");
    }
}
