//! A plain container's networks: asked for before it starts, given back when it has ended.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use shoal_model::IdGenerator;
use shoal_model::{
    Attachment, ContainerId, EndpointId, Healthcheck, MacAddr, NetworkId, PlaceAnswer, RefusalReason,
    TableConfig,
};
use shoal_runtime::Image;
use tokio::sync::watch;

use super::keeper::Shown;
use super::record::{NetworkMode, Place, PlainRecord};
use crate::host_ports::Binding;
use crate::local::{DEFAULT, LocalNetwork, Wanted};
use crate::node::Node;
use crate::{Error, Result, health, prepare, sandbox};

/// Tables that are needed come into force within this time.
const TABLES_BOUND: std::time::Duration = std::time::Duration::from_secs(15);

/// Finds out which network of this node a place means, if it means one.
pub(crate) fn resolve(node: &Node, place: &mut Place) {
    let network = node.locals.find(&place.network).and_then(|id| node.locals.get(&id));
    if let Some(network) = network {
        place.network.clone_from(&network.config.name);
        place.local = Some(Box::new(network));
    }
}

/// The place of a container that names no network.
pub(crate) async fn default_place(node: &std::sync::Arc<Node>) -> Result<Place> {
    node.locals.default_network(node).await?;
    let mut place = Place { network: DEFAULT.to_owned(), ..Place::default() };
    resolve(node, &mut place);
    Ok(place)
}

/// Gets the container its places, and waits until their networks are in force here. What it has already, it
/// keeps.
pub(super) async fn attach(node: &Node, record: &PlainRecord) -> Result<Vec<Attachment>> {
    let mut given = of_cluster(node, record).await?.into_iter();
    let mut attachments = Vec::with_capacity(record.spec.places.len());
    for (index, place) in record.spec.places.iter().enumerate() {
        let attachment = match &place.local {
            Some(network) => of_node(node, record, network, place, record.attachments.get(index))?,
            None => given.next().ok_or_else(|| Error::NoManager(place.network.clone()))?,
        };
        attachments.push(attachment);
    }
    let endpoint = EndpointId::new(record.id.as_str());
    let networks: Vec<_> = attachments.iter().map(|attachment| attachment.network.clone()).collect();
    let ready = tokio::time::timeout(TABLES_BOUND, node.tables.ready(&endpoint, &networks)).await;
    let first = || record.spec.places.first().map(|place| place.network.clone()).unwrap_or_default();
    ready.map_err(|_| match node.tables.obstacle(networks.iter()) {
        Some(obstacle) => Error::NetworkRefused(obstacle),
        None => Error::NotInForce(first()),
    })?;
    Ok(attachments)
}

/// The container's places on the cluster's networks, as the manager gives them.
async fn of_cluster(node: &Node, record: &PlainRecord) -> Result<Vec<Attachment>> {
    let request = record.request();
    let Some(first) = request.places.first().map(|place| place.network.clone()) else {
        return Ok(Vec::new());
    };
    if node.membership().is_none() {
        return Err(Error::NoSuchNetwork(first));
    }
    let names: Vec<String> = request.places.iter().map(|place| place.network.clone()).collect();
    let Some(answers) = node.guests.ask(request).await else { return Err(Error::NoManager(first)) };
    let answered = names.into_iter().zip(answers).map(|(network, answer)| match answer {
        PlaceAnswer::Attached(attachment) => Ok(attachment),
        PlaceAnswer::Refused(refusal) => Err(Error::NotAttached { network, refusal }),
    });
    answered.collect()
}

/// Its place on a network of this node alone.
fn of_node(
    node: &Node,
    record: &PlainRecord,
    network: &LocalNetwork,
    place: &Place,
    held: Option<&Attachment>,
) -> Result<Attachment> {
    let wanted = Wanted {
        endpoint: EndpointId::new(record.id.as_str()),
        names: record.names(&place.aliases),
        aliases: &place.aliases,
        address: place.address,
        address_v6: place.address_v6,
        mac: place.mac,
        held,
    };
    node.locals.attach(node, &network.id, wanted).map_err(|error| match error {
        Error::NoSuchNetwork(_) => Error::NoSuchNetwork(place.network.clone()),
        error => error,
    })
}

/// What a running container has on networks of this node is its own again, and so are its names. For a record
/// of a store that was lost the kernel says what it has.
pub(super) async fn reclaim(node: &Node, record: &PlainRecord) -> Vec<Attachment> {
    let links = match node.fabric.sandbox(record.id.as_str()).await {
        Ok(sandbox) => sandbox.map(|sandbox| sandbox.links).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let mut held = record.attachments.clone();
    for (index, place) in record.spec.places.iter().enumerate() {
        let Some(network) = &place.local else { continue };
        let seen = || {
            let link = links.iter().find(|link| link.network.as_ref() == Some(&network.id))?;
            Some(Attachment {
                network: network.id.clone(),
                address: link.address?,
                address_v6: link.address_v6,
                mac: place.mac.unwrap_or_else(|| MacAddr::random(&mut IdGenerator::from_os())),
                aliases: place.aliases.clone(),
            })
        };
        let Some(own) = held.get(index).cloned().or_else(seen) else { continue };
        match of_node(node, record, network, place, Some(&own)) {
            Ok(attachment) if index == held.len() => held.push(attachment),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(container = %record.id, network = place.network, %error, "a place is lost");
            }
        }
    }
    held
}

/// Keeps the container's ports from everybody else.
pub(super) fn reserve_ports(node: &Node, record: &PlainRecord) -> Result<Vec<Binding>> {
    let (wanted, mesh) = (record.spec.ports.iter().cloned(), node.tables.published());
    let taken = node.host_ports.reserve(record.id.as_str(), wanted, &record.bindings, &mesh);
    taken.map_err(|error| match error {
        Error::PortTaken { protocol, port } => {
            let is_it = |wanted: &&Binding| (wanted.port.protocol, wanted.port.published) == (protocol, port);
            let address = record.spec.ports.iter().find(is_it).and_then(|wanted| wanted.address);
            Error::PortAllocated { address: address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port }
        }
        error => error,
    })
}

/// Leads them to its sandbox.
pub(super) async fn lead_ports(node: &Node, record: &PlainRecord) -> Result<()> {
    if record.bindings.is_empty() {
        return Ok(());
    }
    let addresses = ways_in(node, record).await?;
    node.host_ports.lead(node, record.id.as_str(), addresses).await
}

/// The same of one that has run since before this process.
pub(super) async fn resume_ports(node: &Node, record: &PlainRecord) {
    if !record.bindings.is_empty() {
        let addresses = ways_in(node, record).await.unwrap_or_default();
        node.host_ports.resume(record.id.as_str(), &record.bindings, addresses);
    }
}

/// The ports that a container has had since before this process, whose store was lost: of those that the node
/// chose the kernel says the numbers.
pub(super) async fn former_ports(node: &Node, record: &PlainRecord) -> Vec<Binding> {
    let addresses = ways_in(node, record).await.unwrap_or_default();
    let led = node.balancer.read_back().map(|kernel| kernel.ports).unwrap_or_default();
    let known = record.spec.ports.iter().filter_map(|wanted| {
        let mut held = wanted.clone();
        if held.port.published == 0 || held.upto.is_some() {
            let (protocol, target) = (held.port.protocol, held.port.target);
            let leads_here =
                |backend: &SocketAddr| backend.port() == target && addresses.contains(&backend.ip());
            let found = led
                .iter()
                .find(|(key, port)| key.protocol == protocol && port.backends.members.iter().any(leads_here));
            held.port.published = found?.0.port;
            held.upto = None;
        }
        Some(held)
    });
    known.collect()
}

async fn ways_in(node: &Node, record: &PlainRecord) -> Result<Vec<IpAddr>> {
    let sandbox = node.fabric.sandbox(record.id.as_str()).await?;
    Ok(sandbox.map(|sandbox| prepare::way_in(node, record.tenant(), &sandbox)).unwrap_or_default())
}

/// The networks that the container is on, as they are in force.
pub(super) fn joined(node: &Node, record: &PlainRecord) -> Vec<(NetworkId, TableConfig)> {
    let tables = node.tables.in_force().borrow().clone();
    let joined = record.attachments.iter().filter_map(|at| tables.get(&at.network));
    joined.map(|table| (table.network.clone(), table.config.clone())).collect()
}

pub(super) fn detach(node: &Node, id: &ContainerId) {
    node.guests.withdraw(id);
    node.locals.detach(node, &EndpointId::new(id.as_str()), None);
}

/// Makes the sandbox, and brings the container's files in line with it. Returns the health check in
/// force.
pub(super) async fn furnish(node: &Node, record: &PlainRecord) -> Result<Option<Healthcheck>> {
    let image = node.runtime.image(&record.spec.container.image).await.ok();
    let (hosts, resolv_conf) = surround(node, record).await?;
    node.runtime.renew(&record.id, hosts, resolv_conf).await?;
    Ok(check(record, image.as_ref()))
}

/// Makes the sandbox, or brings it in line with the record; returns what its hosts and resolv.conf files are
/// to say.
pub(super) async fn surround(node: &Node, record: &PlainRecord) -> Result<(String, String)> {
    let spec = &record.spec.container;
    match (record.spec.network, &record.spec.shares) {
        (NetworkMode::Host, _) => return prepare::names_of_node(node, spec).await,
        (NetworkMode::Container, Some(other)) => return surroundings_of(node, other).await,
        _ => {}
    }
    let file = prepare::resolv_conf(node, &spec.dns).await?;
    let made = prepare::make_sandbox(node, record.tenant(), &file).await?;
    let own = prepare::node_address(node, record.tenant(), &made);
    let hosts = hosts(record, prepare::gateway_address(&made), own);
    let resolv_conf = match prepare::has_resolver(node, record.tenant()) {
        true => file.text,
        false => prepare::default_resolv_conf(node, &spec.dns).await?,
    };
    Ok((hosts, resolv_conf))
}

/// What another container, which must run, has in its files.
async fn surroundings_of(node: &Node, other: &str) -> Result<(String, String)> {
    let other = node.runtime.container(&ContainerId::new(other)).await?;
    if !matches!(other.state, shoal_runtime::ContainerState::Running { .. }) {
        return Err(Error::OtherNotRunning(other.config.id.to_string()));
    }
    let read = |name: &str| std::fs::read_to_string(other.dir.join(name)).unwrap_or_default();
    Ok((read("hosts"), read("resolv.conf")))
}

/// Takes over the sandbox of a running container, once its networks are in force.
pub(super) async fn adopt(node: &Node, record: &PlainRecord) -> Result<Option<Healthcheck>> {
    let networks: Vec<_> = record.attachments.iter().map(|attachment| attachment.network.clone()).collect();
    // Without an end: a manager that is away may come back.
    node.tables.ready(&EndpointId::new(record.id.as_str()), &networks).await;
    if record.left {
        // Its sandbox is what is left of it: no interface is to be made again.
        serve_none(node, record).await?;
    } else if record.has_sandbox() {
        let file = prepare::resolv_conf(node, &record.spec.container.dns).await?;
        prepare::make_sandbox(node, record.tenant(), &file).await?;
    }
    // The image may be gone; its check then ended with the former process.
    let image = node.runtime.image(&record.spec.container.image).await.ok();
    Ok(check(record, image.as_ref()))
}

/// The container's names are those of no network any more.
pub(super) async fn serve_none(node: &Node, record: &PlainRecord) -> Result<()> {
    let file = prepare::resolv_conf(node, &record.spec.container.dns).await?;
    prepare::serve(node, record.tenant(), &netns(node, &record.id), &file).await
}

fn netns(node: &Node, id: &ContainerId) -> PathBuf {
    node.config.run_dir.join("netns").join(id.as_str())
}

/// Returns when the manager says that the container cannot have what it has.
pub(super) async fn evicted(node: &Node, shown: watch::Receiver<Shown>) {
    let mut answers = node.guests.answers();
    loop {
        let lost = {
            let answers = answers.borrow_and_update();
            let shown = shown.borrow();
            let places = answers.places.get(&shown.record.id);
            let held = shown.record.on_cluster();
            places.is_some_and(|places| {
                places.iter().zip(held).any(|(place, held)| match place {
                    PlaceAnswer::Attached(given) => {
                        given.network == held.network
                            && (given.address != held.address || given.mac != held.mac)
                    }
                    // What cannot be said now is no answer.
                    PlaceAnswer::Refused(refusal) => refusal.reason != RefusalReason::Unavailable,
                })
            })
        };
        if lost {
            return;
        }
        if answers.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn check(record: &PlainRecord, image: Option<&Image>) -> Option<Healthcheck> {
    let inherited = image.and_then(|image| image.config.healthcheck.as_ref());
    health::effective(record.spec.container.healthcheck.as_ref(), inherited)
}

/// `/etc/hosts` of a container with a sandbox.
fn hosts(record: &PlainRecord, gateway: Option<IpAddr>, node: Option<IpAddr>) -> String {
    let hostname = sandbox::hostname(&record.spec.container, record.id.short());
    sandbox::hosts(record.tenant(), &hostname, gateway, node)
}
