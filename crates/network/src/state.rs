//! What a node's fabric knows, and how it is found again in the kernel after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use shoal_model::{NetworkId, NodeId};

use crate::gateway::Gateway;
use crate::ingress::Ingress;
use crate::local::Local;
use crate::netlink::Netlink;
use crate::netns::{Directory, Namespace};
use crate::overlay::Overlay;
use crate::owner::{self, GATEWAY, INGRESS, INGRESS_TUNNEL, Purpose};
use crate::{Result, Sandbox};

/// Everything known; written only under the fabric's lock.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) node: Option<(NodeId, Ipv4Addr)>,
    /// Overlays whose table was applied by this process.
    pub(crate) overlays: BTreeMap<NetworkId, Overlay>,
    pub(crate) ingress: Option<Ingress>,
    /// Networks that end at the node, as this process applied them.
    pub(crate) locals: BTreeMap<NetworkId, Local>,
    pub(crate) gateway: Option<Gateway>,
    /// Sandboxes with links, made by this process or found.
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    /// Networks whose links may have another size than they were given.
    pub(crate) doubted: BTreeSet<NetworkId>,
    /// The gateway address given out last.
    pub(crate) last_gateway_address: Option<Ipv4Addr>,
}

impl State {
    /// Gateway addresses in use.
    pub(crate) fn gateway_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let links = self.sandboxes.values().flat_map(|sandbox| &sandbox.links);
        let addresses = links.filter(|link| link.network.is_none()).filter_map(|link| link.address);
        addresses.filter_map(v4).collect()
    }

    /// The name of the far end of a sandbox's link to a network; `None`: of its gateway link.
    pub(crate) fn far_end(&self, sandbox: &str, network: Option<&NetworkId>) -> Option<String> {
        let links = &self.sandboxes.get(sandbox)?.links;
        let link = links.iter().find(|link| link.network.as_ref() == network)?;
        link.far_end.as_ref().map(|end| end.interface.clone())
    }

    /// The same of all sandboxes.
    pub(crate) fn far_ends(&self) -> BTreeMap<String, BTreeMap<Option<NetworkId>, String>> {
        let ends = self.sandboxes.iter().map(|(id, sandbox)| {
            let ends = sandbox
                .links
                .iter()
                .filter_map(|link| Some((link.network.clone(), link.far_end.as_ref()?.interface.clone())));
            (id.clone(), ends.collect())
        });
        ends.collect()
    }

    /// The gateway address a sandbox has already.
    pub(crate) fn gateway_address(&self, sandbox: &str) -> Option<Ipv4Addr> {
        let links = &self.sandboxes.get(sandbox)?.links;
        links.iter().find(|link| link.network.is_none())?.address.and_then(v4)
    }
}

fn v4(address: IpNet) -> Option<Ipv4Addr> {
    match address.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// What the kernel holds of a node, whoever made it.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    /// Overlays by their namespace; `None` where only the name of one is left.
    pub(crate) overlays: BTreeMap<NetworkId, Option<Namespace>>,
    /// The ingress network, as its links say.
    pub(crate) ingress: Option<NetworkId>,
    /// The links of networks that end at the node.
    pub(crate) locals: BTreeMap<NetworkId, String>,
    /// Outer ends of sandbox links whose making was cut off.
    pub(crate) unfinished: Vec<(Namespace, String)>,
}

impl Found {
    pub(crate) async fn scan(
        directory: &Directory,
        node: &Namespace,
        netlink: &Netlink,
        tag: &str,
    ) -> Result<Self> {
        let mut found = Self::default();
        found.scan_namespace(node, netlink, tag).await?;
        for name in directory.names()? {
            match Purpose::of(&name) {
                Purpose::Sandbox(id) => {
                    let path = directory.path(id)?;
                    found.sandboxes.entry(id.to_owned()).or_insert_with(|| empty(id, path));
                }
                Purpose::Network(network) => {
                    let namespace = directory.get(&name)?;
                    if let Some(namespace) = &namespace {
                        found.scan_namespace(namespace, &Netlink::open(namespace).await?, tag).await?;
                    }
                    found.overlays.insert(network, namespace);
                }
            }
        }
        for (id, sandbox) in &mut found.sandboxes {
            sandbox.path = directory.path(id)?;
            sandbox.links.sort_by_key(|link| (link.interface.len(), link.interface.clone()));
        }
        Ok(found)
    }

    async fn scan_namespace(&mut self, namespace: &Namespace, netlink: &Netlink, tag: &str) -> Result<()> {
        let links = netlink.links().await?;
        let bridges: BTreeSet<u32> = links
            .iter()
            .filter(|link| {
                link.alias.as_deref().is_some_and(|alias| owner::parse_node_alias(tag, alias).is_some())
            })
            .map(|link| link.index)
            .collect();
        for link in &links {
            let Some(alias) = link.alias.as_deref() else {
                let plugged = link.controller.is_some_and(|controller| bridges.contains(&controller));
                if plugged && owner::is_host_interface(&link.name) {
                    self.unfinished.push((namespace.clone(), link.name.clone()));
                }
                continue;
            };
            if let Some((id, link)) = owner::parse_sandbox_alias(tag, alias, namespace.path(), &link.name) {
                let sandbox =
                    self.sandboxes.entry(id.clone()).or_insert_with(|| empty(&id, Default::default()));
                sandbox.links.push(link);
            } else if let Some(network) =
                owner::parse_node_alias(tag, alias).and_then(owner::parse_local_link)
            {
                self.locals.insert(network, link.name.clone());
            } else if matches!(link.name.as_str(), INGRESS | INGRESS_TUNNEL) {
                self.ingress =
                    owner::parse_node_alias(tag, alias).map(NetworkId::new).or(self.ingress.take());
            }
        }
        Ok(())
    }
}

fn empty(id: &str, path: std::path::PathBuf) -> Sandbox {
    Sandbox { id: id.to_owned(), path, links: Vec::new() }
}

/// The gateway bridge is there.
pub(crate) async fn has_gateway(netlink: &Netlink, tag: &str) -> Result<bool> {
    let link = netlink.link(GATEWAY).await?;
    Ok(link.is_some_and(|link| owner::check(tag, GATEWAY, link.alias.as_deref()).is_ok()))
}
