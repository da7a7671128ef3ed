//! What the node has beside the fabric, followed as it comes and goes: its addresses, the size of the
//! links that hold them, and where its own routes lead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::netlink::{self, Netlink, Route};
use crate::netns::Namespace;
use crate::owner;
use crate::{OwnNetwork, Result};

/// Routes come in bursts, ours among them: one look at the end of a burst is enough.
const ROUTES_SETTLE: Duration = Duration::from_millis(300);
/// A node with a large routing table looks at it so many times less long than it does not.
const ROUTES_PAUSE: u32 = 20;
/// Most prefixes that are told of one node.
const ROUTES_MAX: usize = 1024;

/// A value that is read anew when the kernel tells of a change, until dropped.
pub(crate) struct Followed<T> {
    current: watch::Receiver<T>,
    follower: JoinHandle<()>,
}

impl<T> Followed<T> {
    pub(crate) fn changes(&self) -> watch::Receiver<T> {
        self.current.clone()
    }
}

impl<T> Drop for Followed<T> {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The node's addresses, loopback aside.
pub(crate) async fn addresses(
    namespace: &Namespace,
    netlink: &Netlink,
) -> Result<Followed<BTreeSet<IpAddr>>> {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    follow(namespace, netlink, GROUPS, Duration::ZERO, read_addresses).await
}

/// The MTU of the links that hold the node's addresses.
pub(crate) async fn mtus(
    namespace: &Namespace,
    netlink: &Netlink,
) -> Result<Followed<BTreeMap<IpAddr, u32>>> {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    follow(namespace, netlink, GROUPS, Duration::ZERO, read_mtus).await
}

/// The node's own network: loopback and what is ours are not part of it.
pub(crate) async fn own_network(namespace: &Namespace, netlink: &Netlink) -> Result<Followed<OwnNetwork>> {
    const GROUPS: &[MulticastGroup] = &[
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    follow(namespace, netlink, GROUPS, ROUTES_SETTLE, read_own_network).await
}

async fn follow<T, F>(
    namespace: &Namespace,
    netlink: &Netlink,
    groups: &'static [MulticastGroup],
    settle: Duration,
    read: fn(Netlink) -> F,
) -> Result<Followed<T>>
where
    T: PartialEq + Send + Sync + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    // Watching before reading, so that no change falls in between.
    let mut changes = netlink::watch(namespace, groups).await?;
    let (sender, current) = watch::channel(read(netlink.clone()).await?);
    let netlink = netlink.clone();
    let follower = tokio::spawn(async move {
        let mut pause = settle;
        while changes.next().await.is_some() {
            tokio::time::sleep(pause).await;
            while changes.next().now_or_never().flatten().is_some() {}
            let began = Instant::now();
            match read(netlink.clone()).await {
                Ok(value) => {
                    sender.send_if_modified(|held| {
                        let changed = *held != value;
                        *held = value;
                        changed
                    });
                }
                Err(error) => tracing::warn!(%error, "cannot read the node's network"),
            }
            pause = if settle.is_zero() { settle } else { settle.max(began.elapsed() * ROUTES_PAUSE) };
        }
    });
    Ok(Followed { current, follower })
}

pub(crate) async fn read_addresses(netlink: Netlink) -> Result<BTreeSet<IpAddr>> {
    let addresses = netlink.addresses().await?.into_iter().map(|(_, address)| address.addr());
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

async fn read_mtus(netlink: Netlink) -> Result<BTreeMap<IpAddr, u32>> {
    let mtus: BTreeMap<u32, u32> =
        netlink.links().await?.into_iter().map(|link| (link.index, link.mtu)).collect();
    let addresses = netlink.addresses().await?.into_iter();
    Ok(addresses.filter_map(|(index, address)| Some((address.addr(), *mtus.get(&index)?))).collect())
}

async fn read_own_network(netlink: Netlink) -> Result<OwnNetwork> {
    let links = netlink.links().await?;
    let is_ours = |link: &crate::link::Link| {
        owner::is_node_link(&link.name) || owner::is_some_nodes(link.alias.as_deref())
    };
    let passed_over = |link: &&crate::link::Link| link.name == "lo" || is_ours(link);
    let ours: BTreeSet<u32> = links.iter().filter(passed_over).map(|link| link.index).collect();
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        routes.extend(netlink.routes(family).await?);
    }
    routes.retain(|route| route.table == Route::MAIN && !ours.contains(&route.index));
    let addresses = netlink.addresses().await?.into_iter().filter(|(index, _)| !ours.contains(index));
    let mut own = OwnNetwork {
        routes: summary(routes.into_iter().map(|route| route.destination)),
        ..OwnNetwork::default()
    };
    for (index, address) in addresses.map(|(index, address)| (index, address.addr())) {
        if let Some(link) = links.iter().find(|link| link.index == index) {
            own.links.entry(link.name.clone()).or_default().insert(address);
        }
        if is_routed(&address) {
            own.addresses.insert(address);
        }
    }
    Ok(own)
}

/// Means something on more than one link.
pub(crate) fn is_routed(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    }
}

/// The prefixes that say it all: none within another, and of too many the largest.
fn summary(prefixes: impl Iterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let all: BTreeSet<IpNet> = prefixes.filter(is_specific).map(|prefix| prefix.trunc()).collect();
    let mut outer: Vec<IpNet> = Vec::new();
    // A prefix comes right before those within it.
    for prefix in all {
        if outer.last().is_none_or(|last| !last.contains(&prefix)) {
            outer.push(prefix);
        }
    }
    if outer.len() > ROUTES_MAX {
        tracing::warn!(
            routes = outer.len(),
            told = ROUTES_MAX,
            "too many routes to keep all networks clear of"
        );
        outer.sort_by_key(IpNet::prefix_len);
    }
    outer.into_iter().take(ROUTES_MAX).collect()
}

/// Not a default route, be it in halves as VPNs set it; not the links' own addresses either.
fn is_specific(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => prefix.prefix_len() >= 8 && !prefix.addr().is_multicast(),
        IpNet::V6(prefix) => {
            let address = prefix.addr();
            prefix.prefix_len() >= 7 && !address.is_unicast_link_local() && !address.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(prefixes: &[&str]) -> Vec<String> {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap());
        summary(prefixes).into_iter().map(|prefix| prefix.to_string()).collect()
    }

    #[test]
    fn what_is_within_another_route_says_nothing_new() {
        let routes = ["10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/16", "10.1.2.3/32", "fd01:1::/64", "fd00::/16"];
        assert_eq!(told(&routes), ["10.0.0.0/16", "10.1.0.0/16", "fd00::/16", "fd01:1::/64"]);
    }

    #[test]
    fn default_routes_and_link_local_ones_are_not_told() {
        let routes = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3", "fe80::/64", "ff00::/8"];
        assert_eq!(told(&routes), Vec::<String>::new());
        assert_eq!(told(&["10.0.0.0/8"]), ["10.0.0.0/8"]);
    }
}
