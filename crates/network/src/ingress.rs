//! The routing mesh's network on one node: published tasks of this node behind a bridge in the node's
//! own namespace, those of other nodes behind a routed tunnel.
//!
//! A task's default route is the bridge, so its replies pass here whoever they go to. A connection
//! that came in through another node carries that node's mark, and its replies leave by the tunnel,
//! to that node. Per other node that is one element in each of three maps; the client's address is
//! never touched, so nothing on the tasks' side needs to know of it. All of this is the same in IPv6,
//! over the same links.

mod blueprint;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use shoal_model::{MacAddr, NetworkId};

pub(crate) use self::blueprint::Blueprint;
use self::links::{
    bridge_mac, ensure_address, ensure_bridge, ensure_tunnel, is_tunnel, set_settings, settings,
};
use crate::link::Link;
use crate::mtu::Size;
use crate::neighbour::{self, Entry};
use crate::netlink::{Netlink, Route, Rule};
use crate::netns::Namespace;
use crate::owner::{INGRESS, INGRESS_TUNNEL};
use crate::tables::{Edit, Elements, Held, Set, Tables, difference};
use crate::{FabricState, Remote, Result, sysctl};

/// The marks of other nodes: this in the first byte, the node's number in the others.
const MARK: u32 = 0x5a00_0000;
const MARK_MASK: u32 = 0xff00_0000;
/// Replies to other nodes go to this address, which nobody has, …
const NOBODY: Ipv4Addr = Ipv4Addr::new(169, 254, 90, 90);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x90, 0x90);
/// … at this link address, which is replaced on the way out.
pub(crate) const NOBODY_MAC: MacAddr = MacAddr([0x02, 0x5c, 0, 0, 0, 1]);

/// Sends what tasks answer to other nodes' clients into the tunnel. Only what comes from the bridge:
/// a forwarded packet that carries the mark as well must not go straight back.
const fn rule(family: AddressFamily) -> Rule {
    Rule { family, priority: 90, interface: INGRESS, mark: MARK, mask: MARK_MASK, table: TABLE }
}
const TABLE: u32 = 90;

/// The sets that tell the other nodes apart.
const ELEMENTS: [Set; 5] = [Set::Zones, Set::Marks, Set::Homes, Set::Homes6, Set::Returns];
/// Those of them that do not go with the way back.
const KNOWN: [Set; 4] = [Set::Zones, Set::Marks, Set::Homes, Set::Homes6];

/// The ingress as it stands.
#[derive(Clone)]
pub(crate) struct Ingress {
    pub(crate) network: NetworkId,
    pub(crate) bridge: u32,
    pub(crate) tunnel: u32,
    pub(crate) gateway: Ipv4Addr,
    /// `None`: it carries IPv4 only.
    pub(crate) gateway_v6: Option<Ipv6Addr>,
    pub(crate) mtu: u32,
    pub(crate) size: Size,
    /// The node's own.
    pub(crate) number: u32,
    underlay: Ipv4Addr,
    subnets: Vec<IpNet>,
}

/// Addresses that connections from the node itself carry.
#[derive(Default)]
struct Sources {
    /// The underlay address, where the node has it.
    v4: Option<IpAddr>,
    /// The first one that is on the same link.
    v6: Option<IpAddr>,
}

/// The link address of the ingress tunnel's end with that address.
fn tunnel_mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    MacAddr([0x02, 0x5b, a, b, c, d])
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
        let has_v6 = wanted.v6.is_some();
        namespace.run(move || set_settings(has_v6)).await?;
        for (_, address) in wanted.gateways() {
            ensure_address(netlink, bridge, address).await?;
        }
        for address in wanted.own_addresses() {
            ensure_address(netlink, tunnel, address).await?;
        }
        tables.ensure_return_path(NOBODY_MAC, fresh).await?;
        let ingress = Self {
            network: wanted.network.clone(),
            bridge,
            tunnel,
            gateway: wanted.gateway.addr(),
            gateway_v6: wanted.v6.map(|v6| v6.gateway.addr()),
            mtu: wanted.mtu,
            size: wanted.size,
            number: wanted.number(),
            underlay: wanted.tunnel.local,
            subnets: wanted.gateways().map(|(subnet, _)| subnet).collect(),
        };
        for nobody in ingress.nobody() {
            netlink.put_entry(Entry::Neighbour { index: tunnel, address: nobody, mac: NOBODY_MAC }).await?;
        }
        for family in ingress.families() {
            netlink.put_rule(&rule(family)).await?;
        }
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

        let routes = self.routes(wanted, &self.sources(netlink).await?);
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
        let routes = self.routes(wanted, &self.sources(netlink).await?);
        let gone = routes.difference(&held).map(|route| format!("fabric: no route to {}", route.destination));
        differences.extend(gone);
        let destinations: BTreeSet<_> = routes.iter().map(Route::subject).collect();
        let stray = held.iter().filter(|route| !destinations.contains(&route.subject()));
        differences.extend(stray.map(|route| format!("fabric: stray route to {}", route.destination)));
        for family in self.families() {
            if !netlink.has_rule(&rule(family)).await? {
                differences.push(format!("fabric: no rule for what carries the mark {MARK:#x}"));
            }
        }
        let has_v6 = wanted.v6.is_some();
        let settings = move || {
            let settings = settings(has_v6);
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
        let mac = bridge_mac(wanted.gateway.addr());
        let bridge = find(INGRESS, self.bridge);
        let mut differences = Vec::new();
        if !bridge.is_some_and(|link| link.up && link.mtu == wanted.mtu && link.mac == Some(mac)) {
            differences.push(format!("fabric: link {INGRESS} is gone or was changed"));
        }
        for (_, address) in wanted.gateways().filter(|(_, at)| !addresses.contains(&(self.bridge, *at))) {
            differences.push(format!("fabric: link {INGRESS} has not the address {address}"));
        }
        let is_whole = |link: &Link| is_tunnel(link, wanted) && link.mtu == wanted.mtu;
        if !find(INGRESS_TUNNEL, self.tunnel).is_some_and(is_whole) {
            differences.push(format!("fabric: link {INGRESS_TUNNEL} is gone or was changed"));
        }
        for address in wanted.own_addresses().filter(|at| !addresses.contains(&(self.tunnel, *at))) {
            differences.push(format!("fabric: link {INGRESS_TUNNEL} has not the address {}", address.addr()));
        }
        Ok(differences)
    }

    fn entries(&self, wanted: &Blueprint) -> BTreeSet<Entry> {
        let index = self.tunnel;
        let neighbour = |address, mac| Entry::Neighbour { index, address, mac };
        let peers = wanted.peers.iter().flat_map(|(&address, peer)| {
            let Remote { mac, data_path_address: to } = peer.remote;
            let addresses = [Some(IpAddr::V4(address)), peer.address_v6.map(IpAddr::V6)];
            let neighbours = addresses.into_iter().flatten().map(move |address| neighbour(address, mac));
            neighbours.chain([Entry::Tunnel { index, mac, to }])
        });
        let nobody = self.nobody().map(|address| neighbour(address, NOBODY_MAC));
        peers.chain(nobody).collect()
    }

    fn nobody(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.gateway_v6.map(|_| NOBODY_V6.into());
        [Some(NOBODY.into()), v6].into_iter().flatten()
    }

    fn families(&self) -> impl Iterator<Item = AddressFamily> + use<> {
        self.nobody().map(crate::netlink::family)
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Tunnel { index, .. } | Entry::Port { index, .. } | Entry::Neighbour { index, .. } => {
                *index == self.tunnel
            }
        }
    }

    fn routes(&self, wanted: &Blueprint, sources: &Sources) -> BTreeSet<Route> {
        let main = |destination: IpNet, index, gateway| {
            let source = if destination.addr().is_ipv4() { sources.v4 } else { sources.v6 };
            Route { destination, index, gateway, source, table: Route::MAIN }
        };
        let peers = wanted
            .peers
            .iter()
            .flat_map(|(&peer, v6)| [Some(IpAddr::V4(peer)), v6.address_v6.map(IpAddr::V6)]);
        let peers = peers.flatten().map(|peer| main(IpNet::from(peer), self.tunnel, None));
        let tasks = wanted.tasks.iter().filter_map(|(&task, &node)| {
            Some(main(IpNet::from(task), self.tunnel, Some(wanted.way_to(task, node)?)))
        });
        let subnets = self.subnets.iter().map(|subnet| main(*subnet, self.bridge, None));
        let back = self.nobody().map(|nobody| {
            let destination = match nobody {
                IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
                IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
            };
            Route { destination, index: self.tunnel, gateway: Some(nobody), source: None, table: TABLE }
        });
        peers.chain(tasks).chain(subnets).chain(back).collect()
    }

    /// Without those that every link has of itself.
    async fn held_routes(&self, netlink: &Netlink) -> Result<Vec<Route>> {
        let mut routes = netlink.routes(AddressFamily::Inet).await?;
        routes.extend(netlink.routes(AddressFamily::Inet6).await?);
        let is_own = |route: &Route| match route.destination.addr() {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        };
        routes.retain(|route| (route.index == self.tunnel || route.index == self.bridge) && !is_own(route));
        Ok(routes)
    }

    async fn sources(&self, netlink: &Netlink) -> Result<Sources> {
        let addresses = netlink.addresses().await?;
        let underlay = IpAddr::V4(self.underlay);
        let Some(&(link, _)) = addresses.iter().find(|(_, address)| address.addr() == underlay) else {
            return Ok(Sources::default());
        };
        let on_link = addresses.iter().filter(|(index, _)| *index == link).map(|(_, address)| address.addr());
        let v6 = on_link.filter(|address| address.is_ipv6() && crate::follow::is_routed(address)).min();
        Ok(Sources { v4: Some(underlay), v6 })
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

/// Removes the ingress' links with all that hangs on them, the rule, and what told the other nodes apart.
pub(crate) async fn remove(netlink: &Netlink, tables: &mut Tables) -> Result<()> {
    let mut failures = crate::error::Failures::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        failures.note(netlink.remove_rule(&rule(family)).await);
    }
    failures.note(netlink.remove_link(INGRESS_TUNNEL).await);
    failures.note(netlink.remove_link(INGRESS).await);
    failures.note(tables.remove_return_path().await);
    let nothing: Held = KNOWN.into_iter().map(|set| (set, Elements::new())).collect();
    failures.note(tables.edit(&KNOWN, |held: &Held| edits(held, &nothing, true)).await);
    failures.finish()
}

/// What must be edited so that these elements are held; with `prune` no others are.
fn edits(held: &Held, elements: &Held, prune: bool) -> Vec<Edit> {
    elements.iter().flat_map(|(set, wanted)| difference(*set, held, wanted, |_, _| prune)).collect()
}
