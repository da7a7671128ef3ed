//! The typed cache: every object of the store, with the look-ups that control loops need.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync as Map;
use shoal_model::{
    Attachment, Cluster, ContainerId, Deposit, DepositId, DepositKind, Guest, Network, NetworkId, Node,
    NodeId, Object, ObjectKey, Service, ServiceId, Task, TaskId,
};

use crate::{Event, Record};

/// One immutable picture of the cluster at a revision. Cloning is O(1), so a planner works on a copy
/// of its own.
#[derive(Clone, Default)]
pub struct State {
    revision: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: Map<NodeId, Arc<Node>>,
    networks: Map<NetworkId, Arc<Network>>,
    services: Map<ServiceId, Arc<Service>>,
    tasks: Map<TaskId, Arc<Task>>,
    guests: Map<ContainerId, Arc<Guest>>,
    deposits: Map<DepositId, Arc<Deposit>>,
    by_service: Map<ServiceId, Map<TaskId, Arc<Task>>>,
    by_node: Map<NodeId, Map<TaskId, Arc<Task>>>,
    by_network: Map<NetworkId, Map<TaskId, Arc<Task>>>,
    guests_by_node: Map<NodeId, Map<ContainerId, Arc<Guest>>>,
    guests_by_network: Map<NetworkId, Map<ContainerId, Arc<Guest>>>,
    services_by_network: Map<NetworkId, Map<ServiceId, Arc<Service>>>,
    /// Lower-case names of services that are not being removed.
    service_names: Map<String, ServiceId>,
    network_names: Map<String, NetworkId>,
    /// Revision at which something that concerns a network last changed.
    network_revisions: Map<NetworkId, u64>,
    /// The same for what concerns every network.
    shared_revision: u64,
}

/// A record under `object/` that is not an object this build can read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable record {key}")]
pub struct UnreadableRecord {
    key: String,
    source: serde_json::Error,
}

impl State {
    /// The prefix under which objects are stored.
    pub const PREFIX: &'static str = "object/";

    /// A picture of everything a store listed.
    pub fn load(revision: u64, records: &[Record]) -> Result<Self, UnreadableRecord> {
        let mut state = Self::default();
        for record in records {
            state.apply_record(record)?;
        }
        state.revision = revision;
        // What was deleted before is not listed: anything may have changed.
        state.shared_revision = revision;
        Ok(state)
    }

    /// Takes over one commit.
    pub fn apply(&mut self, revision: u64, events: &[Event]) -> Result<(), UnreadableRecord> {
        for event in events {
            match event {
                Event::Put(record) => self.apply_record(record)?,
                Event::Delete { key } => {
                    if let Some(key) = ObjectKey::parse(key) {
                        self.remove_at(&key, revision);
                    }
                }
            }
        }
        self.revision = revision;
        Ok(())
    }

    fn apply_record(&mut self, record: &Record) -> Result<(), UnreadableRecord> {
        if ObjectKey::parse(&record.key).is_none() {
            return Ok(());
        }
        let mut object: Object = serde_json::from_slice(&record.value)
            .map_err(|source| UnreadableRecord { key: record.key.clone(), source })?;
        object.meta_mut().version = record.revision;
        self.put_at(object, record.revision);
        Ok(())
    }

    /// The stored form of an object.
    pub fn encode(object: &Object) -> bytes::Bytes {
        // Model objects have string keys and no failing serialisers, so this cannot fail.
        serde_json::to_vec(object).map(Into::into).unwrap_or_default()
    }

    // === changes to a working copy ===

    /// Puts an object as a planner wants it; its version stays what the planner was shown.
    pub fn put(&mut self, object: Object) {
        self.put_at(object, self.revision);
    }

    /// Removes an object.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.remove_at(key, self.revision);
    }

    fn put_at(&mut self, object: Object, revision: u64) {
        match &object {
            Object::Node(node) => self.touch_changed_node(node, revision),
            _ => self.unindex(&object.key(), revision),
        }
        match object {
            Object::Cluster(cluster) => self.cluster = Some(Arc::new(cluster)),
            Object::Node(node) => self.nodes.insert_mut(node.id.clone(), Arc::new(node)),
            Object::Network(network) => {
                self.touch(&network.id, revision);
                self.network_names.insert_mut(network.spec.name.to_lowercase(), network.id.clone());
                self.networks.insert_mut(network.id.clone(), Arc::new(network));
            }
            Object::Service(service) => {
                let service = Arc::new(service);
                if !service.removing {
                    self.service_names.insert_mut(service.spec.name.to_lowercase(), service.id.clone());
                }
                self.touch_service(&service, revision);
                for network in service_networks(&service) {
                    insert(&mut self.services_by_network, network, service.id.clone(), service.clone());
                }
                self.services.insert_mut(service.id.clone(), service);
            }
            Object::Task(task) => {
                let task = Arc::new(task);
                insert(&mut self.by_service, &task.service, task.id.clone(), task.clone());
                if let Some(node) = &task.node {
                    insert(&mut self.by_node, node, task.id.clone(), task.clone());
                }
                for attachment in &task.attachments {
                    self.touch(&attachment.network, revision);
                    insert(&mut self.by_network, &attachment.network, task.id.clone(), task.clone());
                }
                self.tasks.insert_mut(task.id.clone(), task);
            }
            Object::Guest(guest) => {
                let guest = Arc::new(guest);
                insert(&mut self.guests_by_node, &guest.node, guest.id.clone(), guest.clone());
                for attachment in places(&guest) {
                    self.touch(&attachment.network, revision);
                    let id = guest.id.clone();
                    insert(&mut self.guests_by_network, &attachment.network, id, guest.clone());
                }
                self.guests.insert_mut(guest.id.clone(), guest);
            }
            Object::Deposit(deposit) => self.deposits.insert_mut(deposit.id.clone(), Arc::new(deposit)),
        }
    }

    fn remove_at(&mut self, key: &ObjectKey, revision: u64) {
        self.unindex(key, revision);
        match key {
            ObjectKey::Cluster => self.cluster = None,
            ObjectKey::Node(id) => {
                self.nodes.remove_mut(id);
            }
            ObjectKey::Network(id) => {
                self.networks.remove_mut(id);
            }
            ObjectKey::Service(id) => {
                self.services.remove_mut(id);
            }
            ObjectKey::Task(id) => {
                self.tasks.remove_mut(id);
            }
            ObjectKey::Guest(id) => {
                self.guests.remove_mut(id);
            }
            ObjectKey::Deposit(id) => {
                self.deposits.remove_mut(id);
            }
        }
    }

    /// Takes the present version of an object out of every index and notes the networks it concerned.
    fn unindex(&mut self, key: &ObjectKey, revision: u64) {
        match key {
            ObjectKey::Cluster => self.shared_revision = revision,
            ObjectKey::Node(id) => {
                let Some(old) = self.nodes.get(id).cloned() else { return };
                self.touch_node(&old, revision);
            }
            ObjectKey::Network(id) => {
                let Some(old) = self.networks.get(id).cloned() else { return };
                self.network_names.remove_mut(&old.spec.name.to_lowercase());
                self.touch(id, revision);
            }
            ObjectKey::Service(id) => {
                let Some(old) = self.services.get(id).cloned() else { return };
                let name = old.spec.name.to_lowercase();
                if self.service_names.get(&name) == Some(id) {
                    self.service_names.remove_mut(&name);
                }
                self.touch_service(&old, revision);
                for network in service_networks(&old) {
                    delete(&mut self.services_by_network, network, id);
                }
            }
            ObjectKey::Task(id) => {
                let Some(old) = self.tasks.get(id).cloned() else { return };
                delete(&mut self.by_service, &old.service, id);
                if let Some(node) = &old.node {
                    delete(&mut self.by_node, node, id);
                }
                for attachment in &old.attachments {
                    self.touch(&attachment.network, revision);
                    delete(&mut self.by_network, &attachment.network, id);
                }
            }
            ObjectKey::Guest(id) => {
                let Some(old) = self.guests.get(id).cloned() else { return };
                delete(&mut self.guests_by_node, &old.node, id);
                for attachment in places(&old) {
                    self.touch(&attachment.network, revision);
                    delete(&mut self.guests_by_network, &attachment.network, id);
                }
            }
            // No table has anything of it.
            ObjectKey::Deposit(_) => {}
        }
    }

    /// Notes that something a network's table is derived from changed.
    fn touch(&mut self, network: &NetworkId, revision: u64) {
        self.network_revisions.insert_mut(network.clone(), revision);
    }

    fn touch_service(&mut self, service: &Service, revision: u64) {
        for network in service_networks(service) {
            self.network_revisions.insert_mut(network.clone(), revision);
        }
        // A service with ports is in the ingress table even without an address there.
        if !service.endpoint.ports.is_empty() {
            self.shared_revision = revision;
        }
    }

    /// Most changes of a node are of no concern to the networks it is on.
    fn touch_changed_node(&mut self, node: &Node, revision: u64) {
        let Some(old) = self.nodes.get(&node.id).cloned() else {
            return self.touch_node(node, revision);
        };
        let shown = |node: &Node| (node.status.condition, node.data_path_address);
        if shown(&old) != shown(node) || old.ingress != node.ingress {
            self.touch_node(&old, revision);
            self.touch_node(node, revision);
        }
    }

    /// The networks a node is on: those of its tasks and guests, and the one it has an address of its own on.
    fn touch_node(&mut self, node: &Node, revision: u64) {
        let tasks = self.by_node.get(&node.id).into_iter().flat_map(Map::values);
        let guests = self.guests_by_node.get(&node.id).into_iter().flat_map(Map::values);
        let attachments = tasks
            .flat_map(|task| &task.attachments)
            .chain(guests.flat_map(|guest| &guest.attachments))
            .chain(&node.ingress);
        let networks: BTreeSet<NetworkId> =
            attachments.map(|attachment| attachment.network.clone()).collect();
        for network in networks {
            self.touch(&network, revision);
        }
    }

    // === look-ups ===

    /// The store revision this is a picture of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Revision at which anything that a network's table is derived from last changed.
    pub fn network_revision(&self, network: &NetworkId) -> u64 {
        self.network_revisions.get(network).copied().unwrap_or_default().max(self.shared_revision)
    }

    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// By exact name, upper and lower case being the same.
    pub fn network_named(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(self.network_names.get(&name.to_lowercase())?)
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The network that carries published ports.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks().find(|network| network.spec.ingress)
    }

    /// Also a service that is being removed.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// By name, upper and lower case being the same; not a service that is being removed.
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.service_names.get(&name.to_lowercase())?)
    }

    /// The services a user sees: without those that are being removed.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter(|service| !service.removing)
    }

    /// With those that are being removed.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The services, also such that are no more, of which there are tasks.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &ServiceId> {
        self.by_service.keys()
    }

    /// The nodes, also such that are no members, that have tasks.
    pub fn nodes_with_tasks(&self) -> impl Iterator<Item = &NodeId> {
        self.by_node.keys()
    }

    pub fn service_tasks(&self, service: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_service.get(service).into_iter().flat_map(Map::values)
    }

    pub fn node_tasks(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_node.get(node).into_iter().flat_map(Map::values)
    }

    /// The tasks attached to a network, ended ones included.
    pub fn network_tasks(&self, network: &NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_network.get(network).into_iter().flat_map(Map::values)
    }

    pub fn guest(&self, id: &ContainerId) -> Option<&Arc<Guest>> {
        self.guests.get(id)
    }

    pub fn guests(&self) -> impl Iterator<Item = &Arc<Guest>> {
        self.guests.values()
    }

    pub fn node_guests(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Guest>> {
        self.guests_by_node.get(node).into_iter().flat_map(Map::values)
    }

    /// The guests on a network, those that are leaving it included.
    pub fn network_guests(&self, network: &NetworkId) -> impl Iterator<Item = &Arc<Guest>> {
        self.guests_by_network.get(network).into_iter().flat_map(Map::values)
    }

    pub fn deposit(&self, id: &DepositId) -> Option<&Arc<Deposit>> {
        self.deposits.get(id)
    }

    /// All secrets, or all configs.
    pub fn deposits(&self, kind: DepositKind) -> impl Iterator<Item = &Arc<Deposit>> {
        self.deposits.values().filter(move |deposit| deposit.spec.kind == kind)
    }

    /// The services whose tasks join a network or that have an address on it, those that are being
    /// removed included.
    pub fn network_services(&self, network: &NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_network.get(network).into_iter().flat_map(Map::values)
    }

    /// A copy of any object.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        Some(match key {
            ObjectKey::Cluster => Object::Cluster(Cluster::clone(self.cluster.as_ref()?)),
            ObjectKey::Node(id) => Object::Node(Node::clone(self.nodes.get(id)?)),
            ObjectKey::Network(id) => Object::Network(Network::clone(self.networks.get(id)?)),
            ObjectKey::Service(id) => Object::Service(Service::clone(self.services.get(id)?)),
            ObjectKey::Task(id) => Object::Task(Task::clone(self.tasks.get(id)?)),
            ObjectKey::Guest(id) => Object::Guest(Guest::clone(self.guests.get(id)?)),
            ObjectKey::Deposit(id) => Object::Deposit(Deposit::clone(self.deposits.get(id)?)),
        })
    }
}

/// Where a guest is, and where it was not long ago.
fn places(guest: &Guest) -> impl Iterator<Item = &Attachment> {
    guest.attachments.iter().chain(&guest.leaving)
}

/// Where a service has a name or an address.
fn service_networks(service: &Service) -> impl Iterator<Item = &NetworkId> {
    let joined = service.spec.task.networks.iter().map(|target| &target.network);
    joined.chain(service.endpoint.virtual_ips.iter().map(|vip| &vip.network))
}

fn insert<K: Ord + Clone, I: Ord, V>(index: &mut Map<K, Map<I, V>>, key: &K, id: I, value: V) {
    if !index.contains_key(key) {
        index.insert_mut(key.clone(), Map::new_sync());
    }
    if let Some(entries) = index.get_mut(key) {
        entries.insert_mut(id, value);
    }
}

fn delete<K: Ord + Clone, I: Ord, V>(index: &mut Map<K, Map<I, V>>, key: &K, id: &I) {
    if let Some(entries) = index.get_mut(key) {
        entries.remove_mut(id);
        if entries.is_empty() {
            index.remove_mut(key);
        }
    }
}

#[cfg(test)]
mod tests;
