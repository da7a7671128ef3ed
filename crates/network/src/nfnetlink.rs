//! Netfilter's netlink, as far as it is needed here: requests small enough to be written out, answers
//! read attribute by attribute. All functions act on the namespace the calling thread is in.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use crate::{Error, Result};

/// Without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;
/// Of a message (`nlmsghdr` and `nfgenmsg`) and of an attribute.
const HEADER: usize = 16;
pub(crate) const GENERIC_HEADER: usize = 4;
pub(crate) const ATTRIBUTE_HEADER: usize = 4;

pub(crate) const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const FLAGS_DUMP: u16 = 0x301;
pub(crate) const FLAGS_ACK: u16 = 0x005;
/// What is listed was changed meanwhile (`NLM_F_DUMP_INTR`).
const FLAG_INTERRUPTED: u16 = 0x10;
/// A list that is changed all the time is taken as it comes.
const ATTEMPTS: usize = 8;

/// A socket for requests that are answered one at a time.
pub(crate) fn open() -> Result<Socket> {
    let opened = || {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(socket)
    };
    opened().map_err(Error::io("open netfilter's netlink"))
}

/// The bodies of all messages in the answer to "list all of this kind".
pub(crate) fn dump(
    socket: &Socket,
    kind: u16,
    family: u8,
    attributes: &[u8],
) -> std::io::Result<Vec<Vec<u8>>> {
    let mut attempt = 1;
    loop {
        let (bodies, interrupted) = dump_once(socket, kind, family, attributes)?;
        if !interrupted || attempt == ATTEMPTS {
            return Ok(bodies);
        }
        attempt += 1;
    }
}

fn dump_once(
    socket: &Socket,
    kind: u16,
    family: u8,
    attributes: &[u8],
) -> std::io::Result<(Vec<Vec<u8>>, bool)> {
    socket.send(&message(kind, FLAGS_DUMP, family, attributes), 0)?;
    let (mut bodies, mut interrupted) = (Vec::new(), false);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for Message { kind, flags, body } in messages(&datagram) {
            interrupted |= flags & FLAG_INTERRUPTED != 0;
            match kind {
                MESSAGE_DONE => match result(body) {
                    Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {
                        return Ok((bodies, true));
                    }
                    outcome => return outcome.map(|()| (bodies, interrupted)),
                },
                MESSAGE_ERROR => result(body)?,
                _ => bodies.push(body.to_vec()),
            }
        }
    }
}

pub(crate) fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + GENERIC_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// An attribute, padded to four bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The error in an acknowledgement, if it is one.
pub(crate) fn result(body: &[u8]) -> std::io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(std::io::Error::from_raw_os_error(-code)),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// One message of a datagram.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) body: &'a [u8],
}

pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*rest.get(6..)?.first_chunk()?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, body })
    })
}

/// The attributes in a body: kind, value, and the whole with its header.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & TYPE_MASK;
        let whole = rest.get(..length)?;
        let value = whole.get(ATTRIBUTE_HEADER..)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn find(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body).find(|(kind, _, _)| *kind == wanted).map(|(_, value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_message_and_no_attribute() {
        let whole = message(7, FLAGS_ACK, 2, &attribute(1, b"abcde"));
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0);
        }
        let read = messages(&whole).next().unwrap();
        assert_eq!((read.kind, read.body[0]), (7, 2));
        assert_eq!(find(&read.body[GENERIC_HEADER..], 1), Some(&b"abcde"[..]));
        assert_eq!(find(&read.body[GENERIC_HEADER..], 2), None);
        assert_eq!(find(&[3, 0, 1, 0], 1), None, "an attribute shorter than its header");
    }
}
