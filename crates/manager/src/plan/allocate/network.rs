//! Subnets and network numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use shoal_model::{AddressPool, IdGenerator, Network, NetworkId, NetworkState, Object};
use shoal_store::State;

use super::super::Draft;

/// The lowest VXLAN network identifier, as Docker's; the highest is a property of VXLAN (RFC 7348 §5).
const VNI_FIRST: u32 = 4096;
const VNI_LAST: u32 = (1 << 24) - 1;

/// Why a network cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSubnet {
    #[error("all predefined address pools have been fully subnetted")]
    PoolsExhausted,
    #[error("no vxlan network identifier is free")]
    VnisExhausted,
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
    for pool in &pools {
        if let Some(with) = overlap_of(draft.state(), Some(id), pool.subnet) {
            return Err(NoSubnet::Overlap { subnet: pool.subnet, with });
        }
    }
    if !pools.iter().any(|pool| pool.subnet.addr().is_ipv4()) {
        pools.push(bare(cut(draft.state(), id)?));
    }
    if network.spec.ipv6 && !pools.iter().any(|pool| pool.subnet.addr().is_ipv6()) {
        pools.push(bare(unique_local(ids)));
    }
    for pool in &mut pools {
        pool.gateway = pool.gateway.or_else(|| first_host(pool.subnet));
    }
    let vni = free_vni(draft.state())?;
    network.state = Some(NetworkState { vni, pools, last_address: None, resting: Vec::new() });
    draft.put(Object::Network(network));
    Ok(())
}

fn bare(subnet: IpNet) -> AddressPool {
    AddressPool { subnet, gateway: None, range: None }
}

fn first_host(subnet: IpNet) -> Option<IpAddr> {
    subnet.hosts().next()
}

/// The first subnet of the cluster's pools that overlaps with nothing.
fn cut(state: &State, id: &NetworkId) -> Result<IpNet, NoSubnet> {
    let spec = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    for pool in &spec.default_pools {
        let size = spec.default_subnet_size.max(pool.prefix_len());
        let Ok(mut subnets) = pool.subnets(size) else { continue };
        if let Some(free) = subnets.find(|subnet| overlap_of(state, Some(id), *subnet).is_none()) {
            return Ok(free);
        }
    }
    Err(NoSubnet::PoolsExhausted)
}

/// A random /64 of the unique local addresses (RFC 4193 §3).
fn unique_local(ids: &mut IdGenerator) -> IpNet {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&ids.bytes::<7>());
    IpNet::V6(Ipv6Net::new_assert(bytes.into(), 64))
}

/// The network, or the node's address, that a subnet overlaps with, in words.
pub(crate) fn overlap_of(state: &State, own: Option<&NetworkId>, subnet: IpNet) -> Option<String> {
    let overlaps = |other: &IpNet| other.contains(&subnet.network()) || subnet.contains(&other.network());
    for network in state.networks().filter(|network| Some(&network.id) != own) {
        let pools = network.state.as_ref().map_or(&network.spec.pools, |state| &state.pools);
        if let Some(pool) = pools.iter().find(|pool| overlaps(&pool.subnet)) {
            return Some(format!("subnet {} of network {}", pool.subnet, network.spec.name));
        }
    }
    let node = state
        .nodes()
        .find(|node| subnet.contains(&node.data_path_address) || subnet.contains(&node.status.address))?;
    Some(format!("address {} of node {}", node.status.address, node.description.hostname))
}

/// Serial, so that a number comes back late; the lowest free one once the numbers are used up.
fn free_vni(state: &State) -> Result<u32, NoSubnet> {
    let used: BTreeSet<u32> =
        state.networks().filter_map(|network| Some(network.state.as_ref()?.vni)).collect();
    let next = used.last().map_or(VNI_FIRST, |last| last + 1);
    if next <= VNI_LAST {
        return Ok(next);
    }
    (VNI_FIRST..=VNI_LAST).find(|vni| !used.contains(vni)).ok_or(NoSubnet::VnisExhausted)
}
