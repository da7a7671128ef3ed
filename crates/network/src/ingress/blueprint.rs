//! What a table says about the ingress, for one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_model::{NetworkId, NetworkTable, NodeEntry, NodeId};

use super::{MARK, MARK_MASK, tunnel_mac};
use crate::link::Tunnel;
use crate::mtu::Size;
use crate::tables::{Elements, Held, Set};
use crate::{Error, Remote, Result};

/// Everything the node must build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blueprint {
    pub(super) network: NetworkId,
    /// The same on every node.
    pub(super) gateway: Ipv4Net,
    /// This node's end of the ingress tunnel.
    pub(super) own: Ipv4Addr,
    /// The same in IPv6, where the network and the machine have it.
    pub(super) v6: Option<OwnV6>,
    pub(super) tunnel: Tunnel,
    pub(super) mtu: u32,
    pub(super) size: Size,
    /// The other nodes, by their address on the network.
    pub(super) peers: BTreeMap<Ipv4Addr, Peer>,
    /// Tasks on other nodes, with their node's address on the network.
    pub(super) tasks: BTreeMap<IpAddr, Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnV6 {
    pub(super) gateway: Ipv6Net,
    pub(super) own: Ipv6Addr,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) remote: Remote,
    pub(super) address_v6: Option<Ipv6Addr>,
    /// Where its own programs' connections may come from.
    addresses: BTreeSet<IpAddr>,
}

impl Peer {
    fn of(address: Ipv4Addr, node: &NodeEntry, has_v6: bool) -> Self {
        let mut addresses = node.addresses.clone();
        addresses.insert(node.data_path_address);
        Self {
            remote: Remote { mac: tunnel_mac(address), data_path_address: node.data_path_address },
            address_v6: node.address_v6.filter(|_| has_v6).and_then(v6),
            addresses,
        }
    }
}

impl Blueprint {
    /// `has_v6`: the machine speaks IPv6.
    pub(crate) fn of(
        table: &NetworkTable,
        own: &NodeId,
        underlay: Ipv4Addr,
        mtu: u32,
        has_v6: bool,
    ) -> Result<Self> {
        let invalid =
            |what: &str| Error::InvalidTable { network: table.network.clone(), what: what.to_owned() };
        let mut gateways = table.config.pools.iter().filter_map(|pool| {
            IpNet::new(pool.gateway?, pool.subnet.prefix_len()).ok().filter(|net| pool.subnet.contains(net))
        });
        let gateway_v6 = gateways.clone().find_map(|gateway| match gateway {
            IpNet::V6(gateway) => Some(gateway),
            IpNet::V4(_) => None,
        });
        let gateway = gateways.find_map(|gateway| match gateway {
            IpNet::V4(gateway) => Some(gateway),
            IpNet::V6(_) => None,
        });
        let own_entry = table.nodes.get(own);
        let own_v6 = own_entry.and_then(|node| node.address_v6).and_then(v6);
        let v6 = gateway_v6.zip(own_v6).filter(|_| has_v6).map(|(gateway, own)| OwnV6 { gateway, own });
        let peers = table.nodes.iter().filter(|(id, _)| *id != own);
        let peers = peers.filter_map(|(_, node)| {
            let address = address_of(node)?;
            Some((address, Peer::of(address, node, v6.is_some())))
        });
        let elsewhere = table.endpoints.values().filter(|endpoint| endpoint.node != *own);
        let tasks = elsewhere.flat_map(|endpoint| {
            let home = table.nodes.get(&endpoint.node).and_then(address_of);
            let addresses = [Some(endpoint.address), endpoint.address_v6.filter(|_| v6.is_some())];
            let addresses = addresses.into_iter().flatten();
            home.into_iter().flat_map(move |home| addresses.clone().map(move |at| (at.addr(), home)))
        });
        Ok(Self {
            network: table.network.clone(),
            gateway: gateway.ok_or_else(|| invalid("no IPv4 subnet with a gateway"))?,
            own: own_entry.and_then(address_of).ok_or_else(|| invalid("this node has no address on it"))?,
            v6,
            tunnel: Tunnel { vni: table.config.vni, local: underlay, port: table.config.data_path_port },
            mtu,
            size: Size::of(&table.config),
            peers: peers.collect(),
            tasks: tasks.collect(),
        })
    }

    /// The bridge's addresses, with the subnet of each.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (IpNet, IpNet)> + use<> {
        let v6 = self.v6.map(|v6| IpNet::V6(v6.gateway));
        [Some(IpNet::V4(self.gateway)), v6].into_iter().flatten().map(|address| (address.trunc(), address))
    }

    /// The tunnel's.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = IpNet> + use<> {
        let v6 = self.v6.map(|v6| IpNet::from(IpAddr::V6(v6.own)));
        [Some(IpNet::from(IpAddr::V4(self.own))), v6].into_iter().flatten()
    }

    /// What the other nodes tell this one by.
    pub(super) fn number(&self) -> u32 {
        node_number(self.gateway, self.own)
    }

    /// The elements that tell the other nodes apart.
    pub(super) fn elements(&self) -> Held {
        let mut held = Held::from(super::ELEMENTS.map(|set| (set, Elements::new())));
        let mut put = |set, key: String, value: String| held.entry(set).or_default().insert(key, value);
        for (address, peer) in &self.peers {
            let (number, mac) = (node_number(self.gateway, *address), peer.remote.mac);
            let mark = MARK | number;
            put(Set::Zones, mac.to_string(), (number & 0xffff).to_string());
            put(Set::Marks, mac.to_string(), mark.to_string());
            put(Set::Returns, mark.to_string(), mac.to_string());
        }
        for (task, node) in &self.tasks {
            let set = if task.is_ipv4() { Set::Homes } else { Set::Homes6 };
            let homes = self.peers.get(node).into_iter().flat_map(|peer| &peer.addresses);
            for home in homes.filter(|home| home.is_ipv4() == task.is_ipv4()) {
                put(set, format!("{home} . {task}"), String::new());
            }
        }
        held
    }

    /// The way to a task on another node: the address of that node in the task's version of IP.
    pub(super) fn way_to(&self, task: IpAddr, node: Ipv4Addr) -> Option<IpAddr> {
        match task {
            IpAddr::V4(_) => Some(node.into()),
            IpAddr::V6(_) => self.peers.get(&node)?.address_v6.map(IpAddr::V6),
        }
    }
}

fn address_of(node: &NodeEntry) -> Option<Ipv4Addr> {
    match node.address?.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(net: IpNet) -> Option<Ipv6Addr> {
    match net.addr() {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// The node's place in the subnet: a number that is the same everywhere and never needs to be agreed
/// on. Zones have 16 bits, so a larger subnet than a /16 may make two nodes share one.
fn node_number(gateway: Ipv4Net, address: Ipv4Addr) -> u32 {
    u32::from(address) & u32::from(gateway.hostmask()) & !MARK_MASK
}
