//! What is always true of the cluster, checked at every step, and what has to be remembered for that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{
    Availability, EndpointId, NetworkId, NetworkTable, NodeId, ObjectKey, ServiceId, TableVersion, Task,
    TaskId, TaskState, UpdateOrder, claims,
};
use shoal_protocol::decode;
use shoal_protocol::session::Assignments;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_store::{Event as StoreEvent, State};

use super::world::World;
use crate::table::derive;

/// How long a stop may wait for acknowledgements.
const BARRIER_BOUND: Duration = Duration::from_secs(5);

/// What the invariants remember.
#[derive(Default)]
pub(super) struct Facts {
    /// When the manager was last not there.
    pub(super) manager_disturbed: Duration,
    /// Since when the manager wants tasks to stop.
    stop_wanted: BTreeMap<TaskId, Duration>,
    /// The tasks whose nodes have been told to stop them.
    told_to_stop: BTreeSet<TaskId>,
    /// Services that were ever updated by starting the new task first.
    start_first: BTreeSet<ServiceId>,
    /// Every version of a table that any manager ever sent, so that it has one meaning.
    versions: HashMap<(NetworkId, TableVersion), Arc<NetworkTable>>,
    /// The revision at which the tables were last compared with the state.
    tables_checked: u64,
}

/// How long a node that was away may still send to what is no more.
const AWAY: Duration = Duration::from_secs(5);

type Holders = BTreeMap<(NetworkId, IpAddr), String>;

impl World {
    // === the store ===

    /// A commit has been made.
    pub(super) fn check_commit(&mut self, revision: u64, events: &[StoreEvent]) {
        let before = self.truth.clone();
        self.truth.apply(revision, events).expect("what was written can be read");
        let (mut services, mut addresses) = (BTreeSet::new(), false);
        for event in events {
            let key = match event {
                StoreEvent::Put(record) => &record.key,
                StoreEvent::Delete { key } => key,
            };
            addresses |= key.starts_with("claim/addr/");
            match ObjectKey::parse(key) {
                Some(ObjectKey::Task(id)) => {
                    self.check_task(&before, &id);
                    services.extend(self.truth.task(&id).map(|task| task.service.clone()));
                }
                Some(ObjectKey::Service(id)) => {
                    let update = self.truth.service(&id).and_then(|service| service.spec.update.as_ref());
                    if update.is_some_and(|update| update.order == UpdateOrder::StartFirst) {
                        self.facts.start_first.insert(id);
                    }
                }
                _ => {}
            }
        }
        super::world::note!(self, "revision {revision}: {} keys", events.len());
        self.check_claims();
        for service in services {
            self.check_slots(&service);
        }
        if addresses {
            self.check_addresses();
        }
    }

    /// One task goes forward only, and begins only where it may.
    fn check_task(&mut self, before: &State, id: &TaskId) {
        let Some(task) = self.truth.task(id).cloned() else { return };
        let old = before.task(id);
        if let Some(old) = old {
            let back = task.status.state < old.status.state
                || task.desired < old.desired
                || (old.status.draining && !task.status.draining && !task.status.state.is_terminal())
                || (old.released && !task.released);
            if back {
                let (from, to) = ((old.status.state, old.desired), (task.status.state, task.desired));
                self.violate(format!("task {} goes back from {from:?} to {to:?}", task.name()));
            }
        }
        if task.desired > TaskState::Running && old.is_none_or(|old| old.desired <= TaskState::Running) {
            let now = self.now();
            self.facts.stop_wanted.insert(id.clone(), now);
        }
        if old.and_then(|old| old.node.as_ref()).is_none()
            && let Some(node) = &task.node
        {
            let takes = self
                .truth
                .node(node)
                .is_some_and(|node| !node.is_silent() && node.spec.availability == Availability::Active);
            if !takes {
                self.violate(format!("task {} is given to {node}, which takes none", task.name()));
            }
        }
    }

    /// No slot runs two tasks, but for the moment in which a new one is to take over from an old one.
    fn check_slots(&mut self, service: &ServiceId) {
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for task in self.truth.service_tasks(service).filter(|task| task.desired <= TaskState::Running) {
            *wanted.entry(task.slot).or_default() += 1;
        }
        let most = if self.facts.start_first.contains(service) { 2 } else { 1 };
        if let Some((slot, count)) = wanted.into_iter().find(|(_, count)| *count > most) {
            self.violate(format!("slot {slot} of {service} has {count} tasks that are to run"));
        }
    }

    /// What is claimed in the store is what the objects claim.
    fn check_claims(&mut self) {
        let mut held: BTreeMap<&str, &[u8]> =
            self.store.below("claim/").map(|(key, (_, owner))| (key.as_str(), owner.as_ref())).collect();
        let mut wrong = None;
        for (path, _) in self.store.below(State::PREFIX) {
            let object = ObjectKey::parse(path).and_then(|key| self.truth.object(&key));
            for claim in object.iter().flat_map(claims) {
                if held.remove(claim.to_string().as_str()) != Some(path.as_bytes()) {
                    wrong.get_or_insert(format!("{path} does not hold its claim {claim}"));
                }
            }
        }
        let nobodys = held.keys().next().map(|claim| format!("{claim} is claimed by nobody"));
        if let Some(what) = wrong.or(nobodys) {
            self.violate(what);
        }
    }

    // === addresses ===

    /// Who holds each address, as far as the store goes.
    fn holders(&self) -> Holders {
        let mut holders = Holders::new();
        for (path, _) in self.store.below(State::PREFIX) {
            let object = ObjectKey::parse(path).and_then(|key| self.truth.object(&key));
            for claim in object.iter().flat_map(claims) {
                if let shoal_model::Claim::Address(network, address) = claim {
                    holders.insert((network, address), path.clone());
                }
            }
        }
        holders
    }

    /// No address leads to two: whatever answers on one, or is sent to on one, is its holder.
    pub(super) fn check_addresses(&mut self) {
        let holders = self.holders();
        let mut wrong = None;
        for (number, machine) in self.machines.iter().enumerate() {
            if !self.is_member(machine) {
                continue;
            }
            for (task, container) in &machine.containers {
                let path = ObjectKey::Task(task.clone()).path();
                for held in container.attachments.iter().filter(|_| container.runs()) {
                    let holder = holders.get(&(held.network.clone(), held.address.addr()));
                    if holder != Some(&path) {
                        let address = held.address.addr();
                        let text =
                            format!("{address} of {task}, alive on {}, is held by {holder:?}", machine.id);
                        wrong.get_or_insert(text);
                    }
                }
            }
            let sending = machine.kernel.iter().filter(|(network, _)| self.has_client(machine, network));
            // A node that was away may have to be told first.
            let calm = self.now() > self.disturbed(number) + AWAY;
            for (network, table) in sending.filter(|_| calm) {
                for endpoint in table.services.values().flat_map(|service| &service.backends) {
                    let Some(entry) = table.endpoints.get(endpoint) else { continue };
                    let address = entry.address.addr();
                    let holder = holders.get(&(network.clone(), address));
                    let own = ObjectKey::Task(TaskId::new(endpoint.as_str())).path();
                    // An address that rests is its network's.
                    let rests = Some(&ObjectKey::Network(network.clone()).path()) == holder;
                    if let Some(other) = holder.filter(|holder| **holder != own && !rests) {
                        let text = format!(
                            "{} sends to {address} as {endpoint}, while it is held by {other}",
                            machine.id
                        );
                        wrong.get_or_insert(text);
                    }
                }
            }
        }
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// A container was made, started or removed.
    pub(super) fn check_containers(&mut self) {
        self.check_addresses();
    }

    // === tables ===

    /// The tables that the hub hands out are what the state says, and go to nobody else.
    pub(super) fn check_tables(&mut self) {
        let Some(manager) = &self.manager else { return };
        let revision = manager.state.revision();
        let mut wrong = None;
        let mut compared = BTreeSet::new();
        for session in manager.sessions.values() {
            let Some(view) = &session.view else { continue };
            for (network, published) in &view.tables {
                let tasks = manager.state.node_tasks(&session.node);
                let on_it = tasks.flat_map(|task| &task.attachments).any(|held| held.network == *network);
                let ingress = manager.state.ingress_network().is_some_and(|held| held.id == *network);
                if !on_it && !ingress {
                    wrong.get_or_insert(format!("{} is told of {network}", session.node));
                }
                let version = published.version();
                let key = (network.clone(), version);
                match self.facts.versions.get(&key) {
                    Some(known) if !known.same_content(&published.table) => {
                        wrong.get_or_insert(format!("{network} has two meanings at {version:?}"));
                    }
                    Some(_) => {}
                    None => drop(self.facts.versions.insert(key, Arc::new(published.table.clone()))),
                }
                let current = session_is_current(manager, session);
                if current && self.facts.tables_checked != revision && compared.insert(network.clone()) {
                    let derived = derive(&manager.state, network);
                    if derived.is_some_and(|table| !table.same_content(&published.table)) {
                        wrong.get_or_insert(format!("{network} at {version:?} is not what the state says"));
                    }
                }
            }
        }
        self.facts.tables_checked = revision;
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// What a node has after a snapshot or a delta is what was sent out under that version.
    pub(super) fn check_received(&mut self, node: usize, table: &NetworkTable) {
        let known = self.facts.versions.get(&(table.network.clone(), table.version));
        // What lies between two versions that went out may have gone out itself or not.
        if known.is_some_and(|known| !known.same_content(table)) {
            let (network, version) = (&table.network, table.version);
            self.violate(format!("node {node} holds something else than {network} at {version:?}"));
        }
    }

    // === stopping ===

    /// A frame on its way to a node: it orders no stop that somebody still connects to.
    pub(super) fn check_frame(&mut self, node: &NodeId, message: &Down) {
        let Down::Assignments(Assignments { complete, put, remove }) = message else { return };
        let put: Vec<Task> = put.iter().map(|task| decode(task).expect("a task")).collect();
        let mut stopped: Vec<TaskId> = remove.iter().map(TaskId::new).collect();
        let unwanted = put.iter().filter(|task| task.desired > TaskState::Running);
        stopped.extend(unwanted.map(|task| task.id.clone()));
        if *complete && let Some(machine) = self.machine(node) {
            let named: BTreeSet<&TaskId> = put.iter().map(|task| &task.id).collect();
            let records = machine.disk.records.keys();
            stopped.extend(records.filter(|id| !named.contains(id)).cloned());
        }
        for id in stopped {
            if self.facts.told_to_stop.insert(id.clone()) {
                self.check_order(node, &id);
            }
        }
    }

    fn check_order(&mut self, node: &NodeId, id: &TaskId) {
        let since = self.facts.stop_wanted.get(id).copied();
        if since.is_some_and(|since| self.now() >= since + BARRIER_BOUND) {
            return;
        }
        let machine = self.machine(node);
        let serves = machine.and_then(|machine| machine.containers.get(id)).is_some_and(|it| it.serves);
        let senders = self.senders_to(id);
        let awaited = |sender: &&NodeId| {
            let state = self.manager.as_ref().map(|manager| &manager.state);
            state.and_then(|state| state.node(sender)).is_some_and(|node| !node.is_silent())
        };
        if let Some(sender) = senders.iter().find(awaited).filter(|_| serves) {
            self.violate(format!("{id} is told to stop while {sender} sends to it"));
        }
    }

    /// A container is told to end. When nothing goes wrong nobody connects to it any more.
    pub(super) fn check_signal(&mut self, node: usize, id: &TaskId) {
        if self.weather.calm
            && let Some(sender) = self.senders_to(id).first()
        {
            self.violate(format!("{id} on node {node} is stopped while {sender} sends to it"));
        }
    }

    /// The nodes that have clients and send their new connections to this task.
    fn senders_to(&self, id: &TaskId) -> Vec<NodeId> {
        let endpoint = EndpointId::from(id);
        let sends = |table: &NetworkTable| {
            table.services.values().any(|service| service.backends.contains(&endpoint))
        };
        let machines = self.machines.iter().filter(|machine| machine.powered && self.is_member(machine));
        machines
            .filter(|machine| {
                machine
                    .kernel
                    .iter()
                    .any(|(network, table)| sends(table) && self.has_client(machine, network))
            })
            .map(|machine| machine.id.clone())
            .collect()
    }

    pub(super) fn is_member(&self, machine: &super::machine::Machine) -> bool {
        self.truth.node(&machine.id).is_some()
    }

    /// Somebody on the machine may connect to what is on the network.
    pub(super) fn has_client(&self, machine: &super::machine::Machine, network: &NetworkId) -> bool {
        let ingress = machine.kernel.get(network).is_some_and(|table| table.config.ingress);
        ingress
            || machine.containers.values().any(|container| {
                container.runs() && container.attachments.iter().any(|held| held.network == *network)
            })
    }
}

/// The session the hub's conclusions go to.
fn session_is_current(manager: &super::manager::Manager, session: &super::session::Session) -> bool {
    let current = manager.views.get(&session.node).and_then(|id| manager.sessions.get(id));
    current.is_some_and(|current| std::ptr::eq(current, session))
}
