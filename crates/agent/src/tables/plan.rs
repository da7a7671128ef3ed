//! The order in which one network's table comes into force, as a pure function.
//!
//! A name must not resolve before its address is balanced, and an address not be balanced before its
//! frames find their way; removals go the other way round. So: fabric, balancer, names; then names,
//! balancer, fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use shoal_balancer::{PortKey, ServiceKey};
use shoal_model::{EndpointId, IpVersion, NetworkTable, Protocol, PublishMode, ServiceEntry};

pub(crate) type Services = BTreeMap<ServiceKey, BTreeSet<IpAddr>>;
pub(crate) type Ports = BTreeMap<(Protocol, u16), BTreeSet<SocketAddr>>;
pub(crate) type LocalPorts = BTreeMap<PortKey, BTreeSet<SocketAddr>>;

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
}

/// One thing to do in kernel or resolver.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Add forwarding entries.
    ApplyFabric,
    SetService(ServiceKey, BTreeSet<IpAddr>),
    /// The full set of ports to accept.
    AcceptPorts(Ports),
    SetPort(PortKey, BTreeSet<SocketAddr>),
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
pub(crate) fn services(table: &NetworkTable) -> Services {
    let mut services = Services::new();
    if table.config.ingress {
        return services;
    }
    let vni = table.config.vni;
    for service in table.services.values() {
        if let Some(address) = service.vip {
            let backends = table.backend_addresses(service).collect();
            services.insert(ServiceKey { vni, address }, backends);
        }
        if let Some(address) = service.vip_v6 {
            let backends = backends_v6(table, service).collect();
            services.insert(ServiceKey { vni, address }, backends);
        }
    }
    services
}

/// The ports every node accepts, and where they lead.
pub(crate) fn ports(table: &NetworkTable) -> Ports {
    let mut ports = Ports::new();
    if !table.config.ingress {
        return ports;
    }
    for service in table.services.values() {
        for port in service.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
            let v4 = table.backend_addresses(service);
            let backends = v4.chain(backends_v6(table, service));
            ports
                .entry((port.protocol, port.published))
                .or_default()
                .extend(backends.map(|address| SocketAddr::new(address, port.target)));
        }
    }
    ports
}

/// Where the node's own programs are led that use those ports. By IPv6 they reach backends in IPv6; on an
/// ingress network without it the others, as far as their sockets can.
pub(crate) fn local_ports(table: &NetworkTable) -> LocalPorts {
    let has_v6 = table.config.pools.iter().any(|pool| pool.subnet.addr().is_ipv6());
    let mut local = LocalPorts::new();
    for ((protocol, port), backends) in ports(table) {
        for version in IpVersion::ALL {
            let wanted = if has_v6 { version } else { IpVersion::V4 };
            let backends = backends.iter().filter(|backend| IpVersion::of(backend.ip()) == wanted);
            local.insert(PortKey { version, protocol, port }, backends.copied().collect());
        }
    }
    local
}

fn backends_v6<'a>(table: &'a NetworkTable, service: &'a ServiceEntry) -> impl Iterator<Item = IpAddr> + 'a {
    let endpoints = service.backends.iter().filter_map(|id| table.endpoints.get(id));
    endpoints.filter_map(|endpoint| endpoint.address_v6).map(|address| address.addr())
}

/// How to bring `wanted` into force (`None`: take the network away). `dead` are the endpoints of
/// this node that will never answer again.
pub(crate) fn plan(held: &Held, wanted: Option<&NetworkTable>, dead: &BTreeSet<EndpointId>) -> Vec<Step> {
    let (new_services, new_ports) = wanted.map(|table| (services(table), ports(table))).unwrap_or_default();
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
    let new_local_ports = wanted.map(local_ports).unwrap_or_default();
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
