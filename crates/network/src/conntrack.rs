//! Connection tracking entries: found and deleted, so that a client whose backend is gone gets another
//! one, or is told, with its next packet instead of after a time-out.
//!
//! The messages are those of `linux/netfilter/nfnetlink_conntrack.h`; a dump answers one message per
//! entry, and an entry is deleted by its original tuple, zone and id.

use std::net::IpAddr;

use netlink_sys::Socket;
use nix::errno::Errno;
use shoal_model::Protocol;

use crate::netns::Namespace;
use crate::nfnetlink::{
    self, FLAGS_ACK, GENERIC_HEADER, MESSAGE_ERROR, attribute, attributes, message, messages, result,
};
use crate::{Error, Result};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const STATUS_MASK: u16 = 26;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE: u16 = 2;
const PROTOCOL_DESTINATION: u16 = 3;

/// `IPS_SEEN_REPLY`
const ANSWERED: u32 = 1 << 1;

const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// As IP headers say it.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u8,
}

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
    /// Something has come back.
    pub(crate) answered: bool,
    family: u8,
    /// What names the entry to the kernel: attributes as it gave them.
    name: Vec<u8>,
}

/// Which flows are looked at: there may be very many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    All,
    /// A kernel that cannot select shows all.
    Unanswered,
}

impl Look {
    fn filter(self) -> Vec<u8> {
        match self {
            Self::All => Vec::new(),
            Self::Unanswered => {
                [attribute(STATUS, &[0; 4]), attribute(STATUS_MASK, &ANSWERED.to_be_bytes())].concat()
            }
        }
    }
}

/// Deletes the flows for which `doomed` holds; returns how many there were.
pub(crate) async fn delete(
    namespace: &Namespace,
    look: Look,
    doomed: impl Fn(&Flow) -> bool + Send + 'static,
) -> Result<usize> {
    namespace
        .run(move || {
            let socket = nfnetlink::open()?;
            let listed = nfnetlink::dump(&socket, GET, 0, &look.filter());
            let listed = listed.map_err(Error::io("list tracked connections"))?;
            let flows: Vec<Flow> = listed.iter().filter_map(|body| parse(body)).collect();
            let mut count = 0;
            for flow in flows.iter().filter(|flow| doomed(flow)) {
                delete_one(&socket, flow).map_err(Error::io("delete a tracked connection"))?;
                count += 1;
            }
            Ok(count)
        })
        .await
}

fn delete_one(socket: &Socket, flow: &Flow) -> std::io::Result<()> {
    socket.send(&message(DELETE, FLAGS_ACK, flow.family, &flow.name), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    for message in messages(&datagram) {
        if message.kind == MESSAGE_ERROR {
            match result(message.body) {
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn parse(body: &[u8]) -> Option<Flow> {
    let family = *body.first()?;
    let (mut original, mut reply, mut status, mut name) = (None, None, 0, Vec::new());
    for (kind, value, whole) in attributes(body.get(GENERIC_HEADER..)?) {
        match kind {
            TUPLE_ORIGINAL => original = parse_tuple(value),
            TUPLE_REPLY => reply = parse_tuple(value),
            STATUS => status = value.first_chunk().map_or(0, |status| u32::from_be_bytes(*status)),
            _ => {}
        }
        if matches!(kind, TUPLE_ORIGINAL | ZONE | ID) {
            name.extend(whole);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    let answered = status & ANSWERED != 0;
    Some(Flow { original: original?, reply: reply?, answered, family, name })
}

fn parse_tuple(body: &[u8]) -> Option<Tuple> {
    let (mut addresses, mut protocol, mut ports) = (Vec::new(), None, [0; 2]);
    for (kind, value, _) in attributes(body) {
        match kind {
            // Source and destination, in this order, in either family.
            TUPLE_IP => addresses.extend(attributes(value).filter_map(|(_, value, _)| parse_address(value))),
            TUPLE_PROTOCOL => {
                for (kind, value, _) in attributes(value) {
                    match kind {
                        PROTOCOL_NUMBER => protocol = value.first().copied(),
                        PROTOCOL_SOURCE => ports[0] = parse_port(value)?,
                        PROTOCOL_DESTINATION => ports[1] = parse_port(value)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let [source, destination] = addresses.try_into().ok()?;
    let [source_port, destination_port] = ports;
    Some(Tuple { source, source_port, destination, destination_port, protocol: protocol? })
}

fn parse_address(value: &[u8]) -> Option<IpAddr> {
    match <[u8; 4]>::try_from(value) {
        Ok(octets) => Some(octets.into()),
        Err(_) => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
    }
}

fn parse_port(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|port| u16::from_be_bytes(*port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: u16 = 1 << 15;

    fn tuple(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
        let ip = [attribute(1, &source), attribute(2, &destination)].concat();
        let protocol =
            [attribute(1, &[UDP]), attribute(2, &9u16.to_be_bytes()), attribute(3, &port.to_be_bytes())]
                .concat();
        [attribute(TUPLE_IP | NESTED, &ip), attribute(TUPLE_PROTOCOL | NESTED, &protocol)].concat()
    }

    #[test]
    fn an_entry_keeps_the_name_the_kernel_gave_it() {
        let original = attribute(TUPLE_ORIGINAL | NESTED, &tuple([1, 1, 1, 1], [2, 2, 2, 2], 53));
        let reply = attribute(TUPLE_REPLY | NESTED, &tuple([10, 0, 0, 5], [1, 1, 1, 1], 9));
        let id = attribute(ID, &[1, 2, 3, 4]);
        let parse = |status: u32| {
            let status = attribute(STATUS, &status.to_be_bytes());
            parse(&[vec![2, 0, 0, 0], original.clone(), reply.clone(), status, id.clone()].concat())
        };
        let flow = parse(ANSWERED).unwrap();
        assert!(flow.answered && !parse(!ANSWERED).unwrap().answered);
        assert_eq!(flow.original.destination_port, 53);
        assert_eq!(flow.reply.source, IpAddr::from([10, 0, 0, 5]));
        assert_eq!(flow.name, [original, id].concat());
    }

    #[test]
    fn cut_off_messages_are_no_entries() {
        let body =
            [vec![2, 0, 0, 0], attribute(TUPLE_ORIGINAL, &tuple([1, 1, 1, 1], [2, 2, 2, 2], 53))].concat();
        for length in 0..body.len() {
            assert_eq!(parse(&body[..length]), None);
        }
    }
}
