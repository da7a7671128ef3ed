//! What the kernel's nf_tables really hold of ours, read straight from it.
//!
//! Changes are made by `nft`; reading goes past it, since every `nft` process lists far more than was
//! asked for, which takes seconds where thousands of ports are published.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_sys::Socket;
use nix::errno::Errno;
use shoal_model::{MacAddr, Protocol};

use crate::netns::Namespace;
use crate::nfnetlink::{self, GENERIC_HEADER, attribute, attributes, find};
use crate::tables::{Elements, Held, Set};
use crate::{Error, Result};

/// The name of the node's tables, in every family.
pub(crate) const TABLE: &str = "shoal";

// Kinds of messages and attributes: `linux/netfilter/nf_tables.h`.
const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;

/// A family of ours by its name in `nft`'s words (`linux/netfilter.h`).
fn family(name: &str) -> u8 {
    match name {
        "netdev" => 5,
        _ => 1,
    }
}

/// The elements of these sets; none where the table does not exist.
pub(crate) async fn elements(namespace: &Namespace, sets: Vec<Set>) -> Result<Held> {
    namespace
        .run(move || {
            let socket = nfnetlink::open()?;
            let read = |set: Set| Ok((set, read_set(&socket, set)?));
            sets.into_iter().map(read).collect()
        })
        .await
}

fn read_set(socket: &Socket, set: Set) -> Result<Elements> {
    let (family_name, _, name) = set.place();
    let which = [attribute(LIST_TABLE, &text(TABLE)), attribute(LIST_SET, &text(name))].concat();
    let bodies = match nfnetlink::dump(socket, GET_ELEMENTS, family(family_name), &which) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(Elements::new()),
        bodies => bodies.map_err(Error::io(format!("list the elements of {name}")))?,
    };
    let (key, value) = layout(set);
    let mut elements = Elements::new();
    for body in &bodies {
        let listed = body.get(GENERIC_HEADER..).and_then(|body| find(body, LIST_ELEMENTS));
        for (_, element, _) in listed.into_iter().flat_map(attributes) {
            let unexpected = || Error::Unexpected(format!("an element of {name}"));
            let data = |kind| find(element, kind).and_then(|data| find(data, DATA_VALUE));
            let last = data(ELEMENT_KEY_END);
            let key = data(ELEMENT_KEY).and_then(|first| key_words(set, key, first, last));
            let key = key.ok_or_else(unexpected)?;
            let value = match value {
                [] => String::new(),
                value => data(ELEMENT_DATA).and_then(|data| words(value, data)).ok_or_else(unexpected)?,
            };
            elements.insert(key, value);
        }
    }
    Ok(elements)
}

/// Names end with a zero byte.
fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// One part of a key or value.
#[derive(Debug, Clone, Copy)]
enum Part {
    Protocol,
    Port,
    Address,
    AddressV6,
    /// The version of IP.
    Family,
    Mac,
    /// A link's name.
    Link,
    /// The network number in a VXLAN header.
    Vni,
    /// A number of that many bytes in the machine's own order.
    Number(usize),
}

impl Part {
    fn length(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Vni => 3,
            Self::Address => 4,
            Self::AddressV6 | Self::Link => 16,
            Self::Family => 1,
            Self::Mac => 6,
            Self::Number(length) => length,
        }
    }

    /// In `nft`'s words.
    fn words(self, bytes: &[u8]) -> Option<String> {
        Some(match self {
            Self::Protocol if bytes == [Protocol::Tcp.number()] => Protocol::Tcp.as_str().to_owned(),
            Self::Protocol if bytes == [Protocol::Udp.number()] => Protocol::Udp.as_str().to_owned(),
            Self::Protocol => bytes.first()?.to_string(),
            Self::Port => u16::from_be_bytes(bytes.try_into().ok()?).to_string(),
            Self::Vni => {
                let [high, middle, low] = *bytes else { return None };
                u32::from_be_bytes([0, high, middle, low]).to_string()
            }
            Self::Address => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
            Self::AddressV6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
            Self::Link => {
                let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                format!("\"{}\"", std::str::from_utf8(name).ok()?)
            }
            Self::Family => match bytes {
                [2] => "ipv4".to_owned(),
                [10] => "ipv6".to_owned(),
                other => other.first()?.to_string(),
            },
            Self::Mac => MacAddr(bytes.try_into().ok()?).to_string(),
            Self::Number(2) => u16::from_ne_bytes(bytes.try_into().ok()?).to_string(),
            Self::Number(_) => u32::from_ne_bytes(bytes.try_into().ok()?).to_string(),
        })
    }
}

/// How keys and values of a set are made up: as `rules.nft` and `return_path.nft` declare them.
fn layout(set: Set) -> (&'static [Part], &'static [Part]) {
    use Part::{Address, AddressV6, Family, Link, Mac, Number, Port, Protocol, Vni};
    match set {
        Set::DataPorts => (&[Port], &[]),
        Set::Tunnels => (&[Port, Vni], &[]),
        Set::Members => (&[Address, Port, Vni], &[]),
        Set::Zones => (&[Mac], &[Number(2)]),
        Set::Marks => (&[Mac], &[Number(4)]),
        Set::Homes => (&[Address, Address], &[]),
        Set::Homes6 => (&[AddressV6, AddressV6], &[]),
        Set::Returns => (&[Number(4)], &[Mac]),
        Set::Ports16 | Set::Ports128 | Set::Ports1024 => (&[Protocol, Port, Number(4)], &[Address, Port]),
        Set::Ports16V6 | Set::Ports128V6 | Set::Ports1024V6 => {
            (&[Protocol, Port, Number(4)], &[AddressV6, Port])
        }
        Set::HostPortsV6 => (&[Protocol, Port], &[AddressV6, Port]),
        Set::HostPorts => (&[Protocol, Port], &[Address, Port]),
        Set::Refused => (&[Family, Protocol, Port], &[]),
        Set::BySource => (&[Protocol, Port, Number(4)], &[Address, Port]),
        Set::BySourceV6 => (&[Protocol, Port, Number(4)], &[AddressV6, Port]),
        Set::HostBound | Set::Bound | Set::Restricted => (&[Protocol, Port], &[]),
        Set::HostBoundAddresses | Set::BoundAddresses | Set::Clients => (&[Protocol, Port, Address], &[]),
        Set::HostBoundAddressesV6 | Set::BoundAddressesV6 | Set::ClientsV6 => {
            (&[Protocol, Port, AddressV6], &[])
        }
        Set::BoundLinks => (&[Protocol, Port, Link], &[]),
        Set::Bridges | Set::Masqueraded | Set::Internal => (&[Link], &[]),
        Set::Open => (&[Link, Link], &[]),
    }
}

/// As [`words`]; of a set of ranges the last part is a network.
fn key_words(set: Set, parts: &[Part], first: &[u8], last: Option<&[u8]>) -> Option<String> {
    let text = words(parts, first)?;
    if !matches!(set, Set::Clients | Set::ClientsV6) {
        return Some(text);
    }
    let length = parts.last()?.length();
    let tail = |bytes: &[u8]| bytes.get(bytes.len().checked_sub(length)?..).map(<[u8]>::to_vec);
    let (first, last) = (tail(first)?, last.map_or_else(|| tail(first), tail)?);
    let common = first.iter().zip(&last).map(|(a, b)| (a ^ b).leading_zeros());
    let bytes = common.clone().take_while(|zeros| *zeros == 8).count();
    let prefix = bytes * 8 + common.clone().nth(bytes).unwrap_or(0) as usize;
    Some(format!("{text}/{prefix}"))
}

/// Parts follow each other at multiples of four bytes.
fn words(parts: &[Part], mut bytes: &[u8]) -> Option<String> {
    let mut all = Vec::new();
    for part in parts {
        all.push(part.words(bytes.get(..part.length())?)?);
        bytes = bytes.get(part.length().next_multiple_of(4)..).unwrap_or_default();
    }
    Some(all.join(" . "))
}

/// What the chains and rules of a table of ours say, in a number; `None` where there is none.
///
/// Rules are compared with what was read right after they had been put, never translated back: the
/// number is good for "is it still the same", and for nothing else.
pub(crate) async fn fingerprint(namespace: &Namespace, family_name: &'static str) -> Result<Option<u64>> {
    namespace
        .run(move || {
            let socket = nfnetlink::open()?;
            let listed = |kind, table| list(&socket, kind, family_name, table);
            let chains = listed(GET_CHAIN, CHAIN_TABLE)?;
            if chains.is_empty() {
                return Ok(None);
            }
            let mut hasher = DefaultHasher::new();
            // A chain's other attributes change with its use.
            for chain in &chains {
                let said = [CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY].map(|kind| find(chain, kind));
                said.hash(&mut hasher);
            }
            for rule in &listed(GET_RULE, RULE_TABLE)? {
                [RULE_CHAIN, RULE_EXPRESSIONS].map(|kind| find(rule, kind)).hash(&mut hasher);
            }
            Ok(Some(hasher.finish()))
        })
        .await
}

/// The attributes of everything of a kind in our table of a family.
fn list(socket: &Socket, kind: u16, family_name: &str, table: u16) -> Result<Vec<Vec<u8>>> {
    let which = if kind == GET_RULE { attribute(table, &text(TABLE)) } else { Vec::new() };
    let bodies = match nfnetlink::dump(socket, kind, family(family_name), &which) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(Vec::new()),
        bodies => bodies.map_err(Error::io("list nftables rules"))?,
    };
    let ours = bodies.into_iter().filter_map(|body| {
        let attributes = body.get(GENERIC_HEADER..)?;
        (find(attributes, table)? == text(TABLE)).then(|| attributes.to_vec())
    });
    Ok(ours.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_at_multiples_of_four_bytes() {
        let (key, value) = layout(Set::Ports16);
        let slot = 3u32.to_ne_bytes();
        let bytes = [&[6, 0, 0, 0, 0x1f, 0x40, 0, 0], &slot[..]].concat();
        assert_eq!(words(key, &bytes).as_deref(), Some("tcp . 8000 . 3"));
        assert_eq!(words(value, &[10, 0, 0, 5, 0, 80, 0, 0]).as_deref(), Some("10.0.0.5 . 80"));
        let (key, _) = layout(Set::Members);
        let bytes = [192, 0, 2, 9, 0x12, 0xb5, 0, 0, 0, 0x10, 1, 0];
        assert_eq!(words(key, &bytes).as_deref(), Some("192.0.2.9 . 4789 . 4097"));
        assert_eq!(words(key, &bytes[..8]), None, "too short");
        let (key, _) = layout(Set::DataPorts);
        assert_eq!(words(key, &[0x12, 0xb5]).as_deref(), Some("4789"), "alone without padding");
    }
}
