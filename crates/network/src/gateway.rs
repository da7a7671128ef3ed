//! The gateway bridge: the way out of the node for sandboxes without published ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;
use sha2::{Digest, Sha256};

use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::owner::{self, GATEWAY, bridge_mac, node_alias};
use crate::{Error, Result, link, sysctl};

/// The bridge as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) index: u32,
    /// The bridge's own address with the subnet's prefix length.
    pub(crate) address: Ipv4Net,
    /// The same in IPv6, where the machine has it.
    pub(crate) v6: Option<Ipv6Net>,
    pub(crate) mtu: u32,
}

/// Docker's pools for local networks, in its order. The first, 172.17.0.0/16, is left to the network
/// `bridge`.
fn pools() -> impl Iterator<Item = Ipv4Net> {
    let sixteens = (18..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let twenties = (0..16).map(|part| (Ipv4Addr::new(192, 168, part * 16, 0), 20));
    sixteens.chain(twenties).filter_map(|(network, prefix)| Ipv4Net::new(network, prefix).ok())
}

/// The bridge's address in a unique local subnet (RFC 4193) that follows from the node's tag: it means nothing
/// to anybody else.
fn address_v6(tag: &str) -> Ipv6Net {
    let digest = Sha256::digest(format!("{tag}/gateway"));
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    for (octet, byte) in octets[1..8].iter_mut().zip(digest) {
        *octet = byte;
    }
    octets[15] = 1;
    Ipv6Net::new_assert(octets.into(), 64)
}

/// The first pool that overlaps with nothing the node can reach by a more special route.
fn choose_pool(taken: &[Ipv4Net]) -> Result<Ipv4Net> {
    let overlaps = |pool: &Ipv4Net, other: &Ipv4Net| pool.contains(other) || other.contains(pool);
    pools().find(|pool| !taken.iter().any(|other| overlaps(pool, other))).ok_or(Error::NoFreePool)
}

/// The next free address after `last`, round the subnet, so that an address rests before it is given
/// out again. The subnet's first address is the bridge's.
pub(crate) fn choose_address(
    subnet: Ipv4Net,
    used: &BTreeSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Result<Ipv4Addr> {
    let first = u32::from(subnet.network()) + 2;
    let end = u32::from(subnet.broadcast());
    let start = last.map_or(first, |last| u32::from(last) + 1).clamp(first, end);
    let is_free = |address: &Ipv4Addr| !used.contains(address);
    (start..end).chain(first..start).map(Ipv4Addr::from).find(is_free).ok_or(Error::NoFreeAddress(subnet))
}

impl Gateway {
    /// Makes the bridge, or what is missing of it.
    pub(crate) async fn ensure(
        namespace: &Namespace,
        netlink: &Netlink,
        tag: &str,
        mtu: u32,
        avoid: &[Ipv4Net],
    ) -> Result<Self> {
        let found = netlink.link(GATEWAY).await?;
        if let Some(link) = &found {
            owner::check(tag, GATEWAY, link.alias.as_deref())?;
        } else {
            netlink.add_link(link::bridge(GATEWAY, Some(bridge_mac(tag, "gateway")), mtu), GATEWAY).await?;
        }
        let index = netlink.index(GATEWAY).await?;
        let alias = LinkAttribute::IfAlias(node_alias(tag, "gateway"));
        netlink.change_link(index, vec![alias], GATEWAY).await?;
        let has_v6 = sysctl::has_ipv6();
        namespace.run(move || set_settings(has_v6)).await?;
        let held = netlink.addresses().await?.into_iter().find_map(|(link, address)| match address {
            IpNet::V4(address) if link == index => Some(address),
            _ => None,
        });
        let address = match held {
            Some(address) => address,
            None => {
                let subnet = choose_pool(&taken(netlink, avoid).await?)?;
                let address =
                    Ipv4Net::new(Ipv4Addr::from(u32::from(subnet.network()) + 1), subnet.prefix_len())
                        .map_err(|error| Error::Unexpected(error.to_string()))?;
                netlink.add_address(index, IpNet::V4(address), true).await?;
                address
            }
        };
        let v6 = has_v6.then(|| address_v6(tag));
        if let Some(address) = v6 {
            netlink.add_address(index, IpNet::V6(address), true).await?;
        }
        netlink.set_up(index, GATEWAY).await?;
        Ok(Self { index, address, v6, mtu: found.map_or(mtu, |link| link.mtu) })
    }

    /// The address in IPv6 of who has that one in IPv4.
    pub(crate) fn v6_of(&self, address: Ipv4Addr) -> Option<IpNet> {
        let network = u128::from(self.v6?.network());
        Some(IpNet::from(IpAddr::from(Ipv6Addr::from(network | u128::from(u32::from(address))))))
    }

    /// The bridge's addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpNet> + use<> {
        [Some(IpNet::V4(self.address)), self.v6.map(IpNet::V6)].into_iter().flatten()
    }

    pub(crate) fn subnet(&self) -> Ipv4Net {
        self.address.trunc()
    }
}

/// Everything the node has an address in or a route to, the default route aside.
async fn taken(netlink: &Netlink, avoid: &[Ipv4Net]) -> Result<Vec<Ipv4Net>> {
    let mut taken = avoid.to_vec();
    taken.extend(netlink.addresses().await?.into_iter().filter_map(|(_, address)| match address {
        IpNet::V4(address) => Some(address.trunc()),
        IpNet::V6(_) => None,
    }));
    let routes = netlink.routes(AddressFamily::Inet).await?.into_iter().map(|route| route.destination);
    taken.extend(routes.filter_map(|destination| match destination {
        IpNet::V4(destination) if destination.prefix_len() > 0 => Some(destination),
        _ => None,
    }));
    Ok(taken)
}

fn set_settings(has_v6: bool) -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    // Nobody else has its addresses: without a check the bridge serves at once.
    sysctl::set_if_present(&format!("ipv6/conf/{GATEWAY}/accept_dad"), "0")?;
    sysctl::set_if_present(&format!("ipv6/conf/{GATEWAY}/disable_ipv6"), "0")?;
    // A container is no router.
    sysctl::set_if_present(&format!("ipv6/conf/{GATEWAY}/accept_ra"), "0")?;
    if has_v6 { sysctl::forward_ipv6() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn pools_in_use_are_passed_over() {
        assert_eq!(choose_pool(&[]).unwrap(), nets(&["172.18.0.0/16"])[0]);
        assert_eq!(choose_pool(&nets(&["172.18.4.0/24"])).unwrap(), nets(&["172.19.0.0/16"])[0]);
        assert_eq!(choose_pool(&nets(&["172.16.0.0/12"])).unwrap(), nets(&["192.168.0.0/20"])[0]);
        assert_eq!(
            choose_pool(&nets(&["172.16.0.0/12", "192.168.0.0/19"])).unwrap(),
            nets(&["192.168.32.0/20"])[0]
        );
        assert!(matches!(choose_pool(&nets(&["172.16.0.0/12", "192.168.0.0/16"])), Err(Error::NoFreePool)));
    }

    #[test]
    fn addresses_go_round_and_end() {
        let subnet: Ipv4Net = "192.168.0.0/29".parse().unwrap();
        let mut used = BTreeSet::new();
        let mut last = None;
        for expected in 2..=6 {
            let address = choose_address(subnet, &used, last).unwrap();
            assert_eq!(address, Ipv4Addr::new(192, 168, 0, expected));
            used.insert(address);
            last = Some(address);
        }
        assert!(matches!(choose_address(subnet, &used, last), Err(Error::NoFreeAddress(_))));
        used.remove(&Ipv4Addr::new(192, 168, 0, 3));
        assert_eq!(choose_address(subnet, &used, last).unwrap(), Ipv4Addr::new(192, 168, 0, 3));
    }
}
