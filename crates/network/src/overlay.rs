//! One overlay network on one node: a namespace that holds a bridge and a VXLAN link.
//!
//! The namespace keeps the host's bridge filters and equal subnets of other networks out. Nothing is
//! flooded and nothing is learned: the VXLAN link has an entry per remote endpoint, and its port of
//! the bridge answers for their addresses itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::link::{InfoBridgePort, LinkAttribute};
use shoal_model::{MacAddr, NetworkTable, NodeId};

use crate::link::{self, Link, Tunnel};
use crate::mtu::Size;
use crate::neighbour::{self, Entry};
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::owner::{bridge_mac, node_alias};
use crate::{FabricState, Remote, Result, sysctl};

const BRIDGE: &str = "br0";
const VXLAN: &str = "vx0";

/// An overlay as it stands.
#[derive(Clone)]
pub(crate) struct Overlay {
    pub(crate) namespace: Namespace,
    pub(crate) netlink: Netlink,
    pub(crate) bridge: u32,
    pub(crate) vxlan: u32,
    pub(crate) mtu: u32,
    pub(crate) size: Size,
}

/// What an overlay is to be.
pub(crate) struct Blueprint<'a> {
    pub(crate) tag: &'a str,
    pub(crate) network: &'a str,
    pub(crate) tunnel: Tunnel,
    pub(crate) mtu: u32,
    pub(crate) size: Size,
}

impl Overlay {
    /// Makes what is missing in the namespace. `netlink` is a socket in it, if there is one already;
    /// `node` one in the node's own namespace, where the tunnel's outer side lives.
    pub(crate) async fn ensure(
        namespace: Namespace,
        netlink: Option<Netlink>,
        node: &Netlink,
        wanted: &Blueprint<'_>,
    ) -> Result<Self> {
        namespace.run(prepare).await?;
        let netlink = match netlink {
            Some(netlink) => netlink,
            None => Netlink::open(&namespace).await?,
        };
        let links = netlink.links().await?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let bridge = ensure_bridge(&netlink, find(BRIDGE), wanted).await?;
        let vxlan = ensure_vxlan(&namespace, &netlink, node, find(VXLAN), bridge, wanted).await?;
        let Blueprint { mtu, size, .. } = *wanted;
        Ok(Self { namespace, netlink, bridge, vxlan, mtu, size })
    }

    /// Adds the entries for the endpoints on other nodes; with `prune` also removes all others.
    pub(crate) async fn apply(&self, wanted: &Remotes, prune: bool) -> Result<()> {
        let held: BTreeSet<Entry> = self.netlink.entries().await?.into_iter().collect();
        let wanted: BTreeSet<Entry> = wanted.entries(self.bridge, self.vxlan).into_iter().collect();
        if prune {
            // A wanted entry takes the place of another one on the same subject.
            let subjects: BTreeSet<Entry> = wanted.iter().map(Entry::subject).collect();
            let stray =
                held.iter().filter(|entry| self.is_remote(entry) && !subjects.contains(&entry.subject()));
            Netlink::all(stray.map(|entry| self.netlink.remove_entry(*entry))).await?;
        }
        Netlink::all(wanted.difference(&held).map(|entry| self.netlink.put_entry(*entry))).await
    }

    /// What the kernel really holds is not what [`ensure`](Self::ensure) and [`apply`](Self::apply)
    /// make, in words.
    pub(crate) async fn differences(&self, wanted: &Blueprint<'_>, remotes: &Remotes) -> Result<Vec<String>> {
        let links = self.netlink.links().await?;
        let is_there = |name: &str, index: u32, is_whole: &dyn Fn(&Link) -> bool| {
            links.iter().any(|link| link.name == name && link.index == index && is_whole(link))
        };
        let mut differences = Vec::new();
        if !is_there(BRIDGE, self.bridge, &|link| is_bridge(link, wanted)) {
            differences.push("fabric: the bridge is gone or was changed".to_owned());
        }
        let is_whole = |link: &Link| is_vxlan(link, self.bridge, wanted) && link.mtu == wanted.mtu;
        if !is_there(VXLAN, self.vxlan, &is_whole) {
            differences.push("fabric: the tunnel is gone or was changed".to_owned());
        }
        let held: BTreeSet<Entry> = self.netlink.entries().await?.into_iter().collect();
        let wanted: BTreeSet<Entry> = remotes.entries(self.bridge, self.vxlan).into_iter().collect();
        let held = held.into_iter().filter(|entry| self.is_remote(entry)).collect();
        differences.extend(neighbour::differences(&held, &wanted));
        differences.extend(self.namespace.run(|| sysctl::differences(FILTERS)).await?);
        Ok(differences)
    }

    /// An entry about another node's endpoint.
    fn is_remote(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Tunnel { index, .. } | Entry::Port { index, .. } => *index == self.vxlan,
            Entry::Neighbour { index, .. } => *index == self.bridge,
        }
    }

    pub(crate) async fn read_back(&self) -> Result<FabricState> {
        let entries = self.netlink.entries().await?;
        Ok(assemble(entries.iter().filter(|entry| self.is_remote(entry))))
    }

    /// Removes the links, so that neither tunnel nor namespace depend on who still looks in.
    pub(crate) async fn remove_links(namespace: &Namespace) -> Result<()> {
        let netlink = Netlink::open(namespace).await?;
        netlink.remove_link(VXLAN).await?;
        netlink.remove_link(BRIDGE).await
    }
}

/// New namespaces send bridged frames through the IP filters of theirs.
const FILTERS: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

/// Settings of a fresh namespace, before any link is in it. Runs inside it.
fn prepare() -> Result<()> {
    FILTERS.iter().try_for_each(|(name, value)| sysctl::set_if_present(name, value))?;
    sysctl::set_if_present("ipv6/conf/default/disable_ipv6", "1")
}

fn is_bridge(link: &Link, wanted: &Blueprint<'_>) -> bool {
    link.mtu == wanted.mtu && link.up
}

fn is_vxlan(link: &Link, bridge: u32, wanted: &Blueprint<'_>) -> bool {
    link.tunnel == Some(wanted.tunnel) && link.up && link.controller == Some(bridge)
}

async fn ensure_bridge(netlink: &Netlink, found: Option<&Link>, wanted: &Blueprint<'_>) -> Result<u32> {
    let index = match found {
        Some(link) if is_bridge(link, wanted) => return Ok(link.index),
        Some(link) => link.index,
        None => {
            let mac = bridge_mac(wanted.tag, wanted.network);
            netlink.add_link(link::bridge(BRIDGE, Some(mac), wanted.mtu), BRIDGE).await?;
            netlink.index(BRIDGE).await?
        }
    };
    let alias = LinkAttribute::IfAlias(node_alias(wanted.tag, wanted.network));
    netlink.change_link(index, vec![LinkAttribute::Mtu(wanted.mtu), alias], BRIDGE).await?;
    netlink.set_up(index, BRIDGE).await?;
    Ok(index)
}

async fn ensure_vxlan(
    namespace: &Namespace,
    netlink: &Netlink,
    node: &Netlink,
    found: Option<&Link>,
    bridge: u32,
    wanted: &Blueprint<'_>,
) -> Result<u32> {
    if let Some(link) = found.filter(|link| is_vxlan(link, bridge, wanted)) {
        return Ok(link.index);
    }
    netlink.remove_link(VXLAN).await?;
    let mut message = link::vxlan(VXLAN, None, wanted.mtu, wanted.tunnel);
    message.attributes.push(LinkAttribute::NetNsFd(namespace.fd()));
    node.add_link(message, &format!("{VXLAN} of network {}", wanted.network)).await?;
    let index = netlink.index(VXLAN).await?;
    let alias = LinkAttribute::IfAlias(node_alias(wanted.tag, wanted.network));
    netlink.change_link(index, vec![LinkAttribute::Controller(bridge), alias], VXLAN).await?;
    let settings = vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::NeighSupress(true),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
    ];
    netlink.change_link(index, vec![link::port(settings)], VXLAN).await?;
    // Neighbour entries for IPv6 are only taken where IPv6 is on; the bridge gets no address of its own.
    namespace
        .run(|| {
            sysctl::set_if_present(&format!("ipv6/conf/{BRIDGE}/addr_gen_mode"), "1")?;
            sysctl::set_if_present(&format!("ipv6/conf/{BRIDGE}/disable_ipv6"), "0")
        })
        .await?;
    Ok(index)
}

/// Everything known of a network's endpoints on other nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remotes(BTreeMap<IpAddr, Remote>);

impl Remotes {
    /// Those of the table; an endpoint whose node is not in it has no way to it.
    pub(crate) fn of(table: &NetworkTable, own: &NodeId) -> Self {
        let mut remotes = BTreeMap::new();
        for endpoint in table.endpoints.values().filter(|endpoint| endpoint.node != *own) {
            let Some(node) = table.nodes.get(&endpoint.node) else { continue };
            let remote = Remote { mac: endpoint.mac, data_path_address: node.data_path_address };
            for address in [Some(endpoint.address), endpoint.address_v6].into_iter().flatten() {
                remotes.insert(address.addr(), remote.clone());
            }
        }
        Self(remotes)
    }

    fn entries(&self, bridge: u32, vxlan: u32) -> Vec<Entry> {
        let each = self.0.iter().flat_map(|(&address, remote)| {
            let mac = remote.mac;
            [
                Entry::Tunnel { index: vxlan, mac, to: remote.data_path_address },
                Entry::Port { index: vxlan, mac },
                Entry::Neighbour { index: bridge, address, mac },
            ]
        });
        each.collect()
    }
}

/// Puts the three kinds of entries together again.
fn assemble<'a>(entries: impl Iterator<Item = &'a Entry>) -> FabricState {
    let mut tunnels = BTreeMap::new();
    let mut ports = BTreeSet::new();
    let mut neighbours: Vec<(IpAddr, MacAddr)> = Vec::new();
    for entry in entries {
        match *entry {
            Entry::Tunnel { mac, to, .. } => {
                tunnels.insert(mac, to);
            }
            Entry::Port { mac, .. } => {
                ports.insert(mac);
            }
            Entry::Neighbour { address, mac, .. } => neighbours.push((address, mac)),
        }
    }
    let mut state = FabricState::default();
    let mut known = BTreeSet::new();
    for (address, mac) in neighbours {
        known.insert(mac);
        match tunnels.get(&mac) {
            Some(&data_path_address) if ports.contains(&mac) => {
                state.remote.insert(address, Remote { mac, data_path_address });
            }
            _ => state.broken.push(format!("{address} at {mac} has no forwarding entry")),
        }
    }
    let strays: BTreeSet<_> = tunnels.keys().chain(&ports).filter(|mac| !known.contains(mac)).collect();
    state.broken.extend(strays.into_iter().map(|mac| format!("{mac} has no address")));
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_entry_is_reported_and_not_counted() {
        let (a, b) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let to: IpAddr = [192, 0, 2, 9].into();
        let entries = [
            Entry::Tunnel { index: 2, mac: a, to },
            Entry::Port { index: 2, mac: a },
            Entry::Neighbour { index: 1, address: [10, 0, 0, 2].into(), mac: a },
            Entry::Neighbour { index: 1, address: [10, 0, 0, 3].into(), mac: b },
            Entry::Port { index: 2, mac: MacAddr([2, 0, 0, 0, 0, 3]) },
        ];
        let state = assemble(entries.iter());
        assert_eq!(
            state.remote,
            BTreeMap::from([([10, 0, 0, 2].into(), Remote { mac: a, data_path_address: to })])
        );
        assert_eq!(state.broken.len(), 2, "{:?}", state.broken);
    }
}
