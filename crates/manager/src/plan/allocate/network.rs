//! Subnets and network numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use shoal_model::{AddressPool, Cluster, IdGenerator, Network, NetworkId, NetworkState, Node, Object};
use shoal_store::State;

use super::super::Draft;
use super::addresses::{address, number};

/// The lowest VXLAN network identifier, as Docker's; the highest is a property of VXLAN (RFC 7348 §5).
const VNI_FIRST: u32 = 4096;
const VNI_LAST: u32 = (1 << 24) - 1;
/// Docker's option for a VXLAN network identifier of the user's choice.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// Why a network cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSubnet {
    #[error("all predefined address pools have been fully subnetted")]
    PoolsExhausted,
    #[error("no vxlan network identifier is free")]
    VnisExhausted,
    #[error("invalid vxlan id value {0:?} passed: it must be one number from {VNI_FIRST} to {VNI_LAST}")]
    BadVni(String),
    #[error("vxlan id {vni} is in use by network {network}")]
    VniInUse { vni: u32, network: String },
    #[error("subnet {subnet} overlaps with {with}")]
    Overlap { subnet: IpNet, with: String },
}

/// Gives a network its number and subnets. One that has them, or is not there, stays as it is.
pub(crate) fn network(draft: &mut Draft, id: &NetworkId, ids: &mut IdGenerator) -> Result<(), NoSubnet> {
    let Some(network) = draft.state().network(id).filter(|network| network.state.is_none()) else {
        return Ok(());
    };
    let mut network = Network::clone(network);
    let mut pools = network.spec.pools.clone();
    for pool in pools.iter().filter(|_| !network.spec.is_shared()) {
        if let Some(with) = overlap_of(draft.state(), Some(id), pool.subnet) {
            return Err(NoSubnet::Overlap { subnet: pool.subnet, with });
        }
    }
    let by_node = network.spec.is_by_node();
    if !by_node && !pools.iter().any(|pool| pool.subnet.addr().is_ipv4()) {
        pools.push(AddressPool::new(cut(draft.state(), id)?));
    }
    if network.spec.ipv6 && !pools.iter().any(|pool| pool.subnet.addr().is_ipv6()) {
        pools.push(AddressPool::new(unique_local(ids)));
    }
    for pool in &mut pools {
        pool.gateway = pool.gateway.or_else(|| first_host(pool));
    }
    let vni = match network.spec.options.get(VNI_OPTION) {
        Some(wanted) => chosen_vni(draft.state(), wanted)?,
        None => next_vni(draft)?,
    };
    network.state =
        Some(NetworkState { vni, pools, last_address: None, last_address_v6: None, resting: Vec::new() });
    draft.put(Object::Network(network));
    Ok(())
}

/// The first address of a subnet that is nobody's: neither the subnet's own nor one set aside.
fn first_host(pool: &AddressPool) -> Option<IpAddr> {
    let first = number(pool.subnet.network()) + 1;
    let hosts = (first..=number(pool.subnet.broadcast())).map(|host| address(host, pool.subnet.addr()));
    let mut free = hosts.filter(|host| !pool.reserved.values().any(|reserved| reserved == host));
    free.next()
}

/// The first subnet of the cluster's pools that overlaps with nothing.
fn cut(state: &State, id: &NetworkId) -> Result<IpNet, NoSubnet> {
    let spec = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    let taken: BTreeSet<IpNet> = taken(state, Some(id)).map(|(subnet, _)| subnet.trunc()).collect();
    let free = spec.default_pools.iter().find_map(|pool| {
        let size = spec.default_subnet_size.max(pool.prefix_len());
        first_free(*pool, size, &taken)
    });
    free.ok_or(NoSubnet::PoolsExhausted)
}

/// The first subnet of a size within a pool that overlaps with nothing taken. What is in the way is
/// stepped over as a whole, however large it is.
fn first_free(pool: IpNet, size: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let mut start = number(pool.network());
    while start <= number(pool.broadcast()) {
        let candidate = IpNet::new(address(start, pool.addr()), size).ok()?;
        match in_the_way(candidate, taken) {
            None => return Some(candidate),
            Some(blocked) => start = number(blocked.broadcast()).checked_add(1)?,
        }
    }
    None
}

/// The larger of a subnet and of what overlaps with it, if anything does. Prefixes are within each
/// other or apart, so only the candidate's own and those around it need to be looked up.
fn in_the_way(candidate: IpNet, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let around = (0..=candidate.prefix_len()).filter_map(|size| IpNet::new(candidate.addr(), size).ok());
    let mut around = around.map(|prefix| prefix.trunc()).filter(|prefix| taken.contains(prefix));
    let within = || taken.range(candidate..).next().filter(|prefix| candidate.contains(*prefix));
    around.next().or_else(|| within().map(|_| candidate))
}

/// A random /64 of the unique local addresses (RFC 4193 §3).
fn unique_local(ids: &mut IdGenerator) -> IpNet {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&ids.bytes::<7>());
    IpNet::V6(Ipv6Net::new_assert(bytes.into(), 64))
}

pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Whose a subnet is that no other network may have.
enum Holder<'a> {
    Network(&'a Network),
    Address(&'a Node),
    Route(&'a Node),
}

/// Everything a network may not overlap with: the other networks, the nodes' addresses, and what the
/// nodes have routes to.
fn taken<'a>(state: &'a State, own: Option<&'a NetworkId>) -> impl Iterator<Item = (IpNet, Holder<'a>)> {
    let others = state.networks().filter(move |network| Some(&network.id) != own);
    let pools = others.flat_map(|network| {
        let pools = network.state.as_ref().map_or(&network.spec.pools, |state| &state.pools);
        pools.iter().map(move |pool| (pool.subnet, Holder::Network(network)))
    });
    let addresses = state.nodes().flat_map(|node| {
        [node.status.address, node.data_path_address].map(|address| (address.into(), Holder::Address(node)))
    });
    let routes = state
        .nodes()
        .flat_map(|node| node.description.routes.iter().map(move |route| (*route, Holder::Route(node))));
    pools.chain(addresses).chain(routes)
}

/// What a subnet overlaps with, in words.
pub(crate) fn overlap_of(state: &State, own: Option<&NetworkId>, subnet: IpNet) -> Option<String> {
    let (other, holder) = taken(state, own).find(|(other, _)| overlap(*other, subnet))?;
    Some(match holder {
        Holder::Network(network) => format!("subnet {other} of network {}", network.spec.name),
        Holder::Address(node) => format!("address {} of node {}", other.addr(), node.description.hostname),
        Holder::Route(node) => format!("route {other} of node {}", node.description.hostname),
    })
}

/// How a node's own routes clash with networks that were there before them; empty when they do not.
/// Such a network may not work on that node, or the node may not reach what it has the route to.
pub(crate) fn clash(state: &State, routes: &BTreeSet<IpNet>) -> String {
    let own = state.networks().filter(|network| !network.spec.is_shared());
    let clashes = own.flat_map(|network| {
        let pools = network.state.iter().flat_map(|state| &state.pools);
        pools.filter_map(|pool| {
            let route = routes.iter().find(|route| overlap(**route, pool.subnet))?;
            Some(format!(
                "route {route} overlaps with subnet {} of network {}",
                pool.subnet, network.spec.name
            ))
        })
    });
    clashes.collect::<Vec<_>>().join(", ")
}

/// The number a user asks for. Docker takes a list, one for each subnet; here a network has one.
fn chosen_vni(state: &State, wanted: &str) -> Result<u32, NoSubnet> {
    let vni = wanted.parse().ok().filter(|vni| (VNI_FIRST..=VNI_LAST).contains(vni));
    let vni = vni.ok_or_else(|| NoSubnet::BadVni(wanted.to_owned()))?;
    let holds =
        |network: &&std::sync::Arc<Network>| network.state.as_ref().is_some_and(|held| held.vni == vni);
    match state.networks().find(holds) {
        Some(holder) => Err(NoSubnet::VniInUse { vni, network: holder.spec.name.clone() }),
        None => Ok(vni),
    }
}

/// The next free number behind the last, going round, so that a number comes back as late as
/// possible: a node that still has the old network under it must not mix it up with the new one.
fn next_vni(draft: &mut Draft) -> Result<u32, NoSubnet> {
    let state = draft.state();
    let used: BTreeSet<u32> =
        state.networks().filter_map(|network| Some(network.state.as_ref()?.vni)).collect();
    let cluster = state.cluster().cloned();
    let last = cluster.as_ref().and_then(|cluster| cluster.last_vni);
    // Before the last one was noted, numbers were given in order.
    let last = last.or_else(|| used.last().copied()).unwrap_or(VNI_FIRST - 1);
    let behind = last.saturating_add(1).max(VNI_FIRST)..=VNI_LAST;
    let mut candidates = behind.chain(VNI_FIRST..=last.min(VNI_LAST));
    let vni = candidates.find(|vni| !used.contains(vni)).ok_or(NoSubnet::VnisExhausted)?;
    if let Some(cluster) = cluster {
        draft.put(Object::Cluster(Cluster { last_vni: Some(vni), ..Cluster::clone(&cluster) }));
    }
    Ok(vni)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(pool: &str, size: u8, taken: &[&str]) -> Option<String> {
        let taken = taken.iter().map(|subnet| subnet.parse().unwrap()).collect();
        first_free(pool.parse().unwrap(), size, &taken).map(|subnet| subnet.to_string())
    }

    #[test]
    fn a_subnet_is_cut_behind_what_is_in_the_way() {
        assert_eq!(free("10.0.0.0/8", 24, &[]).as_deref(), Some("10.0.0.0/24"));
        assert_eq!(free("10.0.0.0/8", 24, &["10.0.0.0/16"]).as_deref(), Some("10.1.0.0/24"));
        assert_eq!(free("10.0.0.0/8", 24, &["10.0.0.7/32", "10.0.1.128/25"]).as_deref(), Some("10.0.2.0/24"));
        assert_eq!(free("10.0.0.0/8", 24, &["10.0.0.0/9", "10.128.0.0/9"]), None);
        assert_eq!(free("10.0.0.0/8", 24, &["0.0.0.0/1"]), None);
        assert_eq!(
            free("255.255.255.0/24", 25, &["255.255.255.0/25"]).as_deref(),
            Some("255.255.255.128/25")
        );
        assert_eq!(free("255.255.255.0/24", 25, &["255.255.255.0/24"]), None);
        assert_eq!(free("fd00::/8", 64, &["fd00::/16"]).as_deref(), Some("fd01::/64"));
    }

    #[test]
    fn the_gateway_is_the_first_address_nobody_has() {
        let mut pool = AddressPool::new("10.0.1.0/24".parse().unwrap());
        assert_eq!(first_host(&pool), "10.0.1.1".parse().ok());
        pool.reserved.insert("router".to_owned(), "10.0.1.1".parse().unwrap());
        assert_eq!(first_host(&pool), "10.0.1.2".parse().ok());
        let six = AddressPool::new("fd00:1::/64".parse().unwrap());
        assert_eq!(first_host(&six), "fd00:1::1".parse().ok(), "the subnet's own address is the routers'");
    }
}
