//! The routing mesh's network on one node: published tasks of this node behind a bridge in the node's
//! own namespace, those of other nodes behind a routed tunnel.
//!
//! A task's default route is the bridge, so its replies pass here whoever they go to. A connection
//! that came in through another node carries that node's mark, and its replies leave by the tunnel,
//! to that node. Per other node that is one element in each of three maps; the client's address is
//! never touched, so nothing on the tasks' side needs to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;
use shoal_model::{MacAddr, NetworkId, NetworkTable, NodeId};

use crate::link::{self, Link, Tunnel};
use crate::mtu::Size;
use crate::neighbour::{self, Entry};
use crate::netlink::{Netlink, Route, Rule};
use crate::netns::Namespace;
use crate::owner::{self, INGRESS, INGRESS_TUNNEL, node_alias};
use crate::tables::{Edit, Elements, Held, Set, Tables, difference};
use crate::{Error, FabricState, Remote, Result, sysctl};

/// The marks of other nodes: this in the first byte, the node's number in the others.
const MARK: u32 = 0x5a00_0000;
const MARK_MASK: u32 = 0xff00_0000;
/// Replies to other nodes go to this address, which nobody has, …
const NOBODY: Ipv4Addr = Ipv4Addr::new(169, 254, 90, 90);
/// … at this link address, which is replaced on the way out.
pub(crate) const NOBODY_MAC: MacAddr = MacAddr([0x02, 0x5c, 0, 0, 0, 1]);

/// Sends what tasks answer to other nodes' clients into the tunnel. Only what comes from the bridge:
/// a forwarded packet that carries the mark as well must not go straight back.
pub(crate) const RULE: Rule =
    Rule { priority: 90, interface: INGRESS, mark: MARK, mask: MARK_MASK, table: TABLE };
const TABLE: u32 = 90;

/// The sets that tell the other nodes apart.
const ELEMENTS: [Set; 4] = [Set::Zones, Set::Marks, Set::Homes, Set::Returns];

/// The ingress as it stands.
#[derive(Clone)]
pub(crate) struct Ingress {
    pub(crate) network: NetworkId,
    pub(crate) bridge: u32,
    pub(crate) tunnel: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
    pub(crate) size: Size,
    underlay: Ipv4Addr,
    subnet: Ipv4Net,
}

/// What a table says about the ingress, for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blueprint {
    network: NetworkId,
    /// The same on every node.
    gateway: Ipv4Net,
    /// This node's end of the ingress tunnel.
    own: Ipv4Addr,
    tunnel: Tunnel,
    mtu: u32,
    size: Size,
    peers: BTreeMap<Ipv4Addr, Remote>,
    /// Tasks on other nodes, with their node's address.
    tasks: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Blueprint {
    pub(crate) fn of(table: &NetworkTable, own: &NodeId, underlay: Ipv4Addr, mtu: u32) -> Result<Self> {
        let invalid =
            |what: &str| Error::InvalidTable { network: table.network.clone(), what: what.to_owned() };
        let gateway = table.config.pools.iter().find_map(|pool| match (pool.subnet, pool.gateway) {
            (IpNet::V4(subnet), Some(IpAddr::V4(gateway))) => Ipv4Net::new(gateway, subnet.prefix_len()).ok(),
            _ => None,
        });
        let address_of = |node: &NodeId| match table.nodes.get(node)?.address?.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let peers = table.nodes.iter().filter(|(id, _)| *id != own).filter_map(|(id, node)| {
            let address = address_of(id)?;
            Some((address, Remote { mac: tunnel_mac(address), data_path_address: node.data_path_address }))
        });
        let tasks = table.endpoints.values().filter(|endpoint| endpoint.node != *own);
        let tasks = tasks.filter_map(|endpoint| match endpoint.address.addr() {
            IpAddr::V4(address) => Some((address, address_of(&endpoint.node)?)),
            IpAddr::V6(_) => None,
        });
        Ok(Self {
            network: table.network.clone(),
            gateway: gateway.ok_or_else(|| invalid("no IPv4 subnet with a gateway"))?,
            own: address_of(own).ok_or_else(|| invalid("this node has no address on it"))?,
            tunnel: Tunnel { vni: table.config.vni, local: underlay, port: table.config.data_path_port },
            mtu,
            size: Size::of(&table.config),
            peers: peers.collect(),
            tasks: tasks.collect(),
        })
    }

    /// The elements that tell the other nodes apart.
    fn elements(&self) -> Held {
        let mut held = Held::from([
            (Set::Zones, Elements::new()),
            (Set::Marks, Elements::new()),
            (Set::Homes, Elements::new()),
            (Set::Returns, Elements::new()),
        ]);
        let mut put = |set, key: String, value: String| held.entry(set).or_default().insert(key, value);
        for (address, peer) in &self.peers {
            let number = node_number(self.gateway, *address);
            let mark = MARK | number;
            put(Set::Zones, peer.mac.to_string(), (number & 0xffff).to_string());
            put(Set::Marks, peer.mac.to_string(), mark.to_string());
            put(Set::Returns, mark.to_string(), peer.mac.to_string());
        }
        for (task, node) in &self.tasks {
            let home = self.peers.get(node).map(|peer| peer.data_path_address);
            if let Some(IpAddr::V4(home)) = home {
                put(Set::Homes, format!("{home} . {task}"), String::new());
            }
        }
        held
    }
}

/// The node's place in the subnet: a number that is the same everywhere and never needs to be agreed
/// on. Zones have 16 bits, so a larger subnet than a /16 may make two nodes share one.
fn node_number(gateway: Ipv4Net, address: Ipv4Addr) -> u32 {
    u32::from(address) & u32::from(gateway.hostmask()) & !MARK_MASK
}

/// The link address of the ingress tunnel's end with that address.
fn tunnel_mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    MacAddr([0x02, 0x5b, a, b, c, d])
}

/// The bridge's link address: tasks keep it in their caches wherever they were started.
fn bridge_mac(gateway: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = gateway.octets();
    MacAddr([0x02, 0x5a, a, b, c, d])
}

impl Ingress {
    /// Makes what is missing of the links, routes and rules.
    pub(crate) async fn ensure(
        namespace: &Namespace,
        netlink: &Netlink,
        tables: &mut Tables,
        tag: &str,
        wanted: &Blueprint,
    ) -> Result<Self> {
        tables.ensure().await?;
        let bridge = ensure_bridge(netlink, tag, wanted).await?;
        let (tunnel, fresh) = ensure_tunnel(netlink, tag, wanted).await?;
        namespace.run(set_settings).await?;
        ensure_address(netlink, bridge, IpNet::V4(wanted.gateway)).await?;
        ensure_address(netlink, tunnel, IpNet::V4(host(wanted.own))).await?;
        tables.ensure_return_path(NOBODY_MAC, fresh).await?;
        let ingress = Self {
            network: wanted.network.clone(),
            bridge,
            tunnel,
            gateway: wanted.gateway.addr(),
            mtu: wanted.mtu,
            size: wanted.size,
            underlay: wanted.tunnel.local,
            subnet: wanted.gateway.trunc(),
        };
        netlink
            .put_entry(Entry::Neighbour { index: tunnel, address: NOBODY.into(), mac: NOBODY_MAC })
            .await?;
        netlink.put_rule(&RULE).await?;
        Ok(ingress)
    }

    /// Adds the ways to other nodes and their tasks; with `prune` also removes all others.
    pub(crate) async fn apply(
        &self,
        netlink: &Netlink,
        tables: &mut Tables,
        wanted: &Blueprint,
        prune: bool,
    ) -> Result<()> {
        let entries = self.entries(wanted);
        let held: BTreeSet<Entry> = netlink.entries().await?.into_iter().collect();
        Netlink::all(entries.difference(&held).map(|entry| netlink.put_entry(*entry))).await?;

        let elements = wanted.elements();
        tables.edit(&ELEMENTS, |held: &Held| edits(held, &elements, prune)).await?;

        let routes = self.routes(wanted, self.has_underlay(netlink).await?);
        let held_routes: BTreeSet<Route> = self.held_routes(netlink).await?.into_iter().collect();
        // Only routes of ours are replaced: one that leads elsewhere is the node's business.
        let held_destinations: BTreeSet<_> = held_routes.iter().map(Route::subject).collect();
        let missing = routes.difference(&held_routes);
        Netlink::all(
            missing.map(|route| netlink.put_route(route, held_destinations.contains(&route.subject()))),
        )
        .await?;
        if prune {
            let destinations: BTreeSet<_> = routes.iter().map(Route::subject).collect();
            let stray = held_routes.iter().filter(|route| !destinations.contains(&route.subject()));
            Netlink::all(stray.map(|route| netlink.remove_route(route))).await?;
            let subjects: BTreeSet<Entry> = entries.iter().map(Entry::subject).collect();
            let stray =
                held.iter().filter(|entry| self.is_ours(entry) && !subjects.contains(&entry.subject()));
            Netlink::all(stray.map(|entry| netlink.remove_entry(*entry))).await?;
        }
        Ok(())
    }

    /// What the kernel really holds is not what [`ensure`](Self::ensure) and [`apply`](Self::apply)
    /// make, in words.
    pub(crate) async fn differences(
        &self,
        namespace: &Namespace,
        netlink: &Netlink,
        tables: &Tables,
        wanted: &Blueprint,
    ) -> Result<Vec<String>> {
        let mut differences = self.link_differences(netlink, wanted).await?;
        let held = netlink.entries().await?.into_iter().filter(|entry| self.is_ours(entry)).collect();
        differences.extend(neighbour::differences(&held, &self.entries(wanted)));
        let held: BTreeSet<Route> = self.held_routes(netlink).await?.into_iter().collect();
        let routes = self.routes(wanted, self.has_underlay(netlink).await?);
        let gone = routes.difference(&held).map(|route| format!("fabric: no route to {}", route.destination));
        differences.extend(gone);
        let destinations: BTreeSet<_> = routes.iter().map(Route::subject).collect();
        let stray = held.iter().filter(|route| !destinations.contains(&route.subject()));
        differences.extend(stray.map(|route| format!("fabric: stray route to {}", route.destination)));
        if !netlink.has_rule(&RULE).await? {
            differences.push(format!("fabric: no rule for what carries the mark {MARK:#x}"));
        }
        let settings = || {
            let settings = settings();
            let wanted: Vec<(&str, &str)> =
                settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            sysctl::differences(&wanted)
        };
        differences.extend(namespace.run(settings).await?);
        differences.extend(tables.return_path_difference().await?);
        let elements = wanted.elements();
        let plan = |held: &Held| edits(held, &elements, true);
        differences.extend(tables.element_differences(&ELEMENTS, plan).await?);
        Ok(differences)
    }

    async fn link_differences(&self, netlink: &Netlink, wanted: &Blueprint) -> Result<Vec<String>> {
        let links = netlink.links().await?;
        let addresses = netlink.addresses().await?;
        let find = |name: &str, index| links.iter().find(|link| link.name == name && link.index == index);
        let has = |index, address| addresses.contains(&(index, IpNet::V4(address)));
        let mac = bridge_mac(wanted.gateway.addr());
        let bridge = find(INGRESS, self.bridge);
        let mut differences = Vec::new();
        if !bridge.is_some_and(|link| link.up && link.mtu == wanted.mtu && link.mac == Some(mac)) {
            differences.push(format!("fabric: link {INGRESS} is gone or was changed"));
        }
        if !has(self.bridge, wanted.gateway) {
            differences.push(format!("fabric: link {INGRESS} has not the address {}", wanted.gateway));
        }
        let is_whole = |link: &Link| is_tunnel(link, wanted) && link.mtu == wanted.mtu;
        if !find(INGRESS_TUNNEL, self.tunnel).is_some_and(is_whole) {
            differences.push(format!("fabric: link {INGRESS_TUNNEL} is gone or was changed"));
        }
        if !has(self.tunnel, host(wanted.own)) {
            differences.push(format!("fabric: link {INGRESS_TUNNEL} has not the address {}", wanted.own));
        }
        Ok(differences)
    }

    fn entries(&self, wanted: &Blueprint) -> BTreeSet<Entry> {
        let index = self.tunnel;
        let peers = wanted.peers.iter().flat_map(|(&address, peer)| {
            [
                Entry::Tunnel { index, mac: peer.mac, to: peer.data_path_address },
                Entry::Neighbour { index, address: address.into(), mac: peer.mac },
            ]
        });
        let nobody = Entry::Neighbour { index, address: NOBODY.into(), mac: NOBODY_MAC };
        peers.chain([nobody]).collect()
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Tunnel { index, .. } | Entry::Port { index, .. } | Entry::Neighbour { index, .. } => {
                *index == self.tunnel
            }
        }
    }

    /// Connections from the node itself carry its underlay address, where it has that.
    fn routes(&self, wanted: &Blueprint, has_underlay: bool) -> BTreeSet<Route> {
        let source = has_underlay.then_some(IpAddr::V4(self.underlay));
        let main = |destination, index, gateway: Option<Ipv4Addr>| Route {
            destination: IpNet::V4(destination),
            index,
            gateway: gateway.map(IpAddr::V4),
            source,
            table: Route::MAIN,
        };
        let peers = wanted.peers.keys().map(|&peer| main(host(peer), self.tunnel, None));
        let tasks = wanted.tasks.iter().map(|(&task, &node)| main(host(task), self.tunnel, Some(node)));
        let back = Route {
            destination: IpNet::V4(Ipv4Net::default()),
            index: self.tunnel,
            gateway: Some(NOBODY.into()),
            source: None,
            table: TABLE,
        };
        peers.chain(tasks).chain([main(self.subnet, self.bridge, None), back]).collect()
    }

    async fn held_routes(&self, netlink: &Netlink) -> Result<Vec<Route>> {
        let mut routes = netlink.routes(AddressFamily::Inet).await?;
        routes.retain(|route| route.index == self.tunnel || route.index == self.bridge);
        Ok(routes)
    }

    async fn has_underlay(&self, netlink: &Netlink) -> Result<bool> {
        let addresses = netlink.addresses().await?;
        Ok(addresses.iter().any(|(_, address)| address.addr() == IpAddr::V4(self.underlay)))
    }

    pub(crate) async fn read_back(&self, netlink: &Netlink) -> Result<FabricState> {
        let mut peers = BTreeMap::new();
        let mut tunnels = BTreeMap::new();
        for entry in netlink.entries().await? {
            match entry {
                Entry::Tunnel { index, mac, to } if index == self.tunnel => {
                    tunnels.insert(mac, to);
                }
                Entry::Neighbour { index, address, mac } if index == self.tunnel => {
                    peers.insert(address, mac);
                }
                _ => {}
            }
        }
        let mut state = FabricState::default();
        for route in self.held_routes(netlink).await? {
            let (Some(node), Route::MAIN) = (route.gateway, route.table) else { continue };
            let task = route.destination.addr();
            let remote = peers
                .get(&node)
                .and_then(|mac| Some(Remote { mac: *mac, data_path_address: *tunnels.get(mac)? }));
            match remote {
                Some(remote) => {
                    state.remote.insert(task, remote);
                }
                None => state.broken.push(format!("{task} is behind {node}, which has no forwarding entry")),
            }
        }
        Ok(state)
    }
}

/// Removes the ingress' links with all that hangs on them, and the rule.
pub(crate) async fn remove(netlink: &Netlink, tables: &mut Tables) -> Result<()> {
    let mut failures = crate::error::Failures::default();
    failures.note(netlink.remove_rule(&RULE).await);
    failures.note(netlink.remove_link(INGRESS_TUNNEL).await);
    failures.note(netlink.remove_link(INGRESS).await);
    failures.note(tables.remove_return_path().await);
    failures.finish()
}

fn host(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

async fn ensure_bridge(netlink: &Netlink, tag: &str, wanted: &Blueprint) -> Result<u32> {
    let mac = bridge_mac(wanted.gateway.addr());
    match netlink.link(INGRESS).await? {
        Some(link) => owner::check(tag, INGRESS, link.alias.as_deref())?,
        None => netlink.add_link(link::bridge(INGRESS, mac, wanted.mtu), INGRESS).await?,
    }
    let index = netlink.index(INGRESS).await?;
    let attributes = vec![
        LinkAttribute::IfAlias(node_alias(tag, wanted.network.as_str())),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(wanted.mtu),
    ];
    netlink.change_link(index, attributes, INGRESS).await?;
    netlink.set_up(index, INGRESS).await?;
    Ok(index)
}

/// The second value tells whether the link is new.
async fn ensure_tunnel(netlink: &Netlink, tag: &str, wanted: &Blueprint) -> Result<(u32, bool)> {
    let mac = tunnel_mac(wanted.own);
    if let Some(link) = netlink.link(INGRESS_TUNNEL).await? {
        owner::check(tag, INGRESS_TUNNEL, link.alias.as_deref())?;
        if is_tunnel(&link, wanted) {
            return Ok((link.index, false));
        }
        netlink.remove_link(INGRESS_TUNNEL).await?;
    }
    let message = link::vxlan(INGRESS_TUNNEL, Some(mac), wanted.mtu, wanted.tunnel);
    netlink.add_link(message, INGRESS_TUNNEL).await?;
    let index = netlink.index(INGRESS_TUNNEL).await?;
    let alias = LinkAttribute::IfAlias(node_alias(tag, wanted.network.as_str()));
    netlink.change_link(index, vec![alias], INGRESS_TUNNEL).await?;
    Ok((index, true))
}

/// Gives the link this one IPv4 address.
async fn ensure_address(netlink: &Netlink, index: u32, wanted: IpNet) -> Result<()> {
    let held: Vec<IpNet> = netlink
        .addresses()
        .await?
        .into_iter()
        .filter(|(link, address)| *link == index && address.addr().is_ipv4())
        .map(|(_, address)| address)
        .collect();
    for other in held.iter().filter(|address| **address != wanted) {
        netlink.remove_address(index, *other).await?;
    }
    // The route to the subnet is ours to make, with another source address than the kernel's.
    if held.contains(&wanted) { Ok(()) } else { netlink.add_address(index, wanted, false).await }
}

/// Settings of the ingress' links.
fn settings() -> Vec<(String, &'static str)> {
    vec![
        // The reverse path of what other nodes forward is looked up with their mark.
        (format!("ipv4/conf/{INGRESS_TUNNEL}/src_valid_mark"), "1"),
        // Tasks find the addresses of other nodes and their tasks behind this bridge, at once.
        (format!("ipv4/conf/{INGRESS}/proxy_arp"), "1"),
        (format!("ipv4/neigh/{INGRESS}/proxy_delay"), "0"),
        (format!("ipv6/conf/{INGRESS}/disable_ipv6"), "1"),
        (format!("ipv6/conf/{INGRESS_TUNNEL}/disable_ipv6"), "1"),
    ]
}

fn set_settings() -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    for (name, value) in settings() {
        // A node may be without IPv6.
        let set = if name.starts_with("ipv6/") { sysctl::set_if_present } else { sysctl::set };
        set(&name, value)?;
    }
    Ok(())
}

fn is_tunnel(link: &Link, wanted: &Blueprint) -> bool {
    link.tunnel == Some(wanted.tunnel) && link.mac == Some(tunnel_mac(wanted.own)) && link.up
}

/// What must be edited so that these elements are held; with `prune` no others are.
fn edits(held: &Held, elements: &Held, prune: bool) -> Vec<Edit> {
    elements.iter().flat_map(|(set, wanted)| difference(*set, held, wanted, |_, _| prune)).collect()
}
