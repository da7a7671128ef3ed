//! What a network of this node alone is to be, and who has which address on it: pure functions.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use shoal_model::{
    AddressPool, BridgeConfig, Driver, Labels, MacvlanConfig, MacvlanMode, NetworkId, NodeDriver, Shown,
    TableConfig,
};

use crate::{Error, Result};

/// The network of containers for which no other is named.
pub(crate) const DEFAULT: &str = "bridge";
/// Its bridge on the node.
pub(crate) const DEFAULT_LINK: &str = "shoal0";

/// A network as a user declares it.
#[derive(Debug, Clone)]
pub struct LocalSpec {
    pub name: String,
    /// `None`: a configuration that others are made from (Docker's `--config-only`).
    pub driver: Option<NodeDriver>,
    /// The configuration that it is made from; then it says nothing of its own.
    pub config_from: Option<String>,
    /// As the user gave them; may be empty.
    pub pools: Vec<AddressPool>,
    pub ipv6: bool,
    pub internal: bool,
    pub attachable: bool,
    pub options: Labels,
    pub labels: Labels,
}

/// What surrounds a new network.
pub(crate) struct Surroundings<'a> {
    /// Networks of this node alone that are there.
    pub(crate) present: Vec<(&'a NetworkId, &'a TableConfig)>,
    /// The cluster's networks on this node.
    pub(crate) beside: Vec<(&'a NetworkId, &'a TableConfig)>,
    /// Where the node's routes lead, and the subnets of other networks on it.
    pub(crate) taken: Vec<IpNet>,
    /// Subnets of the node's other bridges.
    pub(crate) own: Vec<IpNet>,
}

impl<'a> Surroundings<'a> {
    /// All networks on this node; a configuration is none.
    fn networks(&self) -> impl Iterator<Item = (&'a NetworkId, &'a TableConfig)> + '_ {
        let all = self.present.iter().chain(&self.beside).copied();
        all.filter(|(_, config)| config.driver != Driver::Configuration)
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// A network with this driver and these subnets cannot be beside that one: the node would have two routes to
/// the same addresses, or they would be given out twice on one link.
pub(crate) fn clash(driver: &Driver, pools: &[AddressPool], other: &TableConfig) -> bool {
    let on_one_link = match (driver, &other.driver) {
        (Driver::Bridge(_), Driver::Bridge(_)) => true,
        (Driver::Macvlan(one), Driver::Macvlan(other)) => one.parent.is_some() && one.parent == other.parent,
        _ => false,
    };
    let taken = || other.pools.iter().map(|pool| pool.subnet);
    on_one_link && pools.iter().any(|pool| taken().any(|subnet| overlap(&subnet, &pool.subnet)))
}

/// What the network is made of, with every default filled in.
pub(crate) fn design(
    id: &NetworkId,
    mut spec: LocalSpec,
    around: &Surroundings<'_>,
    now: Timestamp,
) -> Result<TableConfig> {
    if around.present.iter().any(|(_, config)| config.name == spec.name) {
        return Err(Error::NetworkExists(spec.name));
    }
    let from = spec.config_from.as_deref().map(|from| {
        let named = around.present.iter().map(|(_, config)| *config).find(|config| config.name == from);
        let usable = named.filter(|config| config.driver == Driver::Configuration);
        usable.ok_or_else(|| Error::NoConfiguration(from.to_owned()))
    });
    if let Some(from) = from.transpose()? {
        spec.pools.clone_from(&from.pools);
        spec.options.clone_from(&from.shown.options);
        spec.labels.clone_from(&from.shown.labels);
        spec.ipv6 = from.pools.iter().any(|pool| pool.subnet.addr().is_ipv6());
    }
    let driver = match spec.driver {
        None => Driver::Configuration,
        Some(kind) => {
            let driver = kind.configure(id, &spec.options, spec.internal).map_err(Error::NetworkOption)?;
            check(id, &driver, &spec, around)?;
            driver
        }
    };
    let mtu = shoal_model::mtu(&spec.options).map_err(Error::NetworkOption)?;
    let number =
        around.present.iter().map(|(_, config)| config.vni + 1).max().unwrap_or(TableConfig::FIRST_LOCAL);
    Ok(TableConfig {
        pools: pools(id, &spec, &driver, around)?,
        name: spec.name,
        vni: number,
        internal: spec.internal || driver.is_internal(),
        ingress: false,
        mtu,
        data_path_port: 0,
        driver,
        config_from: spec.config_from,
        shown: Shown {
            created: Some(now),
            attachable: spec.attachable,
            labels: spec.labels,
            options: spec.options,
        },
    })
}

/// The network does not get in the way of others.
fn check(id: &NetworkId, driver: &Driver, spec: &LocalSpec, around: &Surroundings<'_>) -> Result<()> {
    let several = spec.pools.iter().filter(|pool| pool.subnet.addr().is_ipv4()).count() > 1;
    if several && matches!(driver, Driver::Bridge(_)) {
        return Err(Error::NetworkRefused("bridge driver doesn't support multiple subnets".to_owned()));
    }
    let in_the_way = around.networks().find_map(|(other, config)| match (driver, &config.driver) {
        (Driver::Bridge(BridgeConfig { link, .. }), Driver::Bridge(theirs)) if theirs.link == *link => {
            Some(format!(
                "cannot create network {id} ({link}): conflicts with network {other} ({link}): networks have same bridge name"
            ))
        }
        (Driver::Macvlan(MacvlanConfig { parent: Some(parent), mode }), Driver::Macvlan(theirs)) => {
            let alone = [*mode, theirs.mode].contains(&MacvlanMode::Passthru);
            (alone && theirs.parent.as_ref() == Some(parent)).then(|| {
                format!("interface {parent} is used by network {other}, and passthru wants it for itself")
            })
        }
        _ => None,
    });
    in_the_way.map_or(Ok(()), |text| Err(Error::NetworkRefused(text)))
}

// === subnets ===

/// Docker's pools for local networks, in its order.
fn subnets() -> impl Iterator<Item = Ipv4Net> {
    let sixteens = (17..=31).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let twenties = (0..16).map(|part| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, part * 16, 0), 20));
    sixteens.chain(twenties)
}

fn pools(
    id: &NetworkId,
    spec: &LocalSpec,
    driver: &Driver,
    around: &Surroundings<'_>,
) -> Result<Vec<AddressPool>> {
    let mut pools = spec.pools.clone();
    let of_node = matches!(driver, Driver::Bridge(_))
        && pools.iter().any(|pool| around.own.iter().any(|other| overlap(other, &pool.subnet)));
    if of_node || around.networks().any(|(_, other)| clash(driver, &pools, other)) {
        return Err(Error::NetworkRefused("Pool overlaps with other one on this address space".to_owned()));
    }
    if pools.iter().all(|pool| pool.subnet.addr().is_ipv6()) {
        // The first is the default network's.
        let first = usize::from(spec.name != DEFAULT);
        // What a configuration has is kept for what is made from it.
        let own = || around.present.iter().flat_map(|(_, config)| &config.pools).map(|pool| pool.subnet);
        let is_free =
            |subnet: &IpNet| own().chain(around.taken.iter().copied()).all(|other| !overlap(&other, subnet));
        let found = subnets().skip(first).map(IpNet::V4).find(is_free);
        pools.insert(0, AddressPool::new(found.ok_or(Error::NoPool)?));
    }
    if spec.ipv6 && pools.iter().all(|pool| pool.subnet.addr().is_ipv4()) {
        pools.push(AddressPool::new(unique_local(id)));
    }
    if !spec.ipv6 {
        pools.retain(|pool| pool.subnet.addr().is_ipv4());
    }
    for pool in &mut pools {
        if pool.gateway.is_none() {
            pool.gateway = first_address(pool);
        }
    }
    Ok(pools)
}

/// A subnet of its own (RFC 4193) that follows from the network's id.
fn unique_local(id: &NetworkId) -> IpNet {
    let digits = id.as_str().bytes().filter_map(|byte| char::from(byte).to_digit(16));
    let bits = digits.take(14).fold(0u128, |bits, digit| bits << 4 | u128::from(digit));
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(0xfd << 120 | bits << 64), 64))
}

fn first_address(pool: &AddressPool) -> Option<IpAddr> {
    let range = pool.range.unwrap_or(pool.subnet);
    let is_reserved = |address: &IpAddr| pool.reserved.values().any(|reserved| reserved == address);
    candidates(pool.subnet, range).find(|address| !is_reserved(address))
}

/// The addresses of a part of a subnet that hosts may have, the lowest first.
fn candidates(subnet: IpNet, range: IpNet) -> impl Iterator<Item = IpAddr> {
    let special = [subnet.network(), subnet.broadcast()];
    let all: Box<dyn Iterator<Item = IpAddr>> = match range {
        IpNet::V4(range) => {
            let (first, last) = (u32::from(range.network()), u32::from(range.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))))
        }
        IpNet::V6(range) => {
            let (first, last) = (u128::from(range.network()), u128::from(range.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))))
        }
    };
    all.filter(move |address| !special.contains(address))
}

// === addresses ===

/// An address on the network: the one asked for, or the next one that is free after `last`, so that one
/// that was given back rests.
pub(crate) fn address(
    config: &TableConfig,
    used: &BTreeSet<IpAddr>,
    asked: Option<IpAddr>,
    last: Option<IpAddr>,
    v6: bool,
) -> Result<Option<IpNet>> {
    let mut pools = config.pools.iter().filter(|pool| pool.subnet.addr().is_ipv6() == v6).peekable();
    if pools.peek().is_none() && asked.is_none() {
        return Ok(None);
    }
    let is_taken = |pool: &AddressPool, address: &IpAddr| {
        used.contains(address)
            || pool.gateway == Some(*address)
            || pool.reserved.values().any(|reserved| reserved == address)
    };
    let with_prefix = |pool: &AddressPool, address| IpNet::new(address, pool.subnet.prefix_len()).ok();
    if let Some(asked) = asked {
        let Some(pool) = pools.find(|pool| pool.subnet.contains(&asked)) else {
            return Err(Error::AddressOutside(asked));
        };
        return if is_taken(pool, &asked) { Err(Error::AddressInUse) } else { Ok(with_prefix(pool, asked)) };
    }
    for pool in pools {
        let all = || candidates(pool.subnet, pool.range.unwrap_or(pool.subnet));
        let after = last.into_iter().flat_map(|last| all().skip_while(move |address| *address <= last));
        if let Some(found) = after.chain(all()).find(|address| !is_taken(pool, address)) {
            return Ok(with_prefix(pool, found));
        }
    }
    Err(Error::NoAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, driver: NodeDriver) -> LocalSpec {
        LocalSpec {
            name: name.to_owned(),
            driver: Some(driver),
            config_from: None,
            pools: Vec::new(),
            ipv6: false,
            internal: false,
            attachable: false,
            options: Labels::new(),
            labels: Labels::new(),
        }
    }

    fn id(text: &str) -> NetworkId {
        NetworkId::new(text.repeat(64 / text.len()))
    }

    fn make(id: &NetworkId, spec: LocalSpec, present: &[(NetworkId, TableConfig)]) -> Result<TableConfig> {
        let around = Surroundings {
            present: present.iter().map(|(id, config)| (id, config)).collect(),
            beside: Vec::new(),
            taken: vec!["172.18.4.0/24".parse().unwrap()],
            own: vec!["172.31.0.0/16".parse().unwrap()],
        };
        design(id, spec, &around, Timestamp::UNIX_EPOCH)
    }

    fn with(mut spec: LocalSpec, options: &[(&str, &str)]) -> LocalSpec {
        spec.options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        spec
    }

    #[test]
    fn a_subnet_is_one_that_nobody_has() {
        let first = make(&id("a"), spec("one", NodeDriver::Bridge), &[]).unwrap();
        assert_eq!(first.pools[0].subnet.to_string(), "172.19.0.0/16", "172.18.4.0/24 is taken");
        assert_eq!(first.pools[0].gateway, Some("172.19.0.1".parse().unwrap()));
        let present = [(id("a"), first)];
        let second = make(&id("b"), spec("two", NodeDriver::Bridge), &present).unwrap();
        assert_eq!(second.pools[0].subnet.to_string(), "172.20.0.0/16");
        assert_eq!(second.vni, TableConfig::FIRST_LOCAL + 1);
        let default = make(&id("c"), spec(DEFAULT, NodeDriver::Bridge), &present).unwrap();
        assert_eq!(default.pools[0].subnet.to_string(), "172.17.0.0/16");
        let same = LocalSpec {
            pools: vec![AddressPool::new("172.19.3.0/24".parse().unwrap())],
            ..spec("three", NodeDriver::Bridge)
        };
        let refused = make(&id("d"), same, &present).unwrap_err().to_string();
        assert_eq!(refused, "Pool overlaps with other one on this address space");
        let gateways = LocalSpec {
            pools: vec![AddressPool::new("172.31.3.0/24".parse().unwrap())],
            ..spec("four", NodeDriver::Bridge)
        };
        assert!(matches!(make(&id("e"), gateways, &present), Err(Error::NetworkRefused(_))));
        assert!(matches!(
            make(&id("e"), spec("one", NodeDriver::Bridge), &present),
            Err(Error::NetworkExists(name)) if name == "one"
        ));
    }

    #[test]
    fn ipv6_has_a_subnet_of_its_own() {
        let wanted = LocalSpec { ipv6: true, ..spec("six", NodeDriver::Bridge) };
        let made = make(&id("0123456789abcdef"), wanted, &[]).unwrap();
        assert_eq!(made.pools[1].subnet.to_string(), "fd01:2345:6789:abcd::/64");
        assert_eq!(made.pools[1].gateway, Some("fd01:2345:6789:abcd::1".parse().unwrap()));
    }

    #[test]
    fn an_interface_that_one_network_has_to_itself_is_no_others() {
        let mode = "macvlan_mode";
        let passthru = with(spec("p", NodeDriver::Macvlan), &[("parent", "eth0"), (mode, "passthru")]);
        let present = [(id("a"), make(&id("a"), passthru, &[]).unwrap())];
        let beside = with(spec("q", NodeDriver::Macvlan), &[("parent", "eth0")]);
        assert!(matches!(make(&id("b"), beside, &present), Err(Error::NetworkRefused(_))));
    }

    #[test]
    fn a_network_is_what_its_configuration_says() {
        let pools = vec![AddressPool::new("192.168.68.0/24".parse().unwrap())];
        let only = LocalSpec { driver: None, pools, ..spec("lan", NodeDriver::Macvlan) };
        let only = make(&id("a"), with(only, &[("parent", "eth0")]), &[]).unwrap();
        assert_eq!(only.driver, Driver::Configuration);
        let present = [(id("a"), only.clone())];
        let from = LocalSpec { config_from: Some("lan".to_owned()), ..spec("n", NodeDriver::Macvlan) };
        let made = make(&id("b"), from.clone(), &present).unwrap();
        assert_eq!(made.pools, only.pools);
        let parent = Some("eth0".to_owned());
        let driver = Driver::Macvlan(MacvlanConfig { parent, mode: MacvlanMode::Bridge });
        assert_eq!(made.driver, driver);
        assert!(matches!(make(&id("b"), from, &[]), Err(Error::NoConfiguration(name)) if name == "lan"));
    }

    #[test]
    fn no_address_is_there_twice_on_one_link() {
        let subnet = vec![AddressPool::new("10.4.0.0/24".parse().unwrap())];
        let on = |driver, parent: &str| {
            with(LocalSpec { pools: subnet.clone(), ..spec("other", driver) }, &[("parent", parent)])
        };
        let lan =
            make(&id("a"), LocalSpec { name: "lan".into(), ..on(NodeDriver::Macvlan, "eth0") }, &[]).unwrap();
        let present = [(id("a"), lan.clone())];
        let refused = |made: Result<TableConfig>| matches!(made, Err(Error::NetworkRefused(_)));
        assert!(refused(make(&id("b"), on(NodeDriver::Macvlan, "eth0"), &present)));
        make(&id("b"), on(NodeDriver::Macvlan, "eth1"), &present).unwrap();
        let bridge = || LocalSpec { pools: subnet.clone(), ..spec("near", NodeDriver::Bridge) };
        let near = make(&id("b"), bridge(), &present).unwrap();
        // The cluster's networks count, too; a configuration has its subnets for others.
        let beside = |config: &TableConfig, spec: LocalSpec| {
            let other = id("c");
            let around = Surroundings {
                present: Vec::new(),
                beside: vec![(&other, config)],
                taken: Vec::new(),
                own: Vec::new(),
            };
            design(&id("d"), spec, &around, Timestamp::UNIX_EPOCH)
        };
        assert!(refused(beside(&near, bridge())) && refused(beside(&lan, on(NodeDriver::Macvlan, "eth0"))));
        assert!(clash(&near.driver, &near.pools, &near) && !clash(&near.driver, &near.pools, &lan));
        let only = LocalSpec { driver: None, pools: Vec::new(), ..spec("part", NodeDriver::Bridge) };
        let only = make(&id("e"), only, &[]).unwrap();
        let present = [(id("e"), only.clone())];
        let next = make(&id("f"), spec("next", NodeDriver::Bridge), &present).unwrap();
        assert_ne!(next.pools, only.pools, "what a configuration has is kept for what is made from it");
        let from = LocalSpec { config_from: Some("part".into()), ..spec("from", NodeDriver::Bridge) };
        assert_eq!(make(&id("f"), from, &present).unwrap().pools, only.pools);
    }

    #[test]
    fn addresses_rest_and_end() {
        let pools = vec![AddressPool {
            range: Some("10.1.2.0/29".parse().unwrap()),
            reserved: [("router".to_owned(), "10.1.2.3".parse().unwrap())].into(),
            ..AddressPool::new("10.1.2.0/24".parse().unwrap())
        }];
        let config = make(&id("a"), LocalSpec { pools, ..spec("n", NodeDriver::Macvlan) }, &[]).unwrap();
        let mut used = BTreeSet::new();
        let mut last = None;
        for expected in [2, 4, 5, 6, 7] {
            let given = address(&config, &used, None, last, false).unwrap().unwrap();
            assert_eq!(given.to_string(), format!("10.1.2.{expected}/24"));
            used.insert(given.addr());
            last = Some(given.addr());
        }
        assert!(matches!(address(&config, &used, None, last, false), Err(Error::NoAddress)));
        used.remove(&IpAddr::from([10, 1, 2, 4]));
        let given = address(&config, &used, None, last, false).unwrap().unwrap();
        assert_eq!(given.to_string(), "10.1.2.4/24", "round the range");
        let outside = address(&config, &used, Some([10, 1, 2, 77].into()), last, false).unwrap().unwrap();
        assert_eq!(outside.to_string(), "10.1.2.77/24", "what is asked for may be outside the range");
        for (asked, refused) in
            [([10, 1, 2, 1], "in use"), ([10, 1, 2, 3], "in use"), ([10, 9, 0, 1], "contains")]
        {
            let error = address(&config, &used, Some(asked.into()), last, false).unwrap_err().to_string();
            assert!(error.contains(refused), "{asked:?}: {error}");
        }
        assert_eq!(address(&config, &used, None, None, true).unwrap(), None, "no IPv6");
    }
}
