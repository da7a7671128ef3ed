//! Forwarding and neighbour entries.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use shoal_model::MacAddr;

use crate::Result;
use crate::netlink::{Netlink, UPSERT, family};

/// A permanent entry that somebody put there on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// A VXLAN link's own table: frames for this address go to that tunnel end.
    Tunnel { index: u32, mac: MacAddr, to: IpAddr },
    /// A bridge's table: this address is behind that port.
    Port { index: u32, mac: MacAddr },
    /// Address resolution.
    Neighbour { index: u32, address: IpAddr, mac: MacAddr },
}

impl Entry {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        let header = &mut message.header;
        let (index, mac, destination) = match *self {
            Self::Tunnel { index, mac, to } => {
                header.family = AddressFamily::Bridge;
                header.flags = NeighbourFlags::Own;
                header.state = NeighbourState::Permanent;
                (index, mac, Some(to))
            }
            Self::Port { index, mac } => {
                header.family = AddressFamily::Bridge;
                header.flags = NeighbourFlags::Controller;
                header.state = NeighbourState::Noarp;
                (index, mac, None)
            }
            Self::Neighbour { index, address, mac } => {
                header.family = family(address);
                header.state = NeighbourState::Permanent;
                (index, mac, Some(address))
            }
        };
        header.ifindex = index;
        message.attributes.extend(destination.map(|address| {
            NeighbourAttribute::Destination(match address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            })
        }));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message
    }

    fn parse(message: &NeighbourMessage) -> Option<Self> {
        let (mut mac, mut destination) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok().map(MacAddr)
                }
                NeighbourAttribute::Destination(address) => destination = parse_address(address),
                _ => {}
            }
        }
        let (index, mac) = (message.header.ifindex, mac?);
        let flags = message.header.flags;
        let permanent = message.header.state == NeighbourState::Permanent;
        match message.header.family {
            AddressFamily::Bridge if flags.contains(NeighbourFlags::Own) && permanent => {
                Some(Self::Tunnel { index, mac, to: destination? })
            }
            AddressFamily::Bridge if message.header.state == NeighbourState::Noarp => {
                Some(Self::Port { index, mac })
            }
            AddressFamily::Inet | AddressFamily::Inet6 if permanent => {
                Some(Self::Neighbour { index, address: destination?, mac })
            }
            _ => None,
        }
    }

    /// What the entry is about, without what it says of it: entries with equal subjects take each
    /// other's place.
    pub(crate) fn subject(&self) -> Self {
        match *self {
            Self::Tunnel { index, mac, .. } => Self::Tunnel { index, mac, to: Ipv4Addr::UNSPECIFIED.into() },
            Self::Port { index, mac } => Self::Port { index, mac },
            Self::Neighbour { index, address, .. } => {
                Self::Neighbour { index, address, mac: MacAddr([0; 6]) }
            }
        }
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Tunnel { mac, to, .. } => format!("forwarding entry {mac} to {to}"),
            Self::Port { mac, .. } => format!("bridge entry {mac}"),
            Self::Neighbour { address, mac, .. } => format!("neighbour entry {address} at {mac}"),
        }
    }
}

/// What is missing of the wanted entries, and which of those held nobody wants, in words.
pub(crate) fn differences(held: &BTreeSet<Entry>, wanted: &BTreeSet<Entry>) -> Vec<String> {
    let missing = wanted.difference(held).map(|entry| format!("fabric: no {}", entry.describe()));
    // A wrong entry about a wanted subject is told as missing already.
    let subjects: BTreeSet<Entry> = wanted.iter().map(Entry::subject).collect();
    let stray = held.iter().filter(|entry| !subjects.contains(&entry.subject()));
    missing.chain(stray.map(|entry| format!("fabric: stray {}", entry.describe()))).collect()
}

fn parse_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        // In bridge tables the family does not tell what kind of address it is.
        NeighbourAddress::Other(bytes) => match bytes.as_slice().try_into() {
            Ok(octets) => Some(IpAddr::V4(Ipv4Addr::from_octets(octets))),
            Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

impl Netlink {
    pub(crate) async fn put_entry(&self, entry: Entry) -> Result<()> {
        let message = RouteNetlinkMessage::NewNeighbour(entry.message());
        self.request(message, UPSERT, || format!("add {}", entry.describe())).await
    }

    pub(crate) async fn remove_entry(&self, entry: Entry) -> Result<()> {
        let message = RouteNetlinkMessage::DelNeighbour(entry.message());
        self.request_removal(message, || format!("remove {}", entry.describe())).await
    }

    /// All permanent entries of the namespace, in the order of their kinds and addresses.
    pub(crate) async fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let messages = self.dump(RouteNetlinkMessage::GetNeighbour(message), "neighbours").await?;
            entries.extend(messages.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => Entry::parse(message),
                _ => None,
            }));
        }
        entries.sort();
        entries.dedup();
        Ok(entries)
    }
}
