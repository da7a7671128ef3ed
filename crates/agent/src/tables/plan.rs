//! The order in which one network's table comes into force, as a pure function.
//!
//! A name must not resolve before its address is balanced, and an address not be balanced before its
//! frames find their way; removals go the other way round. So: fabric, balancer, names; then names,
//! balancer, fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use shoal_balancer::{LocalPort, PortKey, ServiceKey};
use shoal_model::{
    Admission, Backends, Bind, EndpointEntry, EndpointId, IpVersion, NetworkTable, NodeId, PortConfig,
    Protocol, PublishMode, ServiceEntry,
};
use shoal_network::{Ports, PublishedPort};

pub(crate) type Services = BTreeMap<ServiceKey, Backends<IpAddr>>;
pub(crate) type LocalPorts = BTreeMap<PortKey, LocalPort>;

/// The node that a table takes effect on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub node: Option<NodeId>,
    /// The addresses of its links.
    pub links: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// What is in force of one network, kept up with every step that succeeds: a plan that fails half-way
/// is made anew from what was really done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// The table last brought into force completely.
    pub table: Option<NetworkTable>,
    /// What the kernel's maps hold for the network.
    pub services: Services,
    /// What the node accepts from outside; only of the ingress network.
    pub ports: Ports,
    /// What the kernel translates for the node's own clients.
    pub local_ports: LocalPorts,
    /// Addresses whose clients have already been told.
    pub released: BTreeSet<IpAddr>,
    /// Kernel or resolver were seen to hold something else than was brought into force: what cannot
    /// be compared here is to be done again.
    pub doubted: bool,
    /// It has taken effect, but could not be written down.
    pub unsaved: bool,
}

/// One thing to do in kernel or resolver.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Add forwarding entries.
    ApplyFabric,
    SetService(ServiceKey, Backends<IpAddr>),
    /// The full set of ports to accept.
    AcceptPorts(Ports),
    SetPort(PortKey, LocalPort),
    SetNames,
    RemoveNames,
    RemovePort(PortKey),
    RemoveService(ServiceKey),
    /// Take away forwarding entries the table does not hold.
    PruneFabric,
    RemoveFabric,
    /// Nobody answers at this address any more: reset what is connected to it.
    Release(IpAddr),
}

/// The virtual addresses of a table and where they lead. None for the ingress network: nobody asks
/// for those.
pub(crate) fn services(table: &NetworkTable, own: &Own) -> Services {
    let mut services = Services::new();
    if table.config.ingress {
        return services;
    }
    let vni = table.config.vni;
    for service in table.services.values() {
        for address in [service.vip, service.vip_v6].into_iter().flatten() {
            let members = addresses(table, service, own, IpVersion::of(address)).collect();
            let backends = Backends { members, by_source: service.policy.balance.by_source };
            services.insert(ServiceKey { vni, address }, backends);
        }
    }
    services
}

/// The ports of the routing mesh.
pub(crate) fn published(table: &NetworkTable) -> BTreeSet<(Protocol, u16)> {
    let ports = table.services.values().flat_map(mesh_ports);
    let keys = ports.map(|port| (port.protocol, port.published));
    keys.filter(|_| table.config.ingress).collect()
}

fn mesh_ports(service: &ServiceEntry) -> impl Iterator<Item = &PortConfig> {
    service.ports.iter().filter(|port| port.mode == PublishMode::Ingress)
}

/// The same, with where they lead and whom.
pub(crate) fn ports(table: &NetworkTable, own: &Own) -> Ports {
    let mut ports = Ports::new();
    for service in table.services.values().filter(|_| table.config.ingress) {
        for port in mesh_ports(service) {
            let addresses =
                IpVersion::ALL.into_iter().flat_map(|version| addresses(table, service, own, version));
            let members = addresses.map(|address| SocketAddr::new(address, port.target)).collect();
            let backends = Backends { members, by_source: service.policy.balance.by_source };
            let admission = service.policy.admission(port.published);
            ports.insert((port.protocol, port.published), PublishedPort { backends, admission });
        }
    }
    ports
}

/// Where the node's own programs are led that use those ports. By IPv6 they reach backends in IPv6; on an
/// ingress network without it the others, as far as their sockets can. Which clients a port is for is no
/// question among the programs of one machine.
pub(crate) fn local_ports(table: &NetworkTable, own: &Own) -> LocalPorts {
    let has_v6 = table.config.pools.iter().any(|pool| pool.subnet.addr().is_ipv6());
    let mut local = LocalPorts::new();
    for ((protocol, port), PublishedPort { backends, admission }) in ports(table, own) {
        for version in IpVersion::ALL {
            let wanted = if has_v6 { version } else { IpVersion::V4 };
            let members = backends.members.iter().filter(|backend| IpVersion::of(backend.ip()) == wanted);
            let backends = Backends { members: members.copied().collect(), by_source: backends.by_source };
            let bound = bound(&admission, own, version);
            local.insert(PortKey { version, protocol, port }, LocalPort { backends, bound });
        }
    }
    local
}

/// The node's addresses that a port is bound to; `None`: to all.
fn bound(admission: &Admission, own: &Own, version: IpVersion) -> Option<BTreeSet<IpAddr>> {
    let addresses = admission.bind.iter().flat_map(|bind| match bind {
        Bind::Address(address) => vec![*address],
        Bind::Link(name) => own.links.get(name).into_iter().flatten().copied().collect(),
    });
    let addresses = addresses.filter(|address| IpVersion::of(*address) == version).collect();
    (!admission.bind.is_empty()).then_some(addresses)
}

/// Whom a service's new connections go to that begin or come in on this node.
fn addresses<'a>(
    table: &'a NetworkTable,
    service: &'a ServiceEntry,
    own: &'a Own,
    version: IpVersion,
) -> impl Iterator<Item = IpAddr> + 'a {
    let address = move |endpoint: &EndpointEntry| match version {
        IpVersion::V4 => Some(endpoint.address.addr()),
        IpVersion::V6 => endpoint.address_v6.map(|address| address.addr()),
    };
    let endpoints = service.backends.iter().filter_map(|id| table.endpoints.get(id));
    let endpoints = endpoints.filter(move |endpoint| address(endpoint).is_some());
    let is_here = |endpoint: &&EndpointEntry| Some(&endpoint.node) == own.node.as_ref();
    let only_here =
        service.policy.balance.local_first && endpoints.clone().any(|endpoint| is_here(&endpoint));
    endpoints.filter(move |endpoint| !only_here || is_here(endpoint)).filter_map(address)
}

/// How to bring `wanted` into force (`None`: take the network away). `dead` are the endpoints of
/// this node that will never answer again.
pub(crate) fn plan(
    held: &Held,
    wanted: Option<&NetworkTable>,
    dead: &BTreeSet<EndpointId>,
    own: &Own,
) -> Vec<Step> {
    let new_services = wanted.map(|table| services(table, own)).unwrap_or_default();
    let new_ports = wanted.map(|table| ports(table, own)).unwrap_or_default();
    let mut steps = Vec::new();
    let is_new = |table: &NetworkTable| {
        held.doubted
            || held.table.as_ref().is_none_or(|old| {
                old.endpoints != table.endpoints || old.nodes != table.nodes || old.config != table.config
            })
    };
    let fabric_changes = wanted.is_some_and(is_new);

    if fabric_changes {
        steps.push(Step::ApplyFabric);
    }
    for (key, backends) in &new_services {
        if held.services.get(key) != Some(backends) {
            steps.push(Step::SetService(*key, backends.clone()));
        }
    }
    // The node's own clients first: once the node accepts a port, who is not translated is refused.
    let new_local_ports = wanted.map(|table| local_ports(table, own)).unwrap_or_default();
    for (key, backends) in &new_local_ports {
        if held.local_ports.get(key) != Some(backends) {
            steps.push(Step::SetPort(*key, backends.clone()));
        }
    }
    let mut accepted = held.ports.clone();
    accepted.extend(new_ports.clone());
    if accepted != held.ports || (held.doubted && !new_ports.is_empty()) {
        steps.push(Step::AcceptPorts(accepted.clone()));
    }

    match wanted {
        Some(table) if held.doubted || held.table.as_ref() != Some(table) => steps.push(Step::SetNames),
        Some(_) => {}
        None => steps.push(Step::RemoveNames),
    }

    if accepted != new_ports {
        steps.push(Step::AcceptPorts(new_ports));
    }
    let stale = held.local_ports.keys().filter(|key| !new_local_ports.contains_key(key));
    steps.extend(stale.map(|key| Step::RemovePort(*key)));
    let stale = held.services.keys().filter(|key| !new_services.contains_key(key));
    steps.extend(stale.map(|key| Step::RemoveService(*key)));
    match wanted {
        Some(_) if fabric_changes => steps.push(Step::PruneFabric),
        Some(_) => {}
        None => steps.push(Step::RemoveFabric),
    }
    let gone = gone(held, wanted, dead);
    steps.extend(gone.difference(&held.released).map(|address| Step::Release(*address)));
    steps
}

/// The addresses nobody answers at any more: their endpoint has left the table, or is known here to
/// be dead. An address that went over to a live endpoint is not among them.
pub(crate) fn gone(
    held: &Held,
    wanted: Option<&NetworkTable>,
    dead: &BTreeSet<EndpointId>,
) -> BTreeSet<IpAddr> {
    let addresses = |table: &NetworkTable, live: bool| -> BTreeSet<IpAddr> {
        let endpoints = table.endpoints.iter().filter(|(id, _)| !live || !dead.contains(*id));
        endpoints
            .flat_map(|(_, entry)| [Some(entry.address), entry.address_v6])
            .flatten()
            .map(|address| address.addr())
            .collect()
    };
    let mut gone = held.table.as_ref().map(|table| addresses(table, false)).unwrap_or_default();
    if let Some(table) = wanted {
        gone.extend(addresses(table, false));
        let live = addresses(table, true);
        gone.retain(|address| !live.contains(address));
    }
    gone
}

#[cfg(test)]
mod tests;
