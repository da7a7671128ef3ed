//! What a network of this node alone is to be, and who has which address on it: pure functions.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use shoal_model::{
    AddressPool, BridgeConfig, Driver, Labels, MacvlanConfig, MacvlanMode, NetworkId, Shown, TableConfig,
};

use crate::{Error, Result};

/// The network of containers for which no other is named.
pub(crate) const DEFAULT: &str = "bridge";
/// Its bridge on the node.
pub(crate) const DEFAULT_LINK: &str = "shoal0";

/// Numbers of networks in the kernel's maps: those of overlays are VXLAN identifiers, of 24 bits.
pub(crate) const FIRST_NUMBER: u32 = 1 << 24;

/// Docker's options of its bridge driver that mean the same here.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const ICC: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const MTU: &str = "com.docker.network.driver.mtu";
const PARENT: &str = "parent";
const MODE: &str = "macvlan_mode";

/// Which driver a network of this node alone is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalDriver {
    Bridge,
    Macvlan,
}

/// A network as a user declares it.
#[derive(Debug, Clone)]
pub struct LocalSpec {
    pub name: String,
    pub driver: LocalDriver,
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
    /// Where the node's routes lead, and the subnets of other networks on it.
    pub(crate) taken: Vec<IpNet>,
    /// Subnets of the node's other bridges.
    pub(crate) own: Vec<IpNet>,
}

/// What the network is made of, with every default filled in.
pub(crate) fn design(
    id: &NetworkId,
    spec: LocalSpec,
    around: &Surroundings<'_>,
    now: Timestamp,
) -> Result<TableConfig> {
    if around.present.iter().any(|(_, config)| config.name == spec.name) {
        return Err(Error::NetworkExists(spec.name));
    }
    let driver = driver(id, &spec, around)?;
    let mtu = spec.options.get(MTU).map(|text| {
        text.parse::<u32>()
            .ok()
            .filter(|mtu| (68..=65535).contains(mtu))
            .ok_or_else(|| Error::NetworkOption(format!("invalid MTU value {text:?}")))
    });
    let number = around.present.iter().map(|(_, config)| config.vni + 1).max().unwrap_or(FIRST_NUMBER);
    Ok(TableConfig {
        pools: pools(id, &spec, around)?,
        name: spec.name,
        vni: number,
        internal: spec.internal || matches!(&driver, Driver::Macvlan(MacvlanConfig { parent: None, .. })),
        ingress: false,
        mtu: mtu.transpose()?,
        data_path_port: 0,
        driver,
        shown: Shown {
            created: Some(now),
            attachable: spec.attachable,
            labels: spec.labels,
            options: spec.options,
        },
    })
}

fn driver(id: &NetworkId, spec: &LocalSpec, around: &Surroundings<'_>) -> Result<Driver> {
    let known: &[&str] = match spec.driver {
        LocalDriver::Bridge => &[BRIDGE_NAME, ICC, MASQUERADE, DEFAULT_BRIDGE, HOST_BINDING, MTU],
        LocalDriver::Macvlan => &[PARENT, MODE, MTU],
    };
    if let Some(other) = spec.options.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(Error::NetworkOption(format!("option {other} of such a network is not supported")));
    }
    match spec.driver {
        LocalDriver::Bridge => bridge(id, spec, around),
        LocalDriver::Macvlan => macvlan(spec, around),
    }
}

fn bridge(id: &NetworkId, spec: &LocalSpec, around: &Surroundings<'_>) -> Result<Driver> {
    let flag = |key: &str| match spec.options.get(key).map(String::as_str) {
        None => Ok(true),
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => Err(Error::NetworkOption(format!("invalid value {text:?} of option {key}"))),
        },
    };
    if spec.pools.iter().filter(|pool| pool.subnet.addr().is_ipv4()).count() > 1 {
        return Err(Error::NetworkRefused("bridge driver doesn't support multiple subnets".to_owned()));
    }
    let link = match spec.options.get(BRIDGE_NAME) {
        Some(name) => {
            // What the kernel takes (`dev_valid_name`).
            let fits = !name.is_empty()
                && name.len() < 16
                && name.chars().all(|c| c.is_ascii_graphic() && !"/:\"".contains(c))
                && !matches!(name.as_str(), "." | "..");
            if !fits {
                return Err(Error::NetworkOption(format!("invalid bridge name {name:?}")));
            }
            name.clone()
        }
        None => format!("br-{}", id.as_str().chars().take(12).collect::<String>()),
    };
    let has_it = |config: &TableConfig| matches!(&config.driver, Driver::Bridge(other) if other.link == link);
    if let Some((other, _)) = around.present.iter().find(|(_, config)| has_it(config)) {
        let text = format!(
            "cannot create network {id} ({link}): conflicts with network {other} ({link}): networks have same bridge name"
        );
        return Err(Error::NetworkRefused(text));
    }
    Ok(Driver::Bridge(BridgeConfig { link, open: flag(ICC)?, masquerade: flag(MASQUERADE)? }))
}

fn macvlan(spec: &LocalSpec, around: &Surroundings<'_>) -> Result<Driver> {
    let mode = match spec.options.get(MODE).map(String::as_str) {
        None | Some("") => MacvlanMode::Bridge,
        Some(text) => MacvlanMode::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| Error::NetworkOption(format!("unknown macvlan mode: '{text}'")))?,
    };
    let parent = spec.options.get(PARENT).filter(|parent| !parent.is_empty() && !spec.internal).cloned();
    let shares = |config: &TableConfig| match &config.driver {
        Driver::Macvlan(other) => {
            parent.is_some()
                && other.parent == parent
                && (mode == MacvlanMode::Passthru || other.mode == MacvlanMode::Passthru)
        }
        _ => false,
    };
    if let (Some((other, _)), Some(parent)) =
        (around.present.iter().find(|(_, config)| shares(config)), &parent)
    {
        let text = format!("interface {parent} is used by network {other}, and passthru wants it for itself");
        return Err(Error::NetworkRefused(text));
    }
    Ok(Driver::Macvlan(MacvlanConfig { parent, mode }))
}

// === subnets ===

/// Docker's pools for local networks, in its order.
fn subnets() -> impl Iterator<Item = Ipv4Net> {
    let sixteens = (17..=31).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let twenties = (0..16).map(|part| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, part * 16, 0), 20));
    sixteens.chain(twenties)
}

fn pools(id: &NetworkId, spec: &LocalSpec, around: &Surroundings<'_>) -> Result<Vec<AddressPool>> {
    let overlaps = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let own = || {
        let pools = around.present.iter().flat_map(|(_, config)| &config.pools);
        pools.map(|pool| pool.subnet)
    };
    let mut pools = spec.pools.clone();
    for pool in &pools {
        let clashes = own().chain(around.own.iter().copied()).any(|other| overlaps(&other, &pool.subnet));
        // Networks on different interfaces may well have the same addresses.
        if clashes && spec.driver == LocalDriver::Bridge {
            return Err(Error::NetworkRefused(
                "Pool overlaps with other one on this address space".to_owned(),
            ));
        }
    }
    if pools.iter().all(|pool| pool.subnet.addr().is_ipv6()) {
        // The first is the default network's.
        let first = usize::from(spec.name != DEFAULT);
        let is_free =
            |subnet: &IpNet| own().chain(around.taken.iter().copied()).all(|other| !overlaps(&other, subnet));
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

    fn spec(name: &str, driver: LocalDriver) -> LocalSpec {
        LocalSpec {
            name: name.to_owned(),
            driver,
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
        let first = make(&id("a"), spec("one", LocalDriver::Bridge), &[]).unwrap();
        assert_eq!(first.pools[0].subnet.to_string(), "172.19.0.0/16", "172.18.4.0/24 is taken");
        assert_eq!(first.pools[0].gateway, Some("172.19.0.1".parse().unwrap()));
        let present = [(id("a"), first)];
        let second = make(&id("b"), spec("two", LocalDriver::Bridge), &present).unwrap();
        assert_eq!(second.pools[0].subnet.to_string(), "172.20.0.0/16");
        assert_eq!(second.vni, FIRST_NUMBER + 1);
        let default = make(&id("c"), spec(DEFAULT, LocalDriver::Bridge), &present).unwrap();
        assert_eq!(default.pools[0].subnet.to_string(), "172.17.0.0/16");
        let same = LocalSpec {
            pools: vec![AddressPool::new("172.19.3.0/24".parse().unwrap())],
            ..spec("three", LocalDriver::Bridge)
        };
        let refused = make(&id("d"), same, &present).unwrap_err().to_string();
        assert_eq!(refused, "Pool overlaps with other one on this address space");
        let gateways = LocalSpec {
            pools: vec![AddressPool::new("172.31.3.0/24".parse().unwrap())],
            ..spec("four", LocalDriver::Bridge)
        };
        assert!(matches!(make(&id("e"), gateways, &present), Err(Error::NetworkRefused(_))));
        assert!(matches!(
            make(&id("e"), spec("one", LocalDriver::Bridge), &present),
            Err(Error::NetworkExists(name)) if name == "one"
        ));
    }

    #[test]
    fn ipv6_has_a_subnet_of_its_own() {
        let wanted = LocalSpec { ipv6: true, ..spec("six", LocalDriver::Bridge) };
        let made = make(&id("0123456789abcdef"), wanted, &[]).unwrap();
        assert_eq!(made.pools[1].subnet.to_string(), "fd01:2345:6789:abcd::/64");
        assert_eq!(made.pools[1].gateway, Some("fd01:2345:6789:abcd::1".parse().unwrap()));
    }

    #[test]
    fn options_of_drivers_are_dockers() {
        let named = with(spec("n", LocalDriver::Bridge), &[(BRIDGE_NAME, "mine"), (ICC, "false")]);
        let Driver::Bridge(config) = make(&id("a"), named.clone(), &[]).unwrap().driver else { panic!() };
        assert_eq!((config.link.as_str(), config.open, config.masquerade), ("mine", false, true));
        for (driver, option) in [
            (LocalDriver::Bridge, (BRIDGE_NAME, "a name that is far too long")),
            (LocalDriver::Bridge, (ICC, "perhaps")),
            (LocalDriver::Bridge, (PARENT, "eth0")),
            (LocalDriver::Macvlan, (MODE, "odd")),
            (LocalDriver::Macvlan, (MTU, "12")),
        ] {
            let refused = make(&id("a"), with(spec("n", driver), &[option]), &[]);
            assert!(matches!(refused, Err(Error::NetworkOption(_))), "{option:?}");
        }
        let alone = make(&id("a"), with(spec("n", LocalDriver::Macvlan), &[(MODE, "private")]), &[]).unwrap();
        assert!(alone.internal, "without a parent it leads nowhere");
        let passthru = with(spec("p", LocalDriver::Macvlan), &[(PARENT, "eth0"), (MODE, "passthru")]);
        let present = [(id("a"), make(&id("a"), passthru, &[]).unwrap())];
        let beside = with(spec("q", LocalDriver::Macvlan), &[(PARENT, "eth0")]);
        assert!(matches!(make(&id("b"), beside, &present), Err(Error::NetworkRefused(_))));
    }

    #[test]
    fn addresses_rest_and_end() {
        let pools = vec![AddressPool {
            range: Some("10.1.2.0/29".parse().unwrap()),
            reserved: [("router".to_owned(), "10.1.2.3".parse().unwrap())].into(),
            ..AddressPool::new("10.1.2.0/24".parse().unwrap())
        }];
        let config = make(&id("a"), LocalSpec { pools, ..spec("n", LocalDriver::Macvlan) }, &[]).unwrap();
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
