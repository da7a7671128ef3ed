//! A network that ends at the node: a bridge in the node's own namespace, which is the containers' gateway.
//!
//! Its links are the node's, so that the node reaches its containers, as with Docker. Who else may reach
//! whom is a matter of a few sets in the node's nftables.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;
use shoal_model::{BridgeConfig, NetworkId, NetworkTable};

use crate::fabric::Inner;
use crate::netlink::Netlink;
use crate::owner::{self, bridge_mac, local_link, node_alias};
use crate::sandbox::Ports;
use crate::tables::{Edit, Elements, Held, Set, Tables, difference};
use crate::{Error, Result, link, sysctl};

/// A bridge as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    open: bool,
}

impl Bridge {
    /// How its ports deal with each other; `filtered`: the node's filters see bridged frames.
    pub(crate) fn ports(&self, filtered: bool) -> Ports {
        match (filtered, self.open) {
            (true, _) => Ports::Filtered,
            (false, true) => Ports::Open,
            (false, false) => Ports::Isolated,
        }
    }

    /// Makes the bridge, or what is missing of it, and brings the node's rules in line with it.
    pub(crate) async fn ensure(
        inner: &Inner,
        tables: &mut Tables,
        table: &NetworkTable,
        config: &BridgeConfig,
        mtu: u32,
    ) -> Result<Self> {
        let (netlink, name) = (&inner.netlink, &config.link);
        tables.ensure().await?;
        let what = local_link(&table.network);
        match netlink.link(name).await? {
            Some(link) => Self::check(&inner.tag, &table.network, &link)?,
            None => {
                netlink.add_link(link::bridge(name, Some(bridge_mac(&inner.tag, &what)), mtu), name).await?
            }
        }
        let index = netlink.index(name).await?;
        let alias = LinkAttribute::IfAlias(node_alias(&inner.tag, &what));
        netlink.change_link(index, vec![alias, LinkAttribute::Mtu(mtu)], name).await?;
        let (device, has_v6) = (name.clone(), addresses(table).any(|address| address.addr().is_ipv6()));
        inner.namespace.run(move || set_settings(&device, has_v6)).await?;
        ensure_addresses(netlink, index, table).await?;
        netlink.set_up(index, name).await?;
        let wanted = elements(table, config);
        tables.edit(&SETS, |held| edits(held, &wanted, name)).await?;
        Ok(Self { index, mtu, open: config.open })
    }

    /// What the kernel really holds is not what [`ensure`](Self::ensure) makes, in words.
    pub(crate) async fn differences(
        inner: &Inner,
        tables: &Tables,
        table: &NetworkTable,
        config: &BridgeConfig,
    ) -> Result<Vec<String>> {
        let name = &config.link;
        let Some(link) = inner.netlink.link(name).await?.filter(|link| link.up) else {
            return Ok(vec![format!("fabric: link {name} is gone or down")]);
        };
        let held = inner.netlink.addresses().await?;
        let missing = addresses(table).filter(|address| !held.contains(&(link.index, *address)));
        let mut differences: Vec<String> =
            missing.map(|address| format!("fabric: link {name} has not the address {address}")).collect();
        let wanted = elements(table, config);
        differences.extend(tables.element_differences(&SETS, |held| edits(held, &wanted, name)).await?);
        Ok(differences)
    }

    /// Refuses a link that is not this network's.
    pub(crate) fn check(tag: &str, network: &NetworkId, link: &link::Link) -> Result<()> {
        let alias = link.alias.as_deref();
        let own =
            alias.and_then(|alias| owner::parse_node_alias(tag, alias)).and_then(owner::parse_local_link);
        match alias {
            // Made by us, but we died before we could mark it.
            None if link.name.starts_with("br-") => Ok(()),
            _ if own.as_ref() == Some(network) => Ok(()),
            _ => Err(Error::Foreign { name: format!("link {}", link.name) }),
        }
    }

    /// Removes a bridge with its rules.
    pub(crate) async fn remove(netlink: &Netlink, tables: &mut Tables, name: &str) -> Result<()> {
        netlink.remove_link(name).await?;
        tables.edit(&SETS, |held| edits(held, &Held::new(), name)).await.map(drop)
    }
}

/// The bridge's own addresses.
fn addresses(table: &NetworkTable) -> impl Iterator<Item = IpNet> + '_ {
    table.config.pools.iter().filter_map(|pool| IpNet::new(pool.gateway?, pool.subnet.prefix_len()).ok())
}

async fn ensure_addresses(netlink: &Netlink, index: u32, table: &NetworkTable) -> Result<()> {
    let wanted: BTreeSet<IpNet> = addresses(table).collect();
    let held = netlink.addresses().await?.into_iter().filter(|(link, _)| *link == index);
    let held: BTreeSet<IpNet> = held.map(|(_, address)| address).collect();
    for address in wanted.difference(&held) {
        netlink.add_address(index, *address, true).await?;
    }
    Ok(())
}

fn set_settings(device: &str, has_v6: bool) -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    // Nobody else has its addresses: without a check the bridge serves at once.
    sysctl::set_if_present(&format!("ipv6/conf/{device}/accept_dad"), "0")?;
    sysctl::set_if_present(&format!("ipv6/conf/{device}/disable_ipv6"), if has_v6 { "0" } else { "1" })?;
    // A container is no router.
    sysctl::set_if_present(&format!("ipv6/conf/{device}/accept_ra"), "0")?;
    if has_v6 && sysctl::has_ipv6() { sysctl::forward_ipv6() } else { Ok(()) }
}

// === rules ===

const SETS: [Set; 4] = [Set::Bridges, Set::Masqueraded, Set::Internal, Set::Open];

/// A link's name in nft's words.
fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn elements(table: &NetworkTable, config: &BridgeConfig) -> Held {
    let name = quoted(&config.link);
    let mut held = Held::from([(Set::Bridges, one(name.clone()))]);
    if config.open {
        held.insert(Set::Open, one(format!("{name} . {name}")));
    }
    if table.config.internal {
        held.insert(Set::Internal, one(name));
    } else if config.masquerade {
        held.insert(Set::Masqueraded, one(name));
    }
    held
}

fn one(key: String) -> Elements {
    Elements::from([(key, String::new())])
}

/// What must be edited for one bridge. Those of other networks are left alone.
fn edits(held: &Held, wanted: &Held, name: &str) -> Vec<Edit> {
    let (name, nothing) = (quoted(name), Elements::new());
    let is_its = |key: &str, _: &str| key.split(" . ").next() == Some(&name);
    SETS.into_iter()
        .flat_map(|set| difference(set, held, wanted.get(&set).unwrap_or(&nothing), is_its))
        .collect()
}
