//! What the kernel really holds, against what was asked for; and the way back to it.
//!
//! Nothing is put right here: the same calls that apply a table do that, once they are told to trust
//! nothing that they believe of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use shoal_model::{NetworkId, NetworkTable};

use crate::fabric::Inner;
use crate::gateway::Gateway;
use crate::ingress::{Blueprint, Ingress};
use crate::link::{Link, Tunnel};
use crate::local::Local;
use crate::mtu::Size;
use crate::neighbour::Entry;
use crate::netlink::Netlink;
use crate::overlay::{self, Overlay, Remotes};
use crate::owner::{GATEWAY, parse_sandbox_alias};
use crate::{Error, Fabric, HostPorts, Ports, Result, SandboxConfig, membership, ports, sysctl};

/// What the node as a whole needs of its own namespace; a machine may be without IPv6.
const SETTINGS: &[(&str, &str)] = &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

impl Fabric {
    /// Where the kernel differs from an applied table, in words.
    pub async fn differences(&self, table: &NetworkTable) -> Result<Vec<String>> {
        let inner = &*self.inner;
        if !table.config.is_overlay() {
            return inner.local_differences(table).await;
        }
        let (node, underlay, overlay, ingress) = {
            let state = inner.state.lock().await;
            let (node, underlay) = state.node.clone().ok_or(Error::NoNode)?;
            let ingress = state.ingress.clone().filter(|ingress| ingress.network == table.network);
            (node, underlay, state.overlays.get(&table.network).cloned(), ingress)
        };
        let size = Size::of(&table.config);
        let mtu = size.within(inner.underlay_mtu(underlay).await?);
        let mut differences = match (overlay, ingress) {
            (Some(overlay), _) => {
                let tunnel =
                    Tunnel { vni: table.config.vni, local: underlay, port: table.config.data_path_port };
                let network = table.network.as_str();
                let wanted = overlay::Blueprint { tag: &inner.tag, network, tunnel, mtu, size };
                overlay.differences(&wanted, &Remotes::of(table, &node)).await?
            }
            (None, Some(ingress)) => {
                let wanted = Blueprint::of(table, &node, underlay, mtu, sysctl::has_ipv6())?;
                let tables = inner.tables.lock().await;
                ingress.differences(&inner.namespace, &inner.netlink, &tables, &wanted).await?
            }
            (None, None) => return Err(Error::NetworkNotApplied(table.network.clone())),
        };
        let tables = inner.tables.lock().await;
        differences.extend(membership::differences(&tables, table, &node).await?);
        Ok(differences)
    }

    /// Where the ports that the kernel publishes differ from these, in words.
    pub async fn port_differences(&self, ports: &Ports) -> Result<Vec<String>> {
        let wanted = ports::elements(ports, self.inner.number().await);
        let tables = self.inner.tables.lock().await;
        tables.element_differences(&ports::SETS, |held| ports::plan(&wanted, held)).await
    }

    /// The same of ports of single containers.
    pub async fn host_port_differences(&self, ports: &HostPorts) -> Result<Vec<String>> {
        let wanted = ports::host_elements(ports);
        let tables = self.inner.tables.lock().await;
        tables.element_differences(&ports::HOST_SETS, |held| ports::plan(&wanted, held)).await
    }

    /// What of the node as a whole is not as it was made, in words: nftables rules, the gateway, the
    /// settings that both need.
    pub async fn node_differences(&self) -> Result<Vec<String>> {
        let inner = &*self.inner;
        let (gateway, has_ingress) = {
            let state = inner.state.lock().await;
            (state.gateway.clone(), state.ingress.is_some())
        };
        let mut differences: Vec<String> =
            inner.tables.lock().await.rule_difference().await?.into_iter().collect();
        if let Some(gateway) = &gateway {
            differences.extend(inner.gateway_differences(gateway).await?);
        }
        if gateway.is_some() || has_ingress {
            differences.extend(inner.namespace.run(|| sysctl::differences(SETTINGS)).await?);
        }
        Ok(differences)
    }

    /// Makes what the node as a whole needs again.
    pub async fn renew_node(&self) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        inner.tables.lock().await.renew_rules().await?;
        let forward = || {
            sysctl::set("ipv4/ip_forward", "1")?;
            if sysctl::has_ipv6() { sysctl::forward_ipv6() } else { Ok(()) }
        };
        inner.namespace.run(forward).await?;
        if let Some(known) = &state.gateway {
            let mtu = known.mtu;
            let gateway = Gateway::ensure(&inner.namespace, &inner.netlink, &inner.tag, mtu, &[]).await?;
            state.gateway = Some(gateway);
        }
        Ok(())
    }

    /// Believes nothing of what the kernel holds for a network: the next
    /// [`apply_network`](Self::apply_network) finds out.
    pub async fn distrust(&self, network: &NetworkId) {
        let is_ingress = {
            let mut state = self.inner.state.lock().await;
            state.doubted.insert(network.clone());
            state.ingress.as_ref().is_some_and(|ingress| ingress.network == *network)
        };
        self.inner.tables.lock().await.distrust(is_ingress);
    }

    /// Believes nothing of the elements of the node's tables: the next change finds out.
    pub async fn distrust_elements(&self) {
        self.inner.tables.lock().await.distrust(false);
    }

    /// The far ends of a sandbox's interfaces on overlays: network, namespace, name.
    pub async fn overlay_ends(&self, config: &SandboxConfig) -> Vec<(NetworkId, PathBuf, String)> {
        let state = self.inner.state.lock().await;
        let ends = config.attachments.iter().filter_map(|attachment| {
            let network = &attachment.network;
            let overlay = state.overlays.get(network)?;
            let end = state.far_end(&config.id, Some(network))?;
            Some((network.clone(), overlay.namespace.path().to_owned(), end))
        });
        ends.collect()
    }

    /// The sandbox's namespace is there.
    pub fn has_namespace(&self, sandbox: &str) -> Result<bool> {
        Ok(self.inner.directory.get(sandbox)?.is_some())
    }

    /// Which links of these sandboxes are not as they were made, in words, by the sandbox's id. Looked
    /// at from outside: what a container does to its own end is its business.
    pub async fn sandbox_differences(
        &self,
        configs: &[SandboxConfig],
    ) -> Result<BTreeMap<String, Vec<String>>> {
        let outsides = self.inner.outsides().await?;
        let mut differences = BTreeMap::new();
        for config in configs {
            let found = self.inner.look_at(config, &outsides)?;
            if !found.is_empty() {
                differences.insert(config.id.clone(), found);
            }
        }
        Ok(differences)
    }
}

/// One namespace with bridges, as it is.
struct Outside {
    links: Vec<Link>,
    entries: BTreeSet<Entry>,
}

impl Outside {
    async fn read(netlink: &Netlink) -> Result<Self> {
        let entries = netlink.entries().await?.into_iter().collect();
        Ok(Self { links: netlink.links().await?, entries })
    }
}

/// Everything sandboxes can be plugged into.
struct Outsides {
    node: Outside,
    overlays: BTreeMap<NetworkId, (Overlay, Outside)>,
    ingress: Option<Ingress>,
    gateway: Option<u32>,
    /// The bridges of this node's own networks.
    bridges: BTreeMap<NetworkId, u32>,
    /// The names of the sandboxes' far ends, by sandbox and network.
    ends: BTreeMap<String, BTreeMap<Option<NetworkId>, String>>,
}

impl Inner {
    async fn gateway_differences(&self, known: &Gateway) -> Result<Vec<String>> {
        let link = self.netlink.link(GATEWAY).await?;
        if !link.is_some_and(|link| link.index == known.index && link.up) {
            return Ok(vec![format!("fabric: link {GATEWAY} is gone or down")]);
        }
        let addresses = self.netlink.addresses().await?;
        let missing = known.addresses().filter(|address| !addresses.contains(&(known.index, *address)));
        let lacks = |address| format!("fabric: link {GATEWAY} has not the address {address}");
        Ok(missing.map(lacks).collect())
    }

    async fn outsides(&self) -> Result<Outsides> {
        let (overlays, ingress, bridges, ends) = {
            let state = self.state.lock().await;
            let bridge = |(network, local): (&NetworkId, &Local)| match local {
                Local::Bridge(bridge) => Some((network.clone(), bridge.index)),
                Local::Macvlan(_) => None,
            };
            let bridges = state.locals.iter().filter_map(bridge).collect();
            (state.overlays.clone(), state.ingress.clone(), bridges, state.far_ends())
        };
        let node = Outside::read(&self.netlink).await?;
        let gateway = node.links.iter().find(|link| link.name == GATEWAY).map(|link| link.index);
        let mut outsides = Outsides { node, overlays: BTreeMap::new(), ingress, gateway, bridges, ends };
        for (network, overlay) in overlays {
            let outside = Outside::read(&overlay.netlink).await?;
            outsides.overlays.insert(network, (overlay, outside));
        }
        Ok(outsides)
    }

    fn look_at(&self, config: &SandboxConfig, outsides: &Outsides) -> Result<Vec<String>> {
        if self.directory.get(&config.id)?.is_none() {
            return Ok(vec!["sandbox: its namespace is gone".to_owned()]);
        }
        let mut differences = Vec::new();
        for attachment in &config.attachments {
            let network = &attachment.network;
            let place = if attachment.ingress {
                outsides.ingress.as_ref().map(|ingress| (&outsides.node, ingress.bridge))
            } else if let Some(bridge) = outsides.bridges.get(network) {
                Some((&outsides.node, *bridge))
            } else {
                let found = outsides.overlays.get(network);
                found.map(|(overlay, outside)| (outside, overlay.bridge))
            };
            // Without its network there is nothing to compare with.
            let Some((outside, bridge)) = place else { continue };
            let end = outsides.ends.get(&config.id).and_then(|ends| ends.get(&Some(network.clone())));
            match end.and_then(|name| self.plugged(outside, name, bridge, &config.id)) {
                None => differences.push(format!("sandbox: no link to network {network}")),
                Some(index) => {
                    let entry = Entry::Port { index, mac: attachment.mac };
                    if !outside.entries.contains(&entry) {
                        differences.push(format!("sandbox: no {}", entry.describe()));
                    }
                }
            }
        }
        if config.needs_gateway() {
            let end = outsides.ends.get(&config.id).and_then(|ends| ends.get(&None));
            let plugged = outsides
                .gateway
                .zip(end)
                .and_then(|(bridge, name)| self.plugged(&outsides.node, name, bridge, &config.id));
            if plugged.is_none() {
                differences.push("sandbox: no link to the gateway".to_owned());
            }
        }
        Ok(differences)
    }

    /// The outer end of a sandbox's interface, if it is whole.
    fn plugged(&self, outside: &Outside, name: &str, bridge: u32, sandbox: &str) -> Option<u32> {
        let link = outside.links.iter().find(|link| link.name == name)?;
        let alias = link.alias.as_deref()?;
        let (owner, _) = parse_sandbox_alias(&self.tag, alias, self.namespace.path(), name)?;
        let whole = owner == sandbox && link.up && link.controller == Some(bridge);
        whole.then_some(link.index)
    }
}
