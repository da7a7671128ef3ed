//! The ingress' bridge and tunnel, their addresses and settings.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;
use shoal_model::MacAddr;

use super::blueprint::Blueprint;
use super::tunnel_mac;
use crate::link::{self, Link};
use crate::netlink::Netlink;
use crate::owner::{self, INGRESS, INGRESS_TUNNEL, node_alias};
use crate::{Result, sysctl};

/// The bridge's link address: tasks keep it in their caches wherever they were started.
pub(super) fn bridge_mac(gateway: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = gateway.octets();
    MacAddr([0x02, 0x5a, a, b, c, d])
}

pub(super) async fn ensure_bridge(netlink: &Netlink, tag: &str, wanted: &Blueprint) -> Result<u32> {
    let mac = bridge_mac(wanted.gateway.addr());
    match netlink.link(INGRESS).await? {
        Some(link) => owner::check(tag, INGRESS, link.alias.as_deref())?,
        None => netlink.add_link(link::bridge(INGRESS, Some(mac), wanted.mtu), INGRESS).await?,
    }
    let index = netlink.index(INGRESS).await?;
    let attributes = vec![
        LinkAttribute::IfAlias(node_alias(tag, wanted.network.as_str())),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(wanted.mtu),
    ];
    netlink.change_link(index, attributes, INGRESS).await?;
    netlink.set_up(index, INGRESS).await?;
    Ok(index)
}

/// The second value tells whether the link is new.
pub(super) async fn ensure_tunnel(netlink: &Netlink, tag: &str, wanted: &Blueprint) -> Result<(u32, bool)> {
    let mac = tunnel_mac(wanted.own);
    if let Some(link) = netlink.link(INGRESS_TUNNEL).await? {
        owner::check(tag, INGRESS_TUNNEL, link.alias.as_deref())?;
        if is_tunnel(&link, wanted) {
            return Ok((link.index, false));
        }
        netlink.remove_link(INGRESS_TUNNEL).await?;
    }
    let message = link::vxlan(INGRESS_TUNNEL, Some(mac), wanted.mtu, wanted.tunnel);
    netlink.add_link(message, INGRESS_TUNNEL).await?;
    let index = netlink.index(INGRESS_TUNNEL).await?;
    let alias = LinkAttribute::IfAlias(node_alias(tag, wanted.network.as_str()));
    netlink.change_link(index, vec![alias], INGRESS_TUNNEL).await?;
    Ok((index, true))
}

/// Gives the link this address, and no other of its version of IP; what every link has of itself stays.
pub(super) async fn ensure_address(netlink: &Netlink, index: u32, wanted: IpNet) -> Result<()> {
    let held: Vec<IpNet> = netlink
        .addresses()
        .await?
        .into_iter()
        .filter(|(link, address)| *link == index && is_alike(address, &wanted))
        .map(|(_, address)| address)
        .collect();
    for other in held.iter().filter(|address| **address != wanted) {
        netlink.remove_address(index, *other).await?;
    }
    // The route to the subnet is ours to make, with another source address than the kernel's.
    if held.contains(&wanted) { Ok(()) } else { netlink.add_address(index, wanted, false).await }
}

fn is_alike(address: &IpNet, wanted: &IpNet) -> bool {
    match (address, wanted) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(address), IpNet::V6(_)) => !address.addr().is_unicast_link_local(),
        _ => false,
    }
}

/// Settings of the ingress' links. A machine may be without IPv6; then those of it are not there.
pub(super) fn settings(has_v6: bool) -> Vec<(String, &'static str)> {
    let without_v6 = if has_v6 { "0" } else { "1" };
    let mut settings = vec![
        // The reverse path of what other nodes forward is looked up with their mark.
        (format!("ipv4/conf/{INGRESS_TUNNEL}/src_valid_mark"), "1"),
        // Tasks find the addresses of other nodes and their tasks behind this bridge, at once.
        (format!("ipv4/conf/{INGRESS}/proxy_arp"), "1"),
        (format!("ipv4/neigh/{INGRESS}/proxy_delay"), "0"),
    ];
    for link in [INGRESS, INGRESS_TUNNEL] {
        // Nobody else has its addresses: without a check the link serves at once.
        settings.push((format!("ipv6/conf/{link}/accept_dad"), "0"));
        settings.push((format!("ipv6/conf/{link}/disable_ipv6"), without_v6));
        // A task is no router.
        settings.push((format!("ipv6/conf/{link}/accept_ra"), "0"));
    }
    settings
}

pub(super) fn set_settings(has_v6: bool) -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    for (name, value) in settings(has_v6) {
        let set = if name.starts_with("ipv6/") { sysctl::set_if_present } else { sysctl::set };
        set(&name, value)?;
    }
    if sysctl::has_ipv6() { sysctl::forward_ipv6() } else { Ok(()) }
}

pub(super) fn is_tunnel(link: &Link, wanted: &Blueprint) -> bool {
    link.tunnel == Some(wanted.tunnel) && link.mac == Some(tunnel_mac(wanted.own)) && link.up
}
