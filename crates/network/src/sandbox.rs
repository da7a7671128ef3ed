//! The interfaces of a sandbox: pairs of links, one end inside, the other a port of a bridge outside; or
//! parts of an interface of the node.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::{InfoBridgePort, LinkAttribute};
use shoal_model::{MacAddr, NetworkId};

use crate::link::{self, End};
use crate::macvlan::Macvlan;
use crate::neighbour::Entry;
use crate::netlink::{self, Netlink, Route};
use crate::netns::Namespace;
use crate::owner::{host_interface, sandbox_alias};
use crate::{FarEnd, Result, SandboxLink, sysctl};

/// One interface to be made.
pub(crate) struct Interface<'a> {
    pub(crate) network: Option<&'a NetworkId>,
    /// Zero is `eth0`.
    pub(crate) position: usize,
    /// `None`: any.
    pub(crate) mac: Option<MacAddr>,
    pub(crate) address: IpNet,
    pub(crate) address_v6: Option<IpNet>,
    /// All subnets of the network.
    pub(crate) subnets: &'a [IpNet],
    /// The ways out, one for each version of IP at most.
    pub(crate) default_via: Vec<IpAddr>,
    pub(crate) wire: Wire<'a>,
}

/// What an interface is.
pub(crate) enum Wire<'a> {
    /// One end of a pair.
    Pair(Outside<'a>),
    /// A part of an interface in the namespace of that socket.
    Part(&'a Macvlan, &'a Netlink),
}

/// The bridge that an interface is plugged into.
pub(crate) struct Outside<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) netlink: &'a Netlink,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    pub(crate) ports: Ports,
}

/// How the ports of a bridge deal with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// They reach each other.
    Open,
    /// They reach nobody but the node.
    Isolated,
    /// The node's IP filters see bridged frames too (`bridge-nf-call-iptables`), and decide who reaches
    /// whom. A connection that they send back to the bridge it came from, or even to its own port, does
    /// not pass the node itself, so the ports must let it through.
    Filtered,
}

/// Settings of a fresh sandbox. Runs inside it.
pub(crate) fn prepare() -> Result<()> {
    // Docker's defaults for containers with a network stack of their own: no privilege is needed for
    // low ports and for ping.
    sysctl::set_if_present("ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::set_if_present("ipv4/ping_group_range", "0 2147483647")
}

impl Interface<'_> {
    pub(crate) fn name(&self) -> String {
        format!("eth{}", self.position)
    }

    /// What the interface will be known as.
    pub(crate) fn describe(&self, sandbox: &str) -> SandboxLink {
        let far_end = match &self.wire {
            Wire::Pair(outside) => Some(FarEnd {
                netns: outside.namespace.path().to_owned(),
                interface: host_interface(sandbox, self.position),
            }),
            Wire::Part(..) => None,
        };
        SandboxLink {
            network: self.network.cloned(),
            interface: self.name(),
            far_end,
            address: Some(self.address),
            address_v6: self.address_v6,
        }
    }

    /// Makes what is missing of the interface.
    pub(crate) async fn ensure(
        &self,
        tag: &str,
        sandbox: &str,
        namespace: &Namespace,
        inside: &Netlink,
    ) -> Result<SandboxLink> {
        let link = self.describe(sandbox);
        match &self.wire {
            Wire::Pair(outside) => self.ensure_pair(tag, sandbox, namespace, inside, outside, &link).await?,
            Wire::Part(macvlan, node) => {
                self.ensure_part(tag, sandbox, namespace, inside, macvlan, node, &link).await?;
            }
        }
        let name = self.name();
        let index = inside.index(&name).await?;
        let (device, without_v6) = (name.clone(), self.address_v6.is_none());
        // On a network that others are on, whoever knew the address by another link is told at once.
        let tells = matches!(self.wire, Wire::Part(..));
        namespace
            .run(move || {
                if tells {
                    sysctl::set_if_present(&format!("ipv4/conf/{device}/arp_notify"), "1")?;
                    sysctl::set_if_present(&format!("ipv6/conf/{device}/ndisc_notify"), "1")?;
                }
                let value = if without_v6 { "1" } else { "0" };
                sysctl::set_if_present(&format!("ipv6/conf/{device}/disable_ipv6"), value)
            })
            .await?;
        let held = inside.addresses().await?;
        for address in [Some(self.address), self.address_v6].into_iter().flatten() {
            if !held.contains(&(index, address)) {
                inside.add_address(index, address, true).await?;
            }
        }
        inside.set_up(index, &name).await?;
        for route in self.routes(index) {
            let family = netlink::family(route.destination.addr());
            let found = inside.routes(family).await?;
            let same = |held: &&Route| held.subject() == route.subject() && held.index == index;
            if found.iter().find(same).is_none_or(|held| held.gateway != route.gateway) {
                inside.put_route(&route, true).await?;
            }
        }
        Ok(link)
    }

    /// The way out, and the ways to the subnets of the network that this interface has no address in:
    /// their endpoints are on the very same bridge.
    fn routes(&self, index: u32) -> Vec<Route> {
        let way =
            |destination, gateway| Route { destination, index, gateway, source: None, table: Route::MAIN };
        let own: Vec<IpNet> = [Some(self.address), self.address_v6].into_iter().flatten().collect();
        let is_usable =
            |subnet: &&IpNet| own.iter().any(|own| own.addr().is_ipv4() == subnet.addr().is_ipv4());
        let is_own = |subnet: &&IpNet| own.iter().any(|own| own.trunc() == subnet.trunc());
        let others = self.subnets.iter().filter(is_usable).filter(|subnet| !is_own(subnet));
        let out = self.default_via.iter().map(|gateway| {
            let everything = match gateway {
                IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
                IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
            };
            way(everything, Some(*gateway))
        });
        others.map(|subnet| way(subnet.trunc(), None)).chain(out).collect()
    }

    /// It exists, and is the one that belongs there.
    #[expect(clippy::too_many_arguments)]
    async fn ensure_part(
        &self,
        tag: &str,
        sandbox: &str,
        namespace: &Namespace,
        inside: &Netlink,
        macvlan: &Macvlan,
        node: &Netlink,
        link: &SandboxLink,
    ) -> Result<()> {
        let alias = sandbox_alias(tag, sandbox, link);
        let found = inside.link(&link.interface).await?;
        let is_its = found.is_some_and(|found| {
            found.alias.as_deref() == Some(&alias) && (self.mac.is_none() || found.mac == self.mac)
        });
        if is_its {
            return Ok(());
        }
        macvlan.add_interface(node, namespace, &link.interface, self.mac, alias).await
    }

    /// Both ends exist, belong together, and the outer one is a port of its bridge.
    async fn ensure_pair(
        &self,
        tag: &str,
        sandbox: &str,
        namespace: &Namespace,
        inside: &Netlink,
        bridge: &Outside<'_>,
        link: &SandboxLink,
    ) -> Result<()> {
        let outside = bridge.netlink;
        let (inner, outer) = (&link.interface, &host_interface(sandbox, self.position));
        let alias = sandbox_alias(tag, sandbox, link);
        let inner_found = inside.link(inner).await?;
        let outer_found = outside.link(outer).await?;
        if let (Some(inner), Some(outer)) = (&inner_found, &outer_found) {
            let same_mac = self.mac.is_none() || inner.mac == self.mac;
            let plugged = outer.controller == Some(bridge.bridge);
            if same_mac && plugged && outer.alias.as_deref() == Some(&alias) {
                if let Some(mac) = self.mac {
                    outside.put_entry(Entry::Port { index: outer.index, mac }).await?;
                }
                return if outer.up { Ok(()) } else { outside.set_up(outer.index, &outer.name).await };
            }
        }
        outside.remove_link(outer).await?;
        inside.remove_link(inner).await?;
        let pair = link::veth(
            &End { name: outer, mac: None },
            bridge.bridge,
            &End { name: inner, mac: self.mac },
            namespace,
            bridge.mtu,
        );
        outside.add_link(pair, outer).await?;
        let index = outside.index(outer).await?;
        // The address behind the port is known, so nothing needs to be learned or flooded to it.
        let mut settings = vec![
            InfoBridgePort::Isolated(bridge.ports == Ports::Isolated),
            InfoBridgePort::HairpinMode(bridge.ports == Ports::Filtered),
        ];
        if let Some(mac) = self.mac {
            settings.extend([InfoBridgePort::Learning(false), InfoBridgePort::UnicastFlood(false)]);
            outside.put_entry(Entry::Port { index, mac }).await?;
        }
        outside.change_link(index, vec![link::port(settings)], outer).await?;
        let device = outer.clone();
        let quiet = move || sysctl::set_if_present(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
        bridge.namespace.run(quiet).await?;
        // Last: a link with its alias is complete.
        outside.change_link(index, vec![LinkAttribute::IfAlias(alias)], outer).await
    }
}
