//! Network tables: what discovery and balancing read, derived from the state and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use shoal_model::{
    Attachment, Driver, EndpointEntry, EndpointId, EndpointMode, Network, NetworkId, NetworkTable, Node,
    NodeCondition, NodeEntry, NodeId, Policy, PublishMode, Service, ServiceEntry, ServiceId, Shown,
    TableConfig, TableVersion, Task, TaskId,
};
use shoal_protocol::encode;
use shoal_store::State;

/// The table of one network; `None` while the network has no subnet, or does not exist. Its version is
/// the state's: who keeps tables keeps the older version while the content is the same.
pub fn derive(state: &State, id: &NetworkId) -> Option<NetworkTable> {
    let network = state.network(id)?;
    let version = TableVersion {
        epoch: state.cluster().map_or(0, |cluster| cluster.epoch),
        revision: state.revision(),
    };
    let avoided = avoided(state, id);
    let endpoints = endpoints(state, id, &avoided);
    Some(NetworkTable {
        network: id.clone(),
        version,
        config: config(state, network)?,
        services: services(state, network, &avoided),
        nodes: nodes(state, network, &endpoints),
        endpoints,
    })
}

fn config(state: &State, network: &Network) -> Option<TableConfig> {
    let allocated = network.state.as_ref()?;
    let spec = &network.spec;
    let driver = match (spec.driver.of_node(), &spec.config_from) {
        (None, _) => Driver::Overlay,
        (Some(kind), Some(_)) => Driver::Unconfigured(kind),
        // Looked at when the network was declared.
        (Some(kind), None) => kind.configure(&network.id, &spec.options, spec.internal).ok()?,
    };
    let data_path_port = state.cluster().map(|cluster| cluster.spec.data_path_port);
    Some(TableConfig {
        name: network.spec.name.clone(),
        vni: allocated.vni,
        pools: allocated.pools.clone(),
        internal: spec.internal || driver.is_internal(),
        ingress: spec.ingress,
        mtu: shoal_model::mtu(&spec.options).ok()?,
        data_path_port: data_path_port.unwrap_or_default(),
        driver,
        config_from: spec.config_from.clone(),
        shown: Shown {
            created: Some(network.meta.created),
            attachable: network.spec.attachable,
            labels: network.spec.labels.clone(),
            options: network.spec.options.clone(),
        },
    })
}

/// Serving tasks that get no new connections, because their nodes are silent.
type Avoided = BTreeSet<TaskId>;

/// A service is not left with less than half of its backends on the guess that a node is in trouble.
fn avoided(state: &State, network: &NetworkId) -> Avoided {
    if state.nodes().all(|node| node.status.condition != NodeCondition::Suspect) {
        return Avoided::new();
    }
    let mut backends: BTreeMap<&ServiceId, (usize, Vec<&TaskId>)> = BTreeMap::new();
    for task in state.network_tasks(network).filter(|task| task.is_serving()) {
        let Some(node) = reachable_node(state, task) else { continue };
        let (count, suspect) = backends.entry(&task.service).or_default();
        *count += 1;
        if node.status.condition == NodeCondition::Suspect {
            suspect.push(&task.id);
        }
    }
    let affordable = backends.into_values().filter(|(count, suspect)| suspect.len() * 2 <= *count);
    affordable.flat_map(|(_, suspect)| suspect).cloned().collect()
}

/// The node of a task, unless nothing is sent there any more.
fn reachable_node<'a>(state: &'a State, task: &Task) -> Option<&'a Arc<Node>> {
    state.node(task.node.as_ref()?).filter(|node| !node.is_down())
}

fn services(state: &State, network: &Network, avoided: &Avoided) -> BTreeMap<ServiceId, ServiceEntry> {
    let entry = |service: &Arc<Service>| {
        let entry = if network.spec.ingress {
            ingress_entry(state, network, service, avoided)
        } else {
            service_entry(state, network, service, avoided)
        };
        Some((service.id.clone(), entry?))
    };
    if network.spec.ingress {
        state.services().filter_map(entry).collect()
    } else {
        let services = state.network_services(&network.id);
        services.filter(|service| !service.removing).filter_map(entry).collect()
    }
}

fn service_entry(
    state: &State,
    network: &Network,
    service: &Service,
    avoided: &Avoided,
) -> Option<ServiceEntry> {
    let mut targets = service.spec.task.networks.iter();
    let target = targets.find(|target| target.network == network.id)?;
    let (vip, vip_v6) = virtual_ips(service, network);
    // A network that ends at the node has none.
    let has_vips = network.spec.driver.of_node().is_none();
    if has_vips && service.spec.endpoint.mode == EndpointMode::Vip && vip.is_none() {
        // Without its address it would look like one that resolves to its tasks.
        return None;
    }
    let backends = backends(state, network, service, avoided);
    Some(ServiceEntry {
        name: service.spec.name.clone(),
        aliases: target.aliases.clone(),
        vip,
        vip_v6,
        ports: Vec::new(),
        others: others(state, network, service, &backends),
        backends,
        policy: policy(service),
    })
}

/// Labels have been looked at when the service was declared; who knew less then said nothing.
fn policy(service: &Service) -> Policy {
    Policy::of(&service.spec.labels).unwrap_or_default()
}

/// On the ingress network a service is its published ports; it has no name there.
fn ingress_entry(
    state: &State,
    network: &Network,
    service: &Service,
    avoided: &Avoided,
) -> Option<ServiceEntry> {
    let published = service.endpoint.ports.iter();
    let ports: Vec<_> =
        published.filter(|port| port.mode == PublishMode::Ingress && port.published != 0).cloned().collect();
    let (vip, vip_v6) = virtual_ips(service, network);
    (!ports.is_empty()).then(|| ServiceEntry {
        name: service.spec.name.clone(),
        aliases: Vec::new(),
        vip,
        vip_v6,
        ports,
        backends: backends(state, network, service, avoided),
        others: BTreeSet::new(),
        policy: policy(service),
    })
}

fn virtual_ips(service: &Service, network: &Network) -> (Option<std::net::IpAddr>, Option<std::net::IpAddr>) {
    let held = service.endpoint.virtual_ips.iter().filter(|vip| vip.network == network.id);
    let (v6, v4): (Vec<_>, Vec<_>) = held.map(|vip| vip.address.addr()).partition(|vip| vip.is_ipv6());
    (v4.first().copied(), v6.first().copied())
}

fn backends(state: &State, network: &Network, service: &Service, avoided: &Avoided) -> BTreeSet<EndpointId> {
    let takes_connections = |task: &&Arc<Task>| {
        task.is_serving()
            && attachment(task, &network.id).is_some()
            && reachable_node(state, task).is_some()
            && !avoided.contains(&task.id)
    };
    let tasks = state.service_tasks(&service.id).filter(takes_connections);
    tasks.map(|task| EndpointId::from(&task.id)).collect()
}

/// Its tasks on the network that are not among the backends.
fn others(
    state: &State,
    network: &Network,
    service: &Service,
    backends: &BTreeSet<EndpointId>,
) -> BTreeSet<EndpointId> {
    let present = |task: &&Arc<Task>| {
        is_held(task) && attachment(task, &network.id).is_some() && reachable_node(state, task).is_some()
    };
    let tasks = state.service_tasks(&service.id).filter(present).map(|task| EndpointId::from(&task.id));
    tasks.filter(|id| !backends.contains(id)).collect()
}

fn attachment<'a>(task: &'a Task, network: &NetworkId) -> Option<&'a Attachment> {
    task.attachments.iter().find(|attachment| attachment.network == *network)
}

/// A task is on the network from its assignment until its end, but for the time its node is down: what
/// is connected to it then is to notice.
fn endpoints(state: &State, network: &NetworkId, avoided: &Avoided) -> BTreeMap<EndpointId, EndpointEntry> {
    let present =
        state.network_tasks(network).filter(|task| is_held(task) && reachable_node(state, task).is_some());
    let entry = |task: &Arc<Task>| {
        let attachment = attachment(task, network)?;
        let entry = EndpointEntry {
            node: task.node.clone()?,
            address: attachment.address,
            address_v6: attachment.address_v6,
            mac: attachment.mac,
            names: if avoided.contains(&task.id) { Vec::new() } else { names(task) },
        };
        Some((EndpointId::from(&task.id), entry))
    };
    present.filter_map(entry).chain(guests(state, network)).collect()
}

/// A plain container is on the network while it is attached, but for the time its node is down.
fn guests<'a>(
    state: &'a State,
    network: &'a NetworkId,
) -> impl Iterator<Item = (EndpointId, EndpointEntry)> + 'a {
    state.network_guests(network).filter_map(|guest| {
        let attachment = guest.attachment(network)?;
        state.node(&guest.node).filter(|node| !node.is_down())?;
        let entry = EndpointEntry {
            node: guest.node.clone(),
            address: attachment.address,
            address_v6: attachment.address_v6,
            mac: attachment.mac,
            names: guest.names(attachment),
        };
        Some((guest.endpoint(), entry))
    })
}

/// The task's addresses are in use: it has a node, and has not ended.
fn is_held(task: &Task) -> bool {
    task.node.is_some() && !task.released && !task.status.state.is_terminal()
}

/// Container name, short container id, and the host name when the user set one.
fn names(task: &Task) -> Vec<String> {
    if !task.is_serving() {
        return Vec::new();
    }
    let mut names = vec![task.name()];
    names.extend(task.status.container.as_ref().map(|container| container.id.short().to_owned()));
    let hostname = &task.spec.container.hostname;
    // A template is filled in on the node only.
    if !hostname.is_empty() && !hostname.contains("{{") && !names.contains(hostname) {
        names.push(hostname.clone());
    }
    names
}

fn nodes(
    state: &State,
    network: &Network,
    endpoints: &BTreeMap<EndpointId, EndpointEntry>,
) -> BTreeMap<NodeId, NodeEntry> {
    let present: BTreeSet<&NodeId> = endpoints.values().map(|endpoint| &endpoint.node).collect();
    let entry = |node: &Arc<Node>| {
        let own = node.ingress.as_ref().filter(|own| own.network == network.id);
        let on_network = own.is_some() || present.contains(&node.id);
        let entry = NodeEntry {
            data_path_address: node.data_path_address,
            address: own.map(|own| own.address),
            address_v6: own.and_then(|own| own.address_v6),
            addresses: own.map(|_| node.description.addresses.clone()).unwrap_or_default(),
        };
        on_network.then(|| (node.id.clone(), entry))
    };
    state.nodes().filter_map(entry).collect()
}

/// Deltas kept per table: a session that lags further behind gets a snapshot.
const DELTAS_MAX: usize = 16;

/// One version of a table, encoded at most once however many nodes it goes to.
#[derive(Debug)]
pub struct Published {
    pub table: NetworkTable,
    snapshot: OnceLock<Bytes>,
    /// The last steps, oldest first; each begins where the one before ended, the last ends here.
    deltas: VecDeque<Arc<EncodedDelta>>,
}

#[derive(Debug)]
struct EncodedDelta {
    from: TableVersion,
    bytes: Bytes,
}

impl Published {
    fn first(table: NetworkTable) -> Self {
        Self { table, snapshot: OnceLock::new(), deltas: VecDeque::new() }
    }

    fn next(&self, table: NetworkTable) -> Self {
        let delta = self.table.delta_to(&table);
        let mut deltas = self.deltas.clone();
        deltas.push_back(Arc::new(EncodedDelta { from: delta.from, bytes: encode(&delta) }));
        if deltas.len() > DELTAS_MAX {
            deltas.pop_front();
        }
        Self { table, snapshot: OnceLock::new(), deltas }
    }

    pub fn version(&self) -> TableVersion {
        self.table.version
    }

    /// The whole table.
    pub fn snapshot(&self) -> Bytes {
        self.snapshot.get_or_init(|| encode(&self.table)).clone()
    }

    /// The deltas that lead here from a version; `None` when they are not kept any more.
    pub fn deltas_from(&self, held: TableVersion) -> Option<Vec<Bytes>> {
        let start = self.deltas.iter().position(|delta| delta.from == held)?;
        Some(self.deltas.iter().skip(start).map(|delta| delta.bytes.clone()).collect())
    }
}

/// The current tables, and since which version each endpoint is out of them.
#[derive(Debug, Default)]
pub struct Tables {
    published: BTreeMap<NetworkId, Kept>,
}

#[derive(Debug)]
struct Kept {
    current: Arc<Published>,
    /// State revision the current version was checked against last.
    checked: u64,
    /// The first version of this term: an endpoint never seen in a table is out of it since then.
    first: TableVersion,
    /// First version in which clients can come upon the endpoint.
    offered: BTreeMap<EndpointId, TableVersion>,
    /// First version without the endpoint among the backends and without its names.
    withdrawn: BTreeMap<EndpointId, TableVersion>,
    /// First version without the endpoint.
    gone: BTreeMap<EndpointId, TableVersion>,
}

impl Tables {
    /// Brings every table up to the state. A removed network's table stays while tasks are on it.
    pub fn update(&mut self, state: &State) {
        for network in state.networks() {
            let kept = self.published.get(&network.id);
            if kept.is_some_and(|kept| kept.checked >= state.network_revision(&network.id)) {
                continue;
            }
            let Some(table) = derive(state, &network.id) else { continue };
            match self.published.get_mut(&network.id) {
                Some(kept) => kept.advance(table, state),
                None => {
                    self.published.insert(network.id.clone(), Kept::new(table));
                }
            }
        }
        let in_use = |id: &NetworkId| {
            state.network_tasks(id).any(|task| !task.released) || state.network_guests(id).next().is_some()
        };
        self.published.retain(|id, _| state.network(id).is_some() || in_use(id));
    }

    pub fn get(&self, network: &NetworkId) -> Option<&Arc<Published>> {
        self.published.get(network).map(|kept| &kept.current)
    }

    /// The first version in which the endpoint takes new connections; `None` while it does not.
    pub fn offered_since(&self, network: &NetworkId, endpoint: &EndpointId) -> Option<TableVersion> {
        let kept = self.published.get(network)?;
        kept.offers(endpoint).then(|| kept.offered.get(endpoint).copied().unwrap_or(kept.first))
    }

    /// The first version in which the endpoint takes no new connection; `None` while it still does.
    pub fn withdrawn_since(&self, network: &NetworkId, endpoint: &EndpointId) -> Option<TableVersion> {
        let kept = self.published.get(network)?;
        (!kept.offers(endpoint)).then(|| kept.withdrawn.get(endpoint).copied().unwrap_or(kept.first))
    }

    /// The first version without the endpoint; `None` while it is there, and for a network without a
    /// table.
    pub fn gone_since(&self, network: &NetworkId, endpoint: &EndpointId) -> Option<TableVersion> {
        let kept = self.published.get(network)?;
        let present = kept.current.table.endpoints.contains_key(endpoint);
        (!present).then(|| kept.gone.get(endpoint).copied().unwrap_or(kept.first))
    }
}

impl Kept {
    fn new(table: NetworkTable) -> Self {
        Self {
            checked: table.version.revision,
            first: table.version,
            current: Arc::new(Published::first(table)),
            offered: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    /// Clients can come upon the endpoint.
    fn offers(&self, endpoint: &EndpointId) -> bool {
        let table = &self.current.table;
        table.endpoints.get(endpoint).is_some_and(|entry| !entry.names.is_empty())
            || table.services.values().any(|service| service.backends.contains(endpoint))
    }

    fn advance(&mut self, table: NetworkTable, state: &State) {
        self.checked = table.version.revision;
        let version = table.version;
        let old = &self.current.table;
        if version.epoch != old.version.epoch {
            *self = Self::new(table);
            return;
        }
        if old.same_content(&table) {
            return;
        }
        let (before, after) = (serving(old), serving(&table));
        self.withdrawn.extend(before.difference(&after).map(|id| (id.clone(), version)));
        self.offered.extend(after.difference(&before).map(|id| (id.clone(), version)));
        for id in old.endpoints.keys().filter(|id| !table.endpoints.contains_key(*id)) {
            self.gone.insert(id.clone(), version);
        }
        if old.config == table.config {
            self.current = Arc::new(self.current.next(table));
        } else {
            // A delta carries no configuration.
            self.current = Arc::new(Published::first(table));
        }
        // Forgotten tasks and guests ask no more.
        let known = |id: &EndpointId| {
            state.task(&TaskId::new(id.as_str())).is_some()
                || state.guest(&shoal_model::ContainerId::new(id.as_str())).is_some()
        };
        self.offered.retain(|id, _| known(id));
        self.withdrawn.retain(|id, _| known(id));
        self.gone.retain(|id, _| known(id));
    }
}

/// The endpoints that clients can come upon.
fn serving(table: &NetworkTable) -> BTreeSet<EndpointId> {
    let named = table.endpoints.iter().filter(|(_, entry)| !entry.names.is_empty()).map(|(id, _)| id);
    let backends = table.services.values().flat_map(|service| &service.backends);
    named.chain(backends).cloned().collect()
}

#[cfg(test)]
mod tests;
