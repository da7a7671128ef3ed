//! Making and removing sandboxes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use shoal_model::NetworkId;

use crate::error::Failures;
use crate::fabric::{Inner, remove_link};
use crate::gateway::{Gateway, choose_address};
use crate::local::Local;
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::owner::{GATEWAY, Purpose, parse_sandbox_alias};
use crate::sandbox::{self, Interface, Outside, Ports, Wire};
use crate::state::State;
use crate::{Error, Fabric, Result, Sandbox, SandboxAttachment, SandboxConfig, SandboxLink, sysctl};

impl Fabric {
    /// Makes a sandbox, or what is missing of it. The networks it is attached to must have been
    /// applied.
    pub async fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        let inner = &*self.inner;
        if !matches!(Purpose::of(&config.id), Purpose::Sandbox(_)) {
            return Err(Error::InvalidName(config.id.clone()));
        }
        let mut state = inner.state.lock().await;
        let (namespace, _) = inner.directory.ensure(&config.id).await?;
        let result = inner.furnish(&mut state, &namespace, config).await;
        if let Ok(sandbox) = &result {
            state.sandboxes.insert(config.id.clone(), sandbox.clone());
        }
        result
    }

    /// Removes a sandbox with its links; one that is not there is fine. What still runs inside keeps
    /// its namespace, without any link.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        // Also finds what an earlier process made, or what was left half made.
        let found = inner.scan().await?.sandboxes.remove(id);
        let mut failures = Failures::default();
        if let Some(namespace) = inner.directory.get(id)? {
            failures.note(inner.remove_parts(id, &namespace).await);
        }
        for link in found.iter().flat_map(|sandbox| &sandbox.links) {
            failures.note(inner.remove_outer(link).await);
        }
        failures.note(inner.directory.remove(id));
        inner.directory.remove_if_empty();
        state.sandboxes.remove(id);
        failures.finish()
    }
}

impl Inner {
    async fn furnish(
        &self,
        state: &mut State,
        namespace: &Namespace,
        config: &SandboxConfig,
    ) -> Result<Sandbox> {
        let netlink = Netlink::open(namespace).await?;
        namespace.run(sandbox::prepare).await?;
        netlink.set_up(netlink.index("lo").await?, "lo").await?;
        let filtered = self.namespace.run(|| sysctl::is_on("bridge/bridge-nf-call-iptables")).await?;
        let held = self.retain_links(state, &netlink, config).await?;
        let (positions, last) = positions(config, &held);
        let mut links = Vec::new();
        for (position, attachment) in positions.into_iter().zip(&config.attachments) {
            let interface = self.interface(state, position, attachment, filtered)?;
            links.push(interface.ensure(&self.tag, &config.id, namespace, &netlink).await?);
        }
        if config.needs_gateway() {
            links.push(self.ensure_gateway_link(state, namespace, &netlink, config, last, filtered).await?);
        }
        let sysctls = config.sysctls.clone();
        let set = move || sysctls.iter().try_for_each(|(key, value)| sysctl::set_key(key, value));
        namespace.run(set).await?;
        Ok(Sandbox { id: config.id.clone(), path: namespace.path().to_owned(), links })
    }

    async fn remove_parts(&self, sandbox: &str, namespace: &Namespace) -> Result<()> {
        let inside = Netlink::open(namespace).await?;
        for link in parts(&self.tag, sandbox, &inside).await? {
            inside.remove_link(&link.interface).await?;
        }
        Ok(())
    }

    /// Takes away what the sandbox is not to have any more; returns the rest of what it has.
    async fn retain_links(
        &self,
        state: &State,
        inside: &Netlink,
        config: &SandboxConfig,
    ) -> Result<Vec<SandboxLink>> {
        let known = state.sandboxes.get(&config.id).map(|sandbox| sandbox.links.clone());
        let mut held = known.unwrap_or_default();
        // What has no end outside is only seen from inside.
        for link in parts(&self.tag, &config.id, inside).await? {
            if held.iter().all(|known| known.interface != link.interface) {
                held.push(link);
            }
        }
        let is_wanted = |link: &SandboxLink| match &link.network {
            Some(network) => config.attachments.iter().any(|attachment| attachment.network == *network),
            None => config.needs_gateway(),
        };
        for link in held.iter().filter(|link| !is_wanted(link)) {
            self.remove_outer(link).await?;
            inside.remove_link(&link.interface).await?;
        }
        held.retain(is_wanted);
        Ok(held)
    }

    fn interface<'a>(
        &'a self,
        state: &'a State,
        position: usize,
        attachment: &'a SandboxAttachment,
        filtered: bool,
    ) -> Result<Interface<'a>> {
        let missing = || Error::NetworkNotApplied(attachment.network.clone());
        if attachment.ingress {
            let ingress = state.ingress.as_ref().ok_or_else(missing)?;
            let ports = if filtered { Ports::Filtered } else { Ports::Open };
            let gateways = [Some(ingress.gateway.into()), ingress.gateway_v6.map(IpAddr::V6)];
            // Everybody else of its IPv6 subnet is behind the gateway, too.
            let address_v6 = attachment.address_v6.filter(|_| ingress.gateway_v6.is_some());
            return Ok(Interface {
                network: Some(&attachment.network),
                position,
                mac: Some(attachment.mac),
                address: attachment.address,
                address_v6: address_v6.map(|address| IpNet::from(address.addr())),
                subnets: &[],
                default_via: gateways.into_iter().flatten().collect(),
                wire: Wire::Pair(self.outside(ingress.bridge, ingress.mtu, ports)),
            });
        }
        let wire = match state.locals.get(&attachment.network) {
            Some(Local::Bridge(bridge)) => {
                Wire::Pair(self.outside(bridge.index, bridge.mtu, bridge.ports(filtered)))
            }
            Some(Local::Macvlan(macvlan)) => Wire::Part(macvlan, &self.netlink),
            None => {
                let overlay = state.overlays.get(&attachment.network).ok_or_else(missing)?;
                Wire::Pair(Outside {
                    namespace: &overlay.namespace,
                    netlink: &overlay.netlink,
                    bridge: overlay.bridge,
                    mtu: overlay.mtu,
                    ports: Ports::Open,
                })
            }
        };
        Ok(Interface {
            network: Some(&attachment.network),
            position,
            mac: Some(attachment.mac),
            address: attachment.address,
            address_v6: attachment.address_v6,
            subnets: &attachment.subnets,
            default_via: attachment.default_via.clone(),
            wire,
        })
    }

    /// A bridge in the node's own namespace.
    fn outside(&self, bridge: u32, mtu: u32, ports: Ports) -> Outside<'_> {
        Outside { namespace: &self.namespace, netlink: &self.netlink, bridge, mtu, ports }
    }

    async fn ensure_gateway_link(
        &self,
        state: &mut State,
        namespace: &Namespace,
        inside: &Netlink,
        config: &SandboxConfig,
        position: usize,
        filtered: bool,
    ) -> Result<SandboxLink> {
        let gateway = self.ensure_gateway(state, config).await?;
        let address = match state.gateway_address(&config.id) {
            Some(address) if gateway.subnet().contains(&address) => address,
            _ => choose_address(gateway.subnet(), &state.gateway_addresses(), state.last_gateway_address)?,
        };
        let prefix = gateway.address.prefix_len();
        let net = Ipv4Net::new(address, prefix).map_err(|error| Error::Unexpected(error.to_string()))?;
        let ports = if filtered { Ports::Filtered } else { Ports::Isolated };
        let interface = Interface {
            network: None,
            position,
            mac: None,
            address: IpNet::V4(net),
            address_v6: gateway.v6_of(address),
            subnets: &[],
            default_via: gateway.addresses().map(|address| address.addr()).collect(),
            wire: Wire::Pair(self.outside(gateway.index, gateway.mtu, ports)),
        };
        let link = interface.ensure(&self.tag, &config.id, namespace, inside).await?;
        state.last_gateway_address = Some(address);
        Ok(link)
    }

    /// Made with the first sandbox that needs it.
    async fn ensure_gateway(&self, state: &mut State, config: &SandboxConfig) -> Result<Gateway> {
        let present = self.netlink.link(GATEWAY).await?;
        if let (Some(gateway), Some(link)) = (&state.gateway, present)
            && link.index == gateway.index
            && link.up
        {
            return Ok(gateway.clone());
        }
        let underlay = state.node.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |(_, underlay)| *underlay);
        let mtu = self.underlay_mtu(underlay).await?;
        let own = config.attachments.iter().filter_map(|attachment| match attachment.address {
            IpNet::V4(address) => Some(address.trunc()),
            IpNet::V6(_) => None,
        });
        let avoid: Vec<Ipv4Net> = own.collect();
        self.tables.lock().await.ensure().await?;
        let gateway = Gateway::ensure(&self.namespace, &self.netlink, &self.tag, mtu, &avoid).await?;
        state.gateway = Some(gateway.clone());
        Ok(gateway)
    }

    async fn remove_outer(&self, link: &SandboxLink) -> Result<()> {
        let Some(end) = &link.far_end else { return Ok(()) };
        if end.netns == self.namespace.path() {
            self.netlink.remove_link(&end.interface).await
        } else {
            remove_link(&Namespace::open(&end.netns)?, &end.interface).await
        }
    }
}

/// The interfaces in a sandbox that have no end outside.
async fn parts(tag: &str, sandbox: &str, inside: &Netlink) -> Result<Vec<SandboxLink>> {
    let links = inside.links().await?;
    let parsed = links.iter().filter_map(|link| {
        let (owner, found) = parse_sandbox_alias(tag, link.alias.as_deref()?, Path::new(""), &link.name)?;
        (owner == sandbox).then_some(SandboxLink { far_end: None, ..found })
    });
    Ok(parsed.collect())
}

/// The number of each attachment's interface, and that of the gateway link: who has one keeps it, the others
/// get the lowest that are free.
fn positions(config: &SandboxConfig, held: &[SandboxLink]) -> (Vec<usize>, usize) {
    let number = |link: &SandboxLink| link.interface.strip_prefix("eth")?.parse::<usize>().ok();
    let of = |network: Option<&NetworkId>| {
        held.iter().find(|link| link.network.as_ref() == network).and_then(number)
    };
    let mut taken: BTreeSet<usize> = held.iter().filter_map(number).collect();
    let mut next = |held: Option<usize>| {
        held.unwrap_or_else(|| {
            let free = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
            taken.insert(free);
            free
        })
    };
    let attached = config.attachments.iter().map(|attachment| next(of(Some(&attachment.network)))).collect();
    (attached, next(of(None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(interface: &str, network: Option<&str>) -> SandboxLink {
        SandboxLink {
            network: network.map(NetworkId::new),
            interface: interface.to_owned(),
            far_end: None,
            address: None,
            address_v6: None,
        }
    }

    fn on(networks: &[&str]) -> SandboxConfig {
        let attachment = |network: &&str| SandboxAttachment {
            network: NetworkId::new(*network),
            ingress: false,
            address: "10.0.1.2/24".parse().unwrap(),
            address_v6: None,
            subnets: Vec::new(),
            mac: shoal_model::MacAddr([2, 0, 0, 0, 0, 1]),
            default_via: Vec::new(),
        };
        SandboxConfig { attachments: networks.iter().map(attachment).collect(), ..SandboxConfig::default() }
    }

    #[test]
    fn who_has_an_interface_keeps_it() {
        assert_eq!(positions(&on(&["a", "b"]), &[]), (vec![0, 1], 2));
        let held = [link("eth0", Some("a")), link("eth1", None)];
        assert_eq!(positions(&on(&["a", "b"]), &held), (vec![0, 2], 1), "joined later");
        let held = [link("eth1", Some("b")), link("eth2", None)];
        assert_eq!(positions(&on(&["b", "c"]), &held), (vec![1, 0], 2), "the place of one that was left");
    }
}
