//! Addresses of one network: the next free one behind the last handed out, so that a freed address
//! comes back as late as possible.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::{AddressPool, Attachment, Network, NetworkDriver, NetworkId, NodeId, Object};
use shoal_store::State;

use super::super::Draft;
use super::with_prefix;

/// Why an address cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    #[error("network {0} not found")]
    UnknownNetwork(NetworkId),
    #[error("network {0} has no subnet yet")]
    NoSubnet(String),
    #[error("no available address on network {name} ({subnets})")]
    Full { name: String, subnets: String },
    #[error("Address already in use: {address} on network {name}")]
    Taken { address: IpAddr, name: String },
    /// Docker's text.
    #[error("Invalid address {0}: It does not belong to any of this network's subnets")]
    Outside(IpAddr),
    #[error("configuration network {name:?} does not exist on node {node}")]
    NoConfiguration { name: String, node: String },
    #[error("service needs ingress network, but no ingress network is present")]
    NoIngress,
}

/// Where an address is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) network: &'a NetworkId,
    /// On some networks it decides which addresses there are.
    pub(crate) node: Option<&'a NodeId>,
}

impl<'a> Spot<'a> {
    /// On a network that is the same everywhere.
    pub(super) fn anywhere(network: &'a NetworkId) -> Self {
        Self { network, node: None }
    }
}

/// The addresses in use, gathered per network when one is first asked for.
#[derive(Default)]
pub(crate) struct Addresses {
    used: BTreeMap<NetworkId, HashSet<IpAddr>>,
    /// Resting addresses that this plan hands out.
    woken: HashSet<(NetworkId, IpAddr)>,
}

impl Addresses {
    /// The address families of a network: `false` is IPv4, `true` IPv6.
    pub(super) fn families(&self, draft: &Draft, spot: Spot<'_>) -> Result<Vec<bool>, Exhausted> {
        let (_, pools) = pools(draft, spot)?;
        let mut families: Vec<bool> = pools.iter().map(|pool| pool.subnet.addr().is_ipv6()).collect();
        families.sort_unstable();
        families.dedup();
        Ok(families)
    }

    /// Hands out an address of one family. The draft stays as it is until [`keep`] is told.
    pub(super) fn take(&mut self, draft: &Draft, spot: Spot<'_>, v6: bool) -> Result<IpNet, Exhausted> {
        let (network, pools) = pools(draft, spot)?;
        let used = self.used.entry(spot.network.clone()).or_insert_with(|| in_use(draft.state(), &network));
        let family: Vec<&AddressPool> =
            pools.iter().filter(|pool| pool.subnet.addr().is_ipv6() == v6).collect();
        let last = network.state.as_ref().and_then(|state| match v6 {
            true => state.last_address_v6,
            false => state.last_address,
        });
        if let Some(found) = next_free(&family, last, used) {
            used.insert(found.addr());
            return Ok(found);
        }
        let Some(found) = self.wake(draft, &network, &family) else {
            let subnets: Vec<String> = family.iter().map(|pool| pool.subnet.to_string()).collect();
            let name = network.spec.name.clone();
            return Err(Exhausted::Full { name, subnets: subnets.join(", ") });
        };
        Ok(found)
    }

    /// The address that has rested longest, of those that only nodes which are down may still send to.
    fn wake(&mut self, draft: &Draft, network: &Network, family: &[&AddressPool]) -> Option<IpNet> {
        // On a network that others are on, who is cut off from the manager may well be answered.
        if network.spec.driver == NetworkDriver::Macvlan {
            return None;
        }
        let down = |node: &NodeId| draft.state().node(node).is_none_or(|node| node.is_down());
        let mut resting = network.state.iter().flat_map(|state| &state.resting);
        let found = resting.find_map(|resting| {
            let pool = family.iter().find(|pool| {
                pool.subnet.contains(&resting.address) && span(pool).contains(resting.address)
            })?;
            let free = resting.holders.iter().all(down)
                && !self.woken.contains(&(network.id.clone(), resting.address));
            free.then(|| with_prefix(resting.address, pool.subnet))
        })?;
        self.woken.insert((network.id.clone(), found.addr()));
        Some(found)
    }

    /// Hands out this very address. The draft stays as it is.
    pub(super) fn take_this(
        &mut self,
        draft: &Draft,
        spot: Spot<'_>,
        address: IpAddr,
    ) -> Result<IpNet, Exhausted> {
        let (network, pools) = pools(draft, spot)?;
        let used = self.used.entry(spot.network.clone()).or_insert_with(|| in_use(draft.state(), &network));
        let whole = |pool: &AddressPool| Span::of(pool.subnet).contains(address);
        let pool = pools.iter().find(|pool| pool.subnet.contains(&address) && whole(pool));
        let pool = pool.ok_or(Exhausted::Outside(address))?;
        if !used.insert(address) {
            return Err(Exhausted::Taken { address, name: network.spec.name.clone() });
        }
        Ok(with_prefix(address, pool.subnet))
    }

    /// Takes back what was handed out in this plan.
    pub(super) fn give_back(&mut self, attachment: &Attachment) {
        self.free(&attachment.network, attachment.address.addr());
        if let Some(address) = attachment.address_v6 {
            self.free(&attachment.network, address.addr());
        }
    }

    pub(super) fn free(&mut self, network: &NetworkId, address: IpAddr) {
        // One that rests goes on resting.
        if self.woken.remove(&(network.clone(), address)) {
            return;
        }
        if let Some(used) = self.used.get_mut(network) {
            used.remove(&address);
        }
    }
}

/// An address that was handed out has a holder: it rests no more, and the next search begins behind it.
/// What is given back leaves no trace, so that an attempt that fails is no change.
pub(super) fn keep(draft: &mut Draft, id: &NetworkId, address: IpAddr) {
    let Some(network) = draft.state().network(id) else { return };
    let mut network = Network::clone(network);
    let Some(state) = network.state.as_mut() else { return };
    state.resting.retain(|resting| resting.address != address);
    match address {
        IpAddr::V4(_) => state.last_address = Some(address),
        IpAddr::V6(_) => state.last_address_v6 = Some(address),
    }
    draft.put(Object::Network(network));
}

fn pools(draft: &Draft, spot: Spot<'_>) -> Result<(Network, Vec<AddressPool>), Exhausted> {
    let unknown = || Exhausted::UnknownNetwork(spot.network.clone());
    let network = draft.state().network(spot.network).ok_or_else(unknown)?;
    let no_subnet = || Exhausted::NoSubnet(network.spec.name.clone());
    let state = network.state.as_ref().ok_or_else(no_subnet)?;
    let pools = match &network.spec.config_from {
        None => state.pools.clone(),
        Some(name) => {
            let node = spot.node.and_then(|node| draft.state().node(node)).ok_or_else(no_subnet)?;
            let missing =
                || Exhausted::NoConfiguration { name: name.clone(), node: node.description.hostname.clone() };
            node.description.configurations.get(name).cloned().ok_or_else(missing)?
        }
    };
    Ok((Network::clone(network), pools))
}

/// The subnets of a network, on whatever node.
fn all_pools<'a>(state: &'a State, network: &'a Network) -> impl Iterator<Item = &'a AddressPool> {
    let by_node = network.spec.config_from.iter().flat_map(|name| {
        state.nodes().filter_map(move |node| node.description.configurations.get(name)).flatten()
    });
    network.state.iter().flat_map(|state| &state.pools).chain(by_node)
}

/// Every address of a network that somebody holds.
fn in_use(state: &State, network: &Network) -> HashSet<IpAddr> {
    let mut used = HashSet::new();
    for pool in all_pools(state, network) {
        used.extend(pool.gateway);
        used.extend(pool.reserved.values());
    }
    used.extend(network.state.iter().flat_map(|state| &state.resting).map(|resting| resting.address));
    for service in state.network_services(&network.id) {
        let vips = service.endpoint.virtual_ips.iter();
        used.extend(vips.filter(|vip| vip.network == network.id).map(|vip| vip.address.addr()));
    }
    let mut hold = |attachment: &Attachment| {
        if attachment.network == network.id {
            used.insert(attachment.address.addr());
            used.extend(attachment.address_v6.map(|address| address.addr()));
        }
    };
    for task in state.network_tasks(&network.id).filter(|task| !task.released) {
        task.attachments.iter().for_each(&mut hold);
    }
    for guest in state.network_guests(&network.id) {
        guest.attachments.iter().chain(&guest.leaving).for_each(&mut hold);
    }
    for node in state.nodes() {
        node.ingress.iter().for_each(&mut hold);
    }
    used
}

/// The first free address behind `last`, going round.
fn next_free(pools: &[&AddressPool], last: Option<IpAddr>, used: &HashSet<IpAddr>) -> Option<IpNet> {
    let holder = |last: IpAddr| pools.iter().position(|pool| span(pool).contains(last));
    let start = last.and_then(holder).unwrap_or(0);
    let count = pools.len();
    // The pool of the last address from behind it, the other pools, then that pool's beginning.
    for round in 0..=count {
        let pool = *pools.get((start + round) % count.max(1))?;
        let span = span(pool);
        let behind = last.filter(|last| round == 0 && span.contains(*last));
        let first = behind.map_or(span.first, |last| number(last) + 1);
        let end = if round == count { last.map_or(span.last, number) } else { span.last };
        let free = (first..=end.min(span.last))
            .map(|candidate| address(candidate, pool.subnet.addr()))
            .find(|candidate| !used.contains(candidate));
        if let Some(free) = free {
            return Some(with_prefix(free, pool.subnet));
        }
    }
    None
}

/// First and last address of a pool that may be handed out.
struct Span {
    first: u128,
    last: u128,
}

impl Span {
    /// All of a subnet but its own address and its broadcast address, which are nobody's.
    fn of(subnet: IpNet) -> Self {
        Self { first: number(subnet.network()) + 1, last: number(subnet.broadcast()).saturating_sub(1) }
    }

    fn contains(&self, address: IpAddr) -> bool {
        (self.first..=self.last).contains(&number(address))
    }
}

fn span(pool: &AddressPool) -> Span {
    let range = pool.range.unwrap_or(pool.subnet);
    let subnet = Span::of(pool.subnet);
    Span {
        first: number(range.network()).max(subnet.first),
        last: number(range.broadcast()).min(subnet.last),
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The inverse of [`number`], in the family of `like`.
pub(super) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from(((number & u128::from(u32::MAX)) as u32).to_be_bytes()),
        IpAddr::V6(_) => IpAddr::from(number.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str, range: Option<&str>) -> AddressPool {
        let range = range.map(|range| range.parse().unwrap());
        AddressPool { range, ..AddressPool::new(subnet.parse().unwrap()) }
    }

    fn walk(pools: &[AddressPool], used: &[&str], last: Option<&str>) -> Option<String> {
        let pools: Vec<_> = pools.iter().collect();
        let used = used.iter().map(|address| address.parse().unwrap()).collect();
        next_free(&pools, last.map(|last| last.parse().unwrap()), &used).map(|found| found.to_string())
    }

    #[test]
    fn the_search_goes_on_behind_the_last_and_round_the_end() {
        let small = [pool("10.0.1.0/29", None)];
        assert_eq!(walk(&small, &["10.0.1.1"], None).as_deref(), Some("10.0.1.2/29"));
        assert_eq!(walk(&small, &["10.0.1.1"], Some("10.0.1.4")).as_deref(), Some("10.0.1.5/29"));
        assert_eq!(walk(&small, &["10.0.1.1"], Some("10.0.1.6")).as_deref(), Some("10.0.1.2/29"));
        let all = ["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6"];
        assert_eq!(walk(&small, &all, Some("10.0.1.3")), None);
        assert_eq!(walk(&small, &all[..5], Some("10.0.1.6")).as_deref(), Some("10.0.1.6/29"));
    }

    #[test]
    fn a_range_bounds_the_search_and_a_second_subnet_continues_it() {
        let ranged = [pool("10.0.1.0/24", Some("10.0.1.8/30"))];
        assert_eq!(walk(&ranged, &[], None).as_deref(), Some("10.0.1.8/24"));
        assert_eq!(walk(&ranged, &["10.0.1.8"], Some("10.0.1.11")).as_deref(), Some("10.0.1.9/24"));
        let two = [pool("10.0.1.0/30", None), pool("10.0.2.0/30", None)];
        assert_eq!(walk(&two, &["10.0.1.1", "10.0.1.2"], Some("10.0.1.2")).as_deref(), Some("10.0.2.1/30"));
        assert_eq!(walk(&two, &["10.0.2.1", "10.0.2.2"], Some("10.0.2.2")).as_deref(), Some("10.0.1.1/30"));
        assert_eq!(walk(&[pool("fd00:1::/64", None)], &[], None).as_deref(), Some("fd00:1::1/64"));
    }
}
