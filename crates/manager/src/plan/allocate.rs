//! Hands out subnets, network numbers, addresses and published ports.
//!
//! What cannot be had is said on the task and on the service, and tried again with every plan.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use shoal_model::{
    Attachment, EndpointMode, MacAddr, Network, NetworkDriver, NetworkId, NodeId, Object, PortConfig,
    PublishMode, Service, ServiceEndpoint, Task, TaskState, TaskStatus, VirtualIp,
};

use super::slots::is_wanted;
use super::{Draft, Planner};

use addresses::keep;
pub(crate) use addresses::{Addresses, Exhausted, Spot};
pub(crate) use network::{NoSubnet, clash, network, overlap, overlap_of};

mod addresses;
mod network;

/// Published ports chosen for a service that names none (Docker's range).
const PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

pub(super) fn networks_and_services(planner: &mut Planner<'_>, addresses: &mut Addresses) {
    let bare =
        |network: &&Arc<Network>| network.state.is_none() && network.spec.driver != NetworkDriver::Host;
    let networks: Vec<_> =
        planner.state().networks().filter(bare).map(|network| network.id.clone()).collect();
    for id in networks {
        // What is wrong with a network shows on the services that want it.
        if let Err(error) = network(&mut planner.draft, &id, planner.ids) {
            tracing::debug!(network = %id, %error, "no subnet yet");
        }
    }
    nodes(planner, addresses);
    for declared in planner.services() {
        if !declared.removing {
            service(&mut planner.draft, &declared, addresses);
        }
    }
}

/// Every node has an address of its own on the ingress network.
fn nodes(planner: &mut Planner<'_>, addresses: &mut Addresses) {
    let Some(ingress) = planner.state().ingress_network().filter(|network| network.state.is_some()).cloned()
    else {
        return;
    };
    let nodes: Vec<_> = planner.state().nodes().cloned().collect();
    for node in nodes {
        if node.ingress.as_ref().is_some_and(|held| held.network == ingress.id) {
            continue;
        }
        let attachment = attach(&planner.draft, addresses, Spot::anywhere(&ingress.id), &[], planner.ids);
        let mut node = (*node).clone();
        match attachment {
            Ok(attachment) => {
                keep_all(&mut planner.draft, &attachment);
                node.ingress = Some(attachment);
            }
            Err(error) => tracing::warn!(node = %node.id, %error, "the node takes no published ports"),
        }
        planner.draft.put(Object::Node(node));
    }
}

/// Brings a service's endpoint in line with what it declares.
pub(crate) fn service(draft: &mut Draft, declared: &Arc<Service>, addresses: &mut Addresses) {
    let mut next = Service::clone(declared);
    let wanted = wanted_networks(draft, declared);
    next.endpoint.virtual_ips.retain(|vip| wanted.contains(&vip.network));
    let ports = ports(draft, declared);
    let mut error = ports.as_ref().err().cloned().unwrap_or_default();
    if let Ok(ports) = ports {
        next.endpoint.ports = ports;
    }
    for network in wanted {
        if let Err(reason) = virtual_ips(draft, addresses, &network, &mut next.endpoint) {
            error = format!("could not find an available IP while allocating VIP: {reason}");
        }
    }
    next.allocation_error = error;
    draft.put(Object::Service(next));
}

/// Where the service has a virtual address: its networks, and the ingress network for its ports.
fn wanted_networks(draft: &Draft, service: &Service) -> Vec<NetworkId> {
    let mut wanted: Vec<NetworkId> = Vec::new();
    if service.spec.endpoint.mode == EndpointMode::Dnsrr {
        return wanted;
    }
    let joined = service.spec.task.networks.iter().map(|target| &target.network);
    let ingress = draft.state().ingress_network().map(|network| &network.id);
    for id in joined.chain(ingress.filter(|_| has_ingress_ports(&service.spec.endpoint.ports))) {
        let overlay =
            draft.state().network(id).is_none_or(|network| network.spec.driver == NetworkDriver::Overlay);
        if overlay && !wanted.contains(id) {
            wanted.push(id.clone());
        }
    }
    wanted
}

fn has_ingress_ports(ports: &[PortConfig]) -> bool {
    ports.iter().any(|port| port.mode == PublishMode::Ingress)
}

/// One address of each family that the network has.
fn virtual_ips(
    draft: &mut Draft,
    addresses: &mut Addresses,
    network: &NetworkId,
    endpoint: &mut ServiceEndpoint,
) -> Result<(), Exhausted> {
    let spot = Spot::anywhere(network);
    for v6 in addresses.families(draft, spot)? {
        let is_held = |vip: &VirtualIp| vip.network == *network && vip.address.addr().is_ipv6() == v6;
        if !endpoint.virtual_ips.iter().any(is_held) {
            let address = addresses.take(draft, spot, v6)?;
            keep(draft, network, address.addr());
            endpoint.virtual_ips.push(VirtualIp { network: network.clone(), address });
        }
    }
    Ok(())
}

/// The declared ports with every published number filled in; one that was chosen before stays.
fn ports(draft: &Draft, service: &Service) -> Result<Vec<PortConfig>, String> {
    let declared = &service.spec.endpoint.ports;
    let mut filled: Vec<PortConfig> = Vec::with_capacity(declared.len());
    for port in declared {
        let mut port = port.clone();
        if port.published == 0 && port.mode == PublishMode::Ingress {
            let same = |held: &&PortConfig| {
                (&held.name, held.protocol, held.target, held.mode)
                    == (&port.name, port.protocol, port.target, port.mode)
                    && !filled.contains(*held)
            };
            port.published = match service.endpoint.ports.iter().find(same) {
                Some(held) => held.published,
                None => free_port(draft, service, &port, &filled)?,
            };
        } else if port.published != 0
            && let Some(holder) = port_holder(draft, service, &port)
        {
            return Err(format!(
                "port '{}' is already in use by service '{}'",
                port.published, holder.spec.name
            ));
        }
        filled.push(port);
    }
    Ok(filled)
}

fn free_port(
    draft: &Draft,
    service: &Service,
    wanted: &PortConfig,
    own: &[PortConfig],
) -> Result<u16, String> {
    // What the service fixes further down its list is not free either.
    let fixed = |number: u16| {
        let same = |port: &PortConfig| port.published == number && port.protocol == wanted.protocol;
        own.iter().any(same) || service.spec.endpoint.ports.iter().any(same)
    };
    PORTS
        .into_iter()
        .find(|&number| {
            let candidate = PortConfig { published: number, ..wanted.clone() };
            !fixed(number) && port_holder(draft, service, &candidate).is_none()
        })
        .ok_or_else(|| format!("no published port is free in {}-{}", PORTS.start(), PORTS.end()))
}

/// Another service that holds this ingress port.
fn port_holder<'a>(draft: &'a Draft, service: &Service, port: &PortConfig) -> Option<&'a Arc<Service>> {
    if port.mode != PublishMode::Ingress {
        return None;
    }
    let same = |held: &PortConfig| {
        held.mode == PublishMode::Ingress
            && held.published == port.published
            && held.protocol == port.protocol
    };
    draft.state().services().find(|other| other.id != service.id && other.endpoint.ports.iter().any(same))
}

/// Gives every new task its addresses, or says why it has none.
pub(super) fn tasks(planner: &mut Planner<'_>, addresses: &mut Addresses) {
    let mut new = planner.tasks();
    new.retain(|task| task.status.state == TaskState::New && is_wanted(task));
    new.sort_by(|a, b| (a.meta.created, a.slot, &a.id).cmp(&(b.meta.created, b.slot, &b.id)));
    for task in new {
        let Some(service) = planner.state().service(&task.service).cloned() else { continue };
        let mut next = Task::clone(&task);
        next.ports.clone_from(&service.endpoint.ports);
        if !service.allocation_error.is_empty() {
            next.status.error.clone_from(&service.allocation_error);
        } else {
            match join(planner, addresses, &mut next, None) {
                Ok(()) => {
                    next.status =
                        TaskStatus::new(TaskState::Pending, planner.now.wall, "pending task scheduling");
                }
                Err(error) => next.status.error = error.to_string(),
            }
        }
        planner.put_task(next);
    }
}

/// Gives the task what it lacks of places on its networks, or nothing. Until it has a node it gets none on
/// networks whose addresses depend on that.
pub(super) fn join(
    planner: &mut Planner<'_>,
    addresses: &mut Addresses,
    task: &mut Task,
    node: Option<&NodeId>,
) -> Result<(), Exhausted> {
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut new: Vec<Attachment> = Vec::new();
    for (network, aliases) in places(planner, task)? {
        if let Some(held) = task.attachments.iter().find(|held| held.network == network) {
            attachments.push(held.clone());
            continue;
        }
        let by_node = planner.state().network(&network).is_some_and(|network| network.spec.is_by_node());
        if by_node && node.is_none() {
            continue;
        }
        let spot = Spot { network: &network, node };
        match attach(&planner.draft, addresses, spot, &aliases, planner.ids) {
            Ok(attachment) => {
                attachments.push(attachment.clone());
                new.push(attachment);
            }
            Err(error) => {
                new.iter().for_each(|attachment| addresses.give_back(attachment));
                return Err(error);
            }
        }
    }
    for attachment in &new {
        keep_all(&mut planner.draft, attachment);
    }
    task.attachments = attachments;
    Ok(())
}

/// The networks that a task is to be on, with its further names there.
fn places(planner: &Planner<'_>, task: &Task) -> Result<Vec<(NetworkId, Vec<String>)>, Exhausted> {
    let mut wanted: Vec<(NetworkId, Vec<String>)> = Vec::new();
    for target in &task.spec.networks {
        let network = planner.state().network(&target.network);
        let host = network.is_some_and(|network| network.spec.driver == NetworkDriver::Host);
        if !host && wanted.iter().all(|(id, _)| *id != target.network) {
            wanted.push((target.network.clone(), target.aliases.clone()));
        }
    }
    if has_ingress_ports(&task.ports) {
        let ingress = planner.state().ingress_network().ok_or(Exhausted::NoIngress)?;
        wanted.push((ingress.id.clone(), Vec::new()));
    }
    Ok(wanted)
}

fn keep_all(draft: &mut Draft, attachment: &Attachment) {
    for address in [Some(attachment.address), attachment.address_v6].into_iter().flatten() {
        keep(draft, &attachment.network, address.addr());
    }
}

/// What a plain container wants of a network.
#[derive(Debug, Clone, Default)]
pub(crate) struct WantedPlace {
    pub(crate) aliases: Vec<String>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) address_v6: Option<IpAddr>,
    /// A random one unless it is given.
    pub(crate) mac: Option<MacAddr>,
}

/// A place on a network, with the addresses that are asked for.
pub(crate) fn place(
    draft: &mut Draft,
    addresses: &mut Addresses,
    spot: Spot<'_>,
    wanted: &WantedPlace,
    ids: &mut shoal_model::IdGenerator,
) -> Result<Attachment, Exhausted> {
    let network = spot.network;
    let families = addresses.families(draft, spot)?;
    if let Some(stray) = wanted.address_v6.filter(|_| !families.contains(&true)) {
        return Err(Exhausted::Outside(stray));
    }
    let mut take = |wanted: Option<IpAddr>, v6: bool| match wanted {
        Some(address) => addresses.take_this(draft, spot, address),
        None => addresses.take(draft, spot, v6),
    };
    let address = take(wanted.address, false)?;
    let address_v6 = if families.contains(&true) { Some(take(wanted.address_v6, true)) } else { None };
    let address_v6 = address_v6.transpose().inspect_err(|_| addresses.free(network, address.addr()))?;
    let mac = wanted.mac.unwrap_or_else(|| MacAddr::random(ids));
    let aliases = wanted.aliases.clone();
    let attachment = Attachment { network: network.clone(), address, address_v6, mac, aliases };
    if wanted.address.is_none() {
        keep_all(draft, &attachment);
    }
    Ok(attachment)
}

fn attach(
    draft: &Draft,
    addresses: &mut Addresses,
    spot: Spot<'_>,
    aliases: &[String],
    ids: &mut shoal_model::IdGenerator,
) -> Result<Attachment, Exhausted> {
    let address = addresses.take(draft, spot, false)?;
    let families = addresses.families(draft, spot)?;
    let address_v6 = if families.contains(&true) {
        match addresses.take(draft, spot, true) {
            Ok(address) => Some(address),
            Err(error) => {
                addresses.free(spot.network, address.addr());
                return Err(error);
            }
        }
    } else {
        None
    };
    Ok(Attachment {
        network: spot.network.clone(),
        address,
        address_v6,
        mac: MacAddr::random(ids),
        aliases: aliases.to_vec(),
    })
}

/// An address as a claimant holds it: with the subnet's prefix length.
fn with_prefix(address: IpAddr, subnet: IpNet) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).unwrap_or(subnet)
}
