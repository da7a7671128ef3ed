//! What is always true of the cluster, checked at every step, and what has to be remembered for that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{
    Attachment, Availability, Claim, ContainerId, EndpointId, Guest, Network, NetworkId, NetworkTable, Node,
    NodeId, Object, ObjectKey, Service, ServiceId, ServiceMode, TableVersion, Task, TaskId, TaskState,
    UpdateOrder, claims,
};
use shoal_protocol::decode;
use shoal_protocol::session::Assignments;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_store::{Event as StoreEvent, State};

use super::machine::Machine;
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
    /// Since when nodes that were silent are heard of again.
    heard_again: BTreeMap<NodeId, Duration>,
    /// Services that were ever updated by starting the new task first.
    start_first: BTreeSet<ServiceId>,
    /// Every version of a table that any manager ever sent, so that it has one meaning.
    versions: HashMap<(NetworkId, TableVersion), Arc<NetworkTable>>,
    /// The revision at which the tables were last compared with the state.
    tables_checked: u64,
    /// Addresses that were handed out while they rested, since no other was left: nodes that were down
    /// may still send there.
    woken: BTreeSet<(NetworkId, IpAddr)>,
    /// Until when backends on silent nodes were kept since too few others were left; `None`: they are.
    pub(super) spared: BTreeMap<EndpointId, Option<Duration>>,
}

pub(super) type Holders = BTreeMap<(NetworkId, IpAddr), String>;

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
                Some(ObjectKey::Node(id)) => {
                    let is_silent = |state: &State| state.node(&id).is_some_and(|node| node.is_silent());
                    if is_silent(&before) && !is_silent(&self.truth) {
                        let now = self.now();
                        self.facts.heard_again.insert(id, now);
                    }
                }
                Some(ObjectKey::Network(id)) => self.check_woken(&before, &id),
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

    /// An address that rests is handed out only when no other is left.
    fn check_woken(&mut self, before: &State, id: &NetworkId) {
        let (Some(old), Some(new)) = (before.network(id), self.truth.network(id)) else { return };
        let resting = |network: &Network| -> BTreeSet<IpAddr> {
            network.state.iter().flat_map(|state| &state.resting).map(|resting| resting.address).collect()
        };
        let holders = self.holders();
        let is_taken = |address: &IpAddr| holders.contains_key(&(id.clone(), *address));
        let woken: Vec<IpAddr> = (&resting(old) - &resting(new)).into_iter().filter(is_taken).collect();
        for address in woken {
            let pools = old.state.iter().flat_map(|state| &state.pools);
            let hosts =
                pools.filter(|pool| pool.subnet.contains(&address)).flat_map(|pool| pool.subnet.hosts());
            let held = held_on(before, id);
            let other = hosts.into_iter().find(|host| !held.contains(host) && !is_taken(host));
            self.facts.woken.insert((id.clone(), address));
            if let Some(other) = other {
                return self.violate(format!("{address}, which rests, is handed out while {other} is free"));
            }
        }
    }

    /// No slot runs two tasks, but for the moment in which a new one is to take over from an old one.
    fn check_slots(&mut self, service: &ServiceId) {
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for task in self.truth.service_tasks(service).filter(|task| task.desired <= TaskState::Running) {
            *wanted.entry(task.slot).or_default() += 1;
        }
        self.check_job(service);
        let most = if self.facts.start_first.contains(service) { 2 } else { 1 };
        if let Some((slot, count)) = wanted.into_iter().find(|(_, count)| *count > most) {
            self.violate(format!("slot {slot} of {service} has {count} tasks that are to run"));
        }
    }

    /// A job works on no more places at a time than it may, and on none twice.
    fn check_job(&mut self, id: &ServiceId) {
        let Some(service) = self.truth.service(id) else { return };
        let ServiceMode::ReplicatedJob { concurrent, total } = service.spec.mode else { return };
        let iteration = service.job.map(|job| job.iteration);
        let tasks = self.truth.service_tasks(id).filter(|task| task.iteration == iteration);
        let wanted = tasks.filter(|task| task.desired <= TaskState::Running);
        let (done, working): (Vec<_>, Vec<_>) = wanted.partition(|task| task.is_done());
        if working.len() as u64 > concurrent || (done.len() + working.len()) as u64 > total {
            let (done, working, name) = (done.len(), working.len(), service.spec.name.clone());
            self.violate(format!("{name} has done {done} and works on {working} of {total}"));
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
    pub(super) fn holders(&self) -> Holders {
        let mut holders = Holders::new();
        for (path, _) in self.store.below(State::PREFIX) {
            let object = ObjectKey::parse(path).and_then(|key| self.truth.object(&key));
            for claim in object.iter().flat_map(claims) {
                if let Claim::Address(network, address) = claim {
                    holders.insert((network, address), path.clone());
                }
            }
        }
        holders
    }

    /// No address leads to two: whatever answers on one, or is sent to on one, is its holder, and no two
    /// answer on the same.
    pub(super) fn check_addresses(&mut self) {
        let holders = self.holders();
        let (mut wrong, mut alive) = (None, Holders::new());
        for machine in &self.machines {
            if !self.is_member(machine) {
                continue;
            }
            for (path, held) in live_endpoints(machine) {
                let place = (held.network.clone(), held.address.addr());
                let holder = holders.get(&place);
                if holder != Some(&path) {
                    let address = held.address.addr();
                    let text = format!("{address} of {path}, alive on {}, is held by {holder:?}", machine.id);
                    wrong.get_or_insert(text);
                }
                if let Some(other) = alive.insert(place, path.clone()) {
                    wrong.get_or_insert(format!("{other} and {path} both live at {}", held.address.addr()));
                }
            }
            let sending = machine.kernel.iter().filter(|(network, _)| self.has_client(machine, network));
            for (network, table) in sending {
                for (endpoint, entry) in &table.endpoints {
                    let address = entry.address.addr();
                    if self.facts.woken.contains(&(network.clone(), address)) {
                        continue;
                    }
                    let holder = holders.get(&(network.clone(), address));
                    let task = ObjectKey::Task(TaskId::new(endpoint.as_str())).path();
                    let guest = ObjectKey::Guest(ContainerId::new(endpoint.as_str())).path();
                    // An address that rests is its network's.
                    let rests = Some(&ObjectKey::Network(network.clone()).path()) == holder;
                    if let Some(other) =
                        holder.filter(|holder| **holder != task && **holder != guest && !rests)
                    {
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
                let guests = manager.state.node_guests(&session.node);
                let places = guests.flat_map(|guest| guest.attachments.iter().chain(&guest.leaving));
                let mut held = tasks.flat_map(|task| &task.attachments).chain(places);
                let on_it = held.any(|held| held.network == *network);
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
        let Down::Assignments(Assignments { complete, put, remove, .. }) = message else { return };
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
        // A stop that was wanted while a node was silent did not wait for it.
        let asked = |sender: &NodeId| self.facts.heard_again.get(sender).copied() <= since;
        let awaited = |sender: &&NodeId| {
            let state = self.manager.as_ref().map(|manager| &manager.state);
            state.and_then(|state| state.node(sender)).is_some_and(|node| !node.is_silent()) && asked(sender)
        };
        if let Some(sender) = senders.iter().find(awaited).filter(|_| serves) {
            self.violate(format!("{id} is told to stop while {sender} sends to it"));
        }
    }

    /// A container is told to end. When nothing goes wrong nobody connects to it any more, but on a node
    /// that was removed by force.
    pub(super) fn check_signal(&mut self, node: usize, id: &TaskId) {
        if self.weather.calm
            && self.is_member(&self.machines[node])
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

    pub(super) fn is_member(&self, machine: &Machine) -> bool {
        self.truth.node(&machine.id).is_some()
    }

    /// Somebody on the machine may connect to what is on the network.
    pub(super) fn has_client(&self, machine: &Machine, network: &NetworkId) -> bool {
        let ingress = machine.kernel.get(network).is_some_and(|table| table.config.ingress);
        ingress
            || machine.containers.values().any(|container| {
                container.runs() && container.attachments.iter().any(|held| held.network == *network)
            })
            || machine.plains.values().any(|plain| plain.runs() && plain.is_on(network))
    }
}

/// What answers on a machine, by its key in the store.
fn live_endpoints(machine: &Machine) -> Vec<(String, &Attachment)> {
    let running = machine.containers.iter().filter(|(_, container)| container.runs());
    let tasks = running.flat_map(|(task, container)| {
        container.attachments.iter().map(|held| (ObjectKey::Task(task.clone()).path(), held))
    });
    let running = machine.plains.iter().filter(|(_, plain)| plain.runs());
    let plains = running.flat_map(|(plain, it)| {
        it.attachment.iter().map(|held| (ObjectKey::Guest(plain.clone()).path(), held))
    });
    tasks.chain(plains).collect()
}

/// Every address of a network that something holds.
fn held_on(state: &State, id: &NetworkId) -> BTreeSet<IpAddr> {
    let tasks = state.tasks().map(|task| Object::Task(Task::clone(task)));
    let guests = state.guests().map(|guest| Object::Guest(Guest::clone(guest)));
    let services = state.all_services().map(|service| Object::Service(Service::clone(service)));
    let nodes = state.nodes().map(|node| Object::Node(Node::clone(node)));
    let networks = state.networks().map(|network| Object::Network(Network::clone(network)));
    let objects = tasks.chain(guests).chain(services).chain(nodes).chain(networks);
    let claimed = objects.flat_map(|object| claims(&object)).filter_map(|claim| match claim {
        Claim::Address(network, address) if network == *id => Some(address),
        _ => None,
    });
    claimed.collect()
}

/// The session the hub's conclusions go to.
fn session_is_current(manager: &super::manager::Manager, session: &super::session::Session) -> bool {
    let current = manager.views.get(&session.node).and_then(|id| manager.sessions.get(id));
    current.is_some_and(|current| std::ptr::eq(current, session))
}
