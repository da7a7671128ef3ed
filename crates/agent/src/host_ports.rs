//! Ports of this node that lead to single containers: those of tasks (`mode=host`), and of plain containers.
//!
//! A container's ports are reserved before it is made or started, and lead to it while it serves. What reserves
//! a port is a socket bound to it on which nobody listens: no other program of the node gets it, and one
//! that has it already is noticed in time. Packets for a port that leads somewhere never come that far.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, setsockopt, socket,
    sockopt,
};
use serde::{Deserialize, Serialize};
use shoal_balancer::{KernelState, LocalPort, PortKey};
use shoal_model::{IpVersion, PortConfig, Protocol, PublishMode, Task};
use shoal_network::{Fabric, HostPort};

use crate::node::Node;
use crate::{Error, Result, lock};

/// Where ports of the node lead.
pub(crate) use shoal_network::HostPorts as Ways;

#[derive(Default)]
pub(crate) struct HostPorts {
    /// By task or plain container.
    claims: Mutex<BTreeMap<String, Claim>>,
    /// What was brought into force; held while that is being changed.
    applied: tokio::sync::Mutex<Ways>,
}

/// A port of a container that its node publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub port: PortConfig,
    /// The node's address that leads there; `None`: all of them.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// As it is asked for: the node chooses a number from the published one up to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<u16>,
}

impl From<&PortConfig> for Binding {
    fn from(port: &PortConfig) -> Self {
        Self { port: port.clone(), address: None, upto: None }
    }
}

impl Binding {
    /// The numbers of the node that it may have, 0 being any; those it had come first.
    fn candidates(&self, former: &[Self]) -> Vec<u16> {
        let same = |had: &&Self| {
            (had.port.protocol, had.port.target, had.address)
                == (self.port.protocol, self.port.target, self.address)
        };
        let range = self.port.published..=self.upto.unwrap_or(self.port.published);
        let had = || former.iter().filter(same).map(|had| had.port.published);
        match (self.port.published, self.upto) {
            (0, _) => had().take(1).chain([0]).collect(),
            (_, Some(_)) => had().filter(|number| range.contains(number)).chain(range.clone()).collect(),
            (number, None) => vec![number],
        }
    }

    /// It is at that port of the node.
    fn is_at(&self, protocol: Protocol, number: u16) -> bool {
        (self.port.protocol, self.port.published) == (protocol, number)
    }
}

struct Claim {
    /// With every published number filled in.
    ports: Vec<Binding>,
    /// Where they lead, in each version of IP; nowhere, now, if there is none.
    addresses: Vec<IpAddr>,
    _sockets: Vec<OwnedFd>,
}

/// The ports of its node that a task is to have.
pub(crate) fn declared(task: &Task) -> impl Iterator<Item = &PortConfig> {
    task.ports.iter().filter(|port| port.mode == PublishMode::Host)
}

impl HostPorts {
    /// Takes a container's ports, of those without a number some that are free; `former` are those it had when
    /// its node's daemon was another process, `published` those of the routing mesh. All of them, or none.
    pub(crate) fn reserve(
        &self,
        owner: &str,
        wanted: impl IntoIterator<Item = Binding>,
        former: &[Binding],
        published: &BTreeSet<(Protocol, u16)>,
    ) -> Result<Vec<Binding>> {
        let mut claims = lock(&self.claims);
        if let Some(claim) = claims.get(owner) {
            return Ok(claim.ports.clone());
        }
        let (mut ports, mut sockets) = (Vec::<Binding>::new(), Vec::new());
        for wanted in wanted {
            let protocol = wanted.port.protocol;
            let mut refused = Error::PortTaken { protocol, port: wanted.port.published };
            let mut found = None;
            for number in wanted.candidates(former) {
                let has_it = |held: &Binding| number != 0 && held.is_at(protocol, number);
                // A number leads to one container, whatever addresses it is bound to.
                let another = |held: &Binding| has_it(held) && held.port.target != wanted.port.target;
                if claims.values().any(|claim| claim.ports.iter().any(has_it)) || ports.iter().any(another) {
                    continue;
                }
                match reserve(protocol, number, wanted.address, published) {
                    Ok(held) => {
                        found = Some(held);
                        break;
                    }
                    Err(error @ Error::PortTaken { .. }) => refused = error,
                    Err(error) => return Err(error),
                }
            }
            let Some((socket, number)) = found else {
                return Err(if wanted.upto.is_some() { Error::RangeTaken } else { refused });
            };
            let port = PortConfig { published: number, ..wanted.port };
            ports.push(Binding { port, address: wanted.address, upto: None });
            sockets.push(socket);
        }
        let claim = Claim { ports: ports.clone(), addresses: Vec::new(), _sockets: sockets };
        claims.insert(owner.to_owned(), claim);
        Ok(ports)
    }

    /// The same of a container that has served since before this process: another program may have got hold of
    /// its ports meanwhile, and gets no packet of them.
    pub(crate) fn resume(&self, owner: &str, ports: &[Binding], addresses: Vec<IpAddr>) {
        if let Err(error) = self.reserve(owner, ports.iter().cloned(), ports, &BTreeSet::new()) {
            tracing::warn!(owner, %error, "the container keeps its port all the same");
            let claim = Claim { ports: ports.to_vec(), addresses: Vec::new(), _sockets: Vec::new() };
            lock(&self.claims).insert(owner.to_owned(), claim);
        }
        if let Some(claim) = lock(&self.claims).get_mut(owner) {
            claim.addresses = addresses;
        }
    }

    /// The container's ports lead to it already, or to nowhere, as is asked for.
    pub(crate) fn is_as_asked(&self, owner: &str, leads: bool) -> bool {
        lock(&self.claims).get(owner).map_or(!leads, |claim| claim.addresses.is_empty() != leads)
    }

    /// Leads a container's ports to these addresses, or to nowhere.
    pub(crate) async fn lead(&self, node: &Node, owner: &str, addresses: Vec<IpAddr>) -> Result<()> {
        if let Some(claim) = lock(&self.claims).get_mut(owner) {
            claim.addresses = addresses;
        }
        self.apply(node).await
    }

    /// From now on the container's ports are anybody's.
    pub(crate) async fn release(&self, node: &Node, owner: &str) -> Result<()> {
        // The sockets go last: nobody is to listen on a port that still leads elsewhere.
        let claim = lock(&self.claims).remove(owner);
        if claim.is_some() { self.apply(node).await } else { Ok(()) }
    }

    /// Where the node's ports are to lead.
    pub(crate) fn ways(&self) -> Ways {
        let claims = lock(&self.claims);
        let mut ways = Ways::new();
        for claim in claims.values().filter(|claim| !claim.addresses.is_empty()) {
            for Binding { port, address, .. } in &claim.ports {
                let addresses = claim.addresses.iter().map(|address| SocketAddr::new(*address, port.target));
                let way =
                    HostPort { backends: addresses.collect(), bound: address.iter().copied().collect() };
                // One number at several addresses.
                ways.entry((port.protocol, port.published))
                    .and_modify(|held| held.bound.extend(&way.bound))
                    .or_insert(way);
            }
        }
        ways
    }

    pub(crate) fn keys(&self) -> BTreeSet<PortKey> {
        self.ways().into_keys().flat_map(keys).collect()
    }

    /// Brings what is wanted into force. The node's own programs first: once the node accepts a port, who
    /// is not led on is refused.
    pub(crate) async fn apply(&self, node: &Node) -> Result<()> {
        let mut applied = self.applied.lock().await;
        let wanted = self.ways();
        for (port, way) in wanted.iter().filter(|(port, way)| applied.get(port) != Some(way)) {
            for key in keys(*port) {
                node.balancer.set_port(key, &led_to(key, way))?;
            }
        }
        node.fabric.host_ports(&wanted).await?;
        for port in applied.keys().filter(|port| !wanted.contains_key(port)) {
            for key in keys(*port) {
                node.balancer.remove_port(key)?;
            }
        }
        *applied = wanted;
        Ok(())
    }

    /// The same, believing nothing of what the kernel holds.
    pub(crate) async fn renew(&self, node: &Node) -> Result<()> {
        self.applied.lock().await.clear();
        node.fabric.distrust_elements().await;
        self.apply(node).await
    }

    /// What the kernel holds is not what is wanted, in words.
    pub(crate) async fn differences(&self, fabric: &Fabric, kernel: &KernelState) -> Result<Vec<String>> {
        let wanted = self.ways();
        let mut differences = fabric.host_port_differences(&wanted).await?;
        for (at, way) in wanted {
            if keys(at).any(|key| kernel.ports.get(&key) != Some(&led_to(key, &way))) {
                let (protocol, port) = (at.0.as_str(), at.1);
                differences.push(format!("balancer: port {port}/{protocol} does not lead to {way:?}"));
            }
        }
        Ok(differences)
    }
}

/// By IPv6 to the other address, where there is no such.
fn led_to(key: PortKey, way: &HostPort) -> LocalPort {
    let of = |version| way.backends.iter().find(|address| IpVersion::of(address.ip()) == version);
    let backend = of(key.version).or_else(|| of(IpVersion::V4));
    let bound = way.bound.iter().filter(|address| IpVersion::of(**address) == key.version);
    let bound = (!way.bound.is_empty()).then(|| bound.copied().collect());
    LocalPort { backends: backend.copied().into_iter().collect(), bound }
}

/// The node's own programs reach a port by either version of IP.
fn keys((protocol, port): (Protocol, u16)) -> impl Iterator<Item = PortKey> {
    IpVersion::ALL.into_iter().map(move |version| PortKey { version, protocol, port })
}

/// A socket that holds this port, or one that is free and not published otherwise, and its number.
fn reserve(
    protocol: Protocol,
    port: u16,
    address: Option<IpAddr>,
    published: &BTreeSet<(Protocol, u16)>,
) -> Result<(OwnedFd, u16)> {
    // Held on to, or the kernel might offer the same again.
    let mut unfit = Vec::new();
    loop {
        let (socket, number) = hold_at(protocol, port, address)?;
        if port != 0 || !published.contains(&(protocol, number)) {
            return Ok((socket, number));
        }
        unfit.push(socket);
    }
}

/// A socket that keeps the port, or any free one, from the node's other programs; and its number.
pub(crate) fn hold(protocol: Protocol, port: u16) -> Result<(OwnedFd, u16)> {
    hold_at(protocol, port, None)
}

fn hold_at(protocol: Protocol, port: u16, address: Option<IpAddr>) -> Result<(OwnedFd, u16)> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let held = match address {
        None => match bound_v6(kind, Ipv6Addr::UNSPECIFIED, port) {
            // A kernel without IPv6.
            Err(Errno::EAFNOSUPPORT) => bound_v4(kind, Ipv4Addr::UNSPECIFIED, port),
            held => held,
        },
        Some(IpAddr::V4(address)) => bound_v4(kind, address, port),
        Some(IpAddr::V6(address)) => bound_v6(kind, address, port),
    };
    held.map_err(|errno| match errno {
        Errno::EADDRINUSE => Error::PortTaken { protocol, port },
        _ => Error::Port { protocol, port, source: errno.into() },
    })
}

/// Bound, of the unspecified address in both versions of IP, but not listening: who connects is refused.
fn bound_v6(kind: SockType, address: Ipv6Addr, port: u16) -> nix::Result<(OwnedFd, u16)> {
    let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &!address.is_unspecified())?;
    bind(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)))?;
    let number = getsockname::<SockaddrIn6>(socket.as_raw_fd())?.port();
    Ok((socket, number))
}

fn bound_v4(kind: SockType, address: Ipv4Addr, port: u16) -> nix::Result<(OwnedFd, u16)> {
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))?;
    let number = getsockname::<SockaddrIn>(socket.as_raw_fd())?.port();
    Ok((socket, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const NONE: BTreeSet<(Protocol, u16)> = BTreeSet::new();

    fn task(id: &str, ports: &[(Protocol, u16)]) -> Task {
        let mut task = testing::task(id);
        let port = |&(protocol, published): &(Protocol, u16)| PortConfig {
            protocol,
            target: 80,
            published,
            mode: PublishMode::Host,
            ..PortConfig::default()
        };
        task.ports = ports.iter().map(port).collect();
        task
    }

    fn take(held: &HostPorts, task: &Task, former: &[Binding]) -> Result<Vec<Binding>> {
        held.reserve(task.id.as_str(), declared(task).map(Binding::from), former, &NONE)
    }

    #[test]
    fn a_bound_port_leads_from_its_address_only() {
        let held = HostPorts::default();
        let port = PortConfig { target: 80, ..PortConfig::default() };
        let own = Binding { port, address: Some(Ipv4Addr::LOCALHOST.into()), upto: None };
        let taken = held.reserve("c1", [own.clone()], &[], &NONE).unwrap();
        let number = taken[0].port.published;
        held.resume("c1", &[], vec!["172.17.0.2".parse().unwrap()]);
        let ways = held.ways();
        let way = &ways[&(Protocol::Tcp, number)];
        assert_eq!(way.bound, BTreeSet::from([Ipv4Addr::LOCALHOST.into()]));
        let key = |version| PortKey { version, protocol: Protocol::Tcp, port: number };
        assert_eq!(led_to(key(IpVersion::V4), way).bound, Some(way.bound.clone()));
        assert_eq!(led_to(key(IpVersion::V6), way).bound, Some(BTreeSet::new()));
        let mut other = own;
        (other.port.published, other.address) = (number, Some([127, 0, 0, 2].into()));
        assert!(matches!(held.reserve("c2", [other], &[], &NONE), Err(Error::PortTaken { .. })));
    }

    #[test]
    fn a_port_without_a_number_gets_one_and_keeps_it() {
        let held = HostPorts::default();
        let task = task("t1", &[(Protocol::Tcp, 0), (Protocol::Udp, 0)]);
        let ports = take(&held, &task, &[]).unwrap();
        assert!(ports.iter().all(|held| held.port.published != 0));
        assert_eq!(take(&held, &task, &[]).unwrap(), ports, "asked again");
        drop(held);
        assert_eq!(take(&HostPorts::default(), &task, &ports).unwrap(), ports, "asked by another process");
    }

    #[test]
    fn a_port_of_a_range_is_the_first_that_is_free() {
        let held = HostPorts::default();
        let other = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let first = other.local_addr().unwrap().port();
        let range = |target| {
            let port =
                PortConfig { protocol: Protocol::Udp, target, published: first, ..PortConfig::default() };
            Binding { port, address: None, upto: Some(first.saturating_add(40)) }
        };
        let take = |owner: &str, former: &[Binding]| held.reserve(owner, [range(80)], former, &NONE);
        let one = take("c1", &[]).unwrap();
        let two = take("c2", &[]).unwrap();
        assert!(first < one[0].port.published && one[0].port.published < two[0].port.published);
        assert_eq!(one[0].upto, None, "what it has is a number");
        let mut former = range(80);
        former.port.published = two[0].port.published + 3;
        assert_eq!(take("c3", &[former.clone()]).unwrap()[0].port.published, former.port.published);
        let narrow = Binding { upto: Some(first), ..range(80) };
        assert!(matches!(held.reserve("c4", [narrow], &[], &NONE), Err(Error::RangeTaken)));
    }

    #[test]
    fn what_another_program_has_is_refused_by_number() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = other.local_addr().unwrap().port();
        let held = HostPorts::default();
        let free = take(&held, &task("free", &[(Protocol::Udp, 0)]), &[]).unwrap()[0].port.published;
        let refused = take(&held, &task("t1", &[(Protocol::Tcp, number)]), &[]).unwrap_err();
        let text = format!("host-mode port {number}/tcp is in use by another program on this node");
        assert_eq!(refused.to_string(), text);
        let both = task("t2", &[(Protocol::Udp, 0), (Protocol::Udp, free)]);
        assert!(take(&held, &both, &[]).is_err());
        assert!(lock(&held.claims).len() == 1, "all or none");
    }

    #[test]
    fn the_routing_meshs_ports_are_not_chosen() {
        let odd = (1..u16::MAX).step_by(2).map(|port| (Protocol::Udp, port)).collect();
        let held: Vec<_> = (0..8).map(|_| reserve(Protocol::Udp, 0, None, &odd).unwrap()).collect();
        assert!(held.iter().all(|(_, number)| number % 2 == 0));
    }

    #[test]
    fn ports_lead_where_the_task_serves() {
        let held = HostPorts::default();
        let task = task("t1", &[(Protocol::Tcp, 0)]);
        let number = take(&held, &task, &[]).unwrap()[0].port.published;
        let id = task.id.as_str();
        assert!(held.ways().is_empty() && held.is_as_asked(id, false));
        let addresses: [IpAddr; 2] = ["172.18.0.2", "fd00::2"].map(|address| address.parse().unwrap());
        held.resume(id, &[], addresses.into());
        let backends = addresses.map(|address| SocketAddr::new(address, 80)).into();
        let way = HostPort { backends, bound: BTreeSet::new() };
        assert_eq!(held.ways(), Ways::from([((Protocol::Tcp, number), way)]));
        assert!(held.is_as_asked(id, true));
    }
}
