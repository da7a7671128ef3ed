//! Links: the messages that make them, and what is read back.

use std::net::Ipv4Addr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoPortData, InfoPortKind, InfoVeth,
    InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use shoal_model::{MacAddr, MacvlanMode};

use crate::netns::Namespace;

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) controller: Option<u32>,
    pub(crate) tunnel: Option<Tunnel>,
}

/// The fixed settings of a VXLAN link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) vni: u32,
    /// The node's own end.
    pub(crate) local: Ipv4Addr,
    pub(crate) port: u16,
}

impl Link {
    pub(crate) fn parse(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            tunnel: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(MacAddr),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => link.tunnel = infos.iter().find_map(parse_tunnel),
                _ => {}
            }
        }
        Some(link)
    }
}

fn parse_tunnel(info: &LinkInfo) -> Option<Tunnel> {
    let LinkInfo::Data(InfoData::Vxlan(settings)) = info else { return None };
    let (mut vni, mut local, mut port) = (None, Ipv4Addr::UNSPECIFIED, 0);
    for setting in settings {
        match setting {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Local(address) => local = *address,
            InfoVxlan::Port(number) => port = *number,
            _ => {}
        }
    }
    Some(Tunnel { vni: vni?, local, port })
}

fn message(name: &str, mac: Option<MacAddr>, mtu: u32, kind: InfoKind, data: InfoData) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(mtu)];
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    message
}

/// A bridge that is up. One that was given an address has no carrier as long as it has no port.
pub(crate) fn bridge(name: &str, mac: Option<MacAddr>, mtu: u32) -> LinkMessage {
    // Group membership is not tracked: there is no querier, and floods are decided port by port.
    let settings = vec![InfoBridge::MulticastSnooping(false)];
    message(name, mac, mtu, InfoKind::Bridge, InfoData::Bridge(settings))
}

/// A VXLAN link that knows no default destination and learns nothing. Requested from the node's own
/// namespace, its UDP socket stays there, wherever the link itself is put.
pub(crate) fn vxlan(name: &str, mac: Option<MacAddr>, mtu: u32, tunnel: Tunnel) -> LinkMessage {
    let settings = vec![
        InfoVxlan::Id(tunnel.vni),
        InfoVxlan::Local(tunnel.local),
        InfoVxlan::Port(tunnel.port),
        InfoVxlan::Learning(false),
    ];
    message(name, mac, mtu, InfoKind::Vxlan, InfoData::Vxlan(settings))
}

/// An interface with a link address of its own on another one, put into a sandbox.
pub(crate) fn macvlan(
    name: &str,
    mac: Option<MacAddr>,
    mtu: u32,
    parent: u32,
    mode: MacvlanMode,
    namespace: &Namespace,
) -> LinkMessage {
    let mode = match mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    };
    let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
    let mut message = message(name, mac, mtu, InfoKind::MacVlan, data);
    message.attributes.push(LinkAttribute::Link(parent));
    message.attributes.push(LinkAttribute::NetNsFd(namespace.fd()));
    // With its address it comes up: only then does it tell its neighbours.
    message.header.flags = LinkFlags::empty();
    message.header.change_mask = LinkFlags::empty();
    message
}

/// One end of a pair of links.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<MacAddr>,
}

/// A pair of links that is up: one end here as a port of the bridge `controller`, the peer in another
/// namespace.
pub(crate) fn veth(
    here: &End<'_>,
    controller: u32,
    peer: &End<'_>,
    namespace: &Namespace,
    mtu: u32,
) -> LinkMessage {
    let mut inside = LinkMessage::default();
    inside.attributes = vec![
        LinkAttribute::IfName(peer.name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(namespace.fd()),
    ];
    inside.attributes.extend(peer.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let data = InfoData::Veth(InfoVeth::Peer(inside));
    let mut message = message(here.name, here.mac, mtu, InfoKind::Veth, data);
    message.attributes.push(LinkAttribute::Controller(controller));
    message
}

/// Settings of a bridge's port.
pub(crate) fn port(settings: Vec<InfoBridgePort>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)),
    ])
}
