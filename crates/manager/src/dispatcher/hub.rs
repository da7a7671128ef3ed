//! What each node is to be told, and what the nodes' acknowledgements mean. Pure; time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_model::{
    Availability, ContainerId, Deposit, DepositId, EndpointId, Network, NetworkId, NodeDescription, NodeId,
    TableVersion, Task, TaskId, TaskState,
};
use shoal_protocol::encode;
use shoal_store::State;

use super::knowledge::{InForce, Subscriptions, is_awaited};
use crate::barrier::{ArrivalBarrier, DrainBarrier, Verdict};
use crate::plan::{Observed, SessionView};
use crate::table::{Published, Tables};

/// Everything a node is to know now. Sessions compare it with what they have sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeView {
    pub(crate) tables: BTreeMap<NetworkId, Arc<Published>>,
    pub(crate) tasks: BTreeMap<TaskId, Arc<AssignedTask>>,
    /// What the tasks that may still have to start name; `None`: it was removed.
    pub(crate) deposits: BTreeMap<DepositId, Option<Arc<Deposit>>>,
    /// The networks that plain containers may join, on any node.
    pub(crate) catalogue: Arc<Vec<Arc<Network>>>,
    /// The node is to be sent no traffic from outside.
    pub(crate) drained: bool,
}

/// A task in the form its node gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AssignedTask {
    /// What makes the node act; its own status reports do not.
    fingerprint: Bytes,
    pub(crate) payload: Bytes,
}

/// A node's live session.
struct Session {
    id: u64,
    /// `None` until the first one: a node with nothing to do is told so.
    view: Option<Arc<NodeView>>,
}

#[derive(Default)]
pub(crate) struct Hub {
    tables: Tables,
    sessions: BTreeMap<NodeId, Session>,
    in_force: InForce,
    drain: DrainBarrier,
    arrival: ArrivalBarrier,
    seen: BTreeMap<NodeId, SessionView>,
    /// By task: the record's version and the effective desired state it was encoded at.
    encoded: BTreeMap<TaskId, (u64, TaskState, Arc<AssignedTask>)>,
    catalogue: Arc<Vec<Arc<Network>>>,
}

/// What follows from an update.
pub(crate) struct Outcome {
    /// The views that changed.
    pub(crate) views: Vec<(NodeId, Arc<NodeView>)>,
    pub(crate) observed: Observed,
    pub(crate) next_deadline: Option<Duration>,
}

impl Hub {
    /// A node opened a session; an older one of the same node counts no more.
    pub(crate) fn open(
        &mut self,
        node: &NodeId,
        id: u64,
        description: NodeDescription,
        held: BTreeMap<NetworkId, TableVersion>,
        now: Duration,
    ) {
        let view = SessionView { last_heard: now, live: true, description: Arc::new(description) };
        self.seen.insert(node.clone(), view);
        self.in_force.declare(node, held);
        self.sessions.insert(node.clone(), Session { id, view: None });
    }

    pub(crate) fn close(&mut self, node: &NodeId, id: u64) {
        if self.sessions.get(node).is_some_and(|session| session.id == id) {
            self.sessions.remove(node);
            if let Some(seen) = self.seen.get_mut(node) {
                seen.live = false;
            }
        }
    }

    pub(crate) fn heard(&mut self, node: &NodeId, id: u64, now: Duration) {
        if self.sessions.get(node).is_some_and(|session| session.id == id)
            && let Some(seen) = self.seen.get_mut(node)
        {
            seen.last_heard = now;
        }
    }

    /// What the node says of itself has changed.
    pub(crate) fn describe(&mut self, node: &NodeId, id: u64, description: NodeDescription) {
        if self.sessions.get(node).is_some_and(|session| session.id == id)
            && let Some(seen) = self.seen.get_mut(node)
        {
            seen.description = Arc::new(description);
        }
    }

    pub(crate) fn ack(&mut self, node: &NodeId, id: u64, network: NetworkId, version: TableVersion) {
        if self.sessions.get(node).is_some_and(|session| session.id == id) {
            self.in_force.ack(node, network, version);
        }
    }

    /// When every node was heard of last.
    pub(crate) fn seen(&self) -> &BTreeMap<NodeId, SessionView> {
        &self.seen
    }

    /// Draws the conclusions from the state and from everything heard.
    pub(crate) fn update(&mut self, state: &State, now: Duration) -> Outcome {
        self.tables.update(state);
        self.forget(state);
        self.refresh_catalogue(state);
        let subscribed = Subscriptions::of(state);
        let mut next_deadline: Option<Duration> = None;
        let nodes: Vec<NodeId> = self.sessions.keys().cloned().collect();
        let mut views = Vec::new();
        for node in nodes {
            let drained = state.node(&node).is_some_and(|node| node.spec.availability == Availability::Drain);
            let mut view = NodeView { catalogue: self.catalogue.clone(), drained, ..NodeView::default() };
            for network in subscribed.networks(&node) {
                if let Some(table) = self.tables.get(network) {
                    view.tables.insert(network.clone(), table.clone());
                }
            }
            for task in state.node_tasks(&node) {
                let (desired, deadline) = self.effective(state, task, &subscribed, now);
                next_deadline = [next_deadline, deadline].into_iter().flatten().min();
                view.tasks.insert(task.id.clone(), self.assigned(task, desired));
                if desired <= TaskState::Running && !task.status.state.is_terminal() {
                    view.deposits.extend(task.deposits().map(|id| (id.clone(), state.deposit(id).cloned())));
                }
            }
            if let Some(session) = self.sessions.get_mut(&node)
                && session.view.as_ref().is_none_or(|present| !present.same(&view))
            {
                let view = Arc::new(view);
                session.view = Some(view.clone());
                views.push((node, view));
            }
        }
        let (in_service, deadline) = self.in_service(state, &subscribed, now);
        next_deadline = [next_deadline, deadline].into_iter().flatten().min();
        let observed = Observed {
            sessions: self.seen.clone(),
            held_by: self.held_by(state, &subscribed),
            guests_held_by: self.guests_held_by(state, &subscribed),
            let_go: self.let_go(state, &subscribed),
            in_service,
        };
        Outcome { views, observed, next_deadline }
    }

    /// What is not in the state any more is of no interest.
    fn forget(&mut self, state: &State) {
        let task = |task: &TaskId| state.task(task).is_some();
        self.drain.retain(task);
        self.arrival.retain(task);
        self.encoded.retain(|id, _| task(id));
        let node = |node: &NodeId| state.node(node).is_some();
        self.sessions.retain(|id, _| node(id));
        self.seen.retain(|id, _| node(id));
        self.in_force.retain(node);
    }

    /// Stays the same list while it says the same.
    fn refresh_catalogue(&mut self, state: &State) {
        let attachable = |network: &&Arc<Network>| network.spec.attachable && network.state.is_some();
        let networks: Vec<_> = state.networks().filter(attachable).cloned().collect();
        let shown = |a: &Arc<Network>, b: &Arc<Network>| {
            let pools = |network: &Network| network.state.as_ref().map(|state| state.pools.clone());
            a.id == b.id && a.spec == b.spec && pools(a) == pools(b)
        };
        let same = networks.len() == self.catalogue.len()
            && networks.iter().zip(self.catalogue.iter()).all(|(a, b)| shown(a, b));
        if !same {
            self.catalogue = Arc::new(networks);
        }
    }

    /// The desired state the node is to act on now, and when to look again.
    fn effective(
        &mut self,
        state: &State,
        task: &Task,
        subscribed: &Subscriptions,
        now: Duration,
    ) -> (TaskState, Option<Duration>) {
        let Self { tables, in_force, drain, .. } = self;
        let endpoint = EndpointId::from(&task.id);
        let stale =
            || stale(state, task, subscribed, in_force, |network| tables.withdrawn_since(network, &endpoint));
        match drain.judge(task, || stale().is_empty(), now) {
            Verdict::Pass => {}
            Verdict::Hold { until } => return (TaskState::Running, Some(until)),
            Verdict::Acknowledged => {
                let nodes = unasked(state, task, subscribed);
                if !nodes.is_empty() {
                    tracing::info!(task = %task.id, name = task.name(), ?nodes, "stopped without asking silent nodes");
                }
            }
            Verdict::Expired => {
                let nodes = stale();
                tracing::warn!(task = %task.id, name = task.name(), ?nodes, "stopped without every node's acknowledgement");
            }
        }
        (task.desired, None)
    }

    fn assigned(&mut self, task: &Task, desired: TaskState) -> Arc<AssignedTask> {
        let held = self.encoded.get(&task.id);
        if let Some((version, encoded_desired, assigned)) = held
            && (*version, *encoded_desired) == (task.meta.version, desired)
        {
            return assigned.clone();
        }
        let mut sent = task.clone();
        sent.desired = desired;
        let payload = encode(&sent);
        // The node reports the status; only an end it may not know of is news to it.
        let ended = sent.status.state.is_terminal();
        sent.meta.updated = sent.meta.created;
        sent.released = false;
        sent.status = shoal_model::TaskStatus::new(
            if ended { TaskState::Complete } else { TaskState::Assigned },
            sent.meta.created,
            "",
        );
        let fingerprint = encode(&sent);
        let assigned = match held.filter(|(_, _, assigned)| assigned.fingerprint == fingerprint) {
            Some((_, _, assigned)) => assigned.clone(),
            None => Arc::new(AssignedTask { fingerprint, payload }),
        };
        self.encoded.insert(task.id.clone(), (task.meta.version, desired, assigned.clone()));
        assigned
    }

    /// The serving tasks that clients everywhere reach, and when to look again at the others.
    fn in_service(
        &mut self,
        state: &State,
        subscribed: &Subscriptions,
        now: Duration,
    ) -> (BTreeSet<TaskId>, Option<Duration>) {
        let Self { tables, in_force, arrival, .. } = self;
        let mut in_service = BTreeSet::new();
        let mut next_deadline: Option<Duration> = None;
        for task in state.tasks().filter(|task| task.is_serving()) {
            let endpoint = EndpointId::from(&task.id);
            let stale = || {
                stale(state, task, subscribed, in_force, |network| tables.offered_since(network, &endpoint))
            };
            match arrival.judge(task, || stale().is_empty(), now) {
                Verdict::Pass | Verdict::Acknowledged => {}
                Verdict::Hold { until } => {
                    next_deadline = Some(next_deadline.map_or(until, |present| present.min(until)));
                    continue;
                }
                Verdict::Expired => {
                    let nodes = stale();
                    tracing::warn!(task = %task.id, name = task.name(), ?nodes, "in service without every node's acknowledgement");
                }
            }
            in_service.insert(task.id.clone());
        }
        (in_service, next_deadline)
    }

    /// Of every ended task, the nodes whose tables may still hold its addresses: also those without a
    /// session, which serve what they had.
    fn held_by(&self, state: &State, subscribed: &Subscriptions) -> BTreeMap<TaskId, BTreeSet<NodeId>> {
        let ended = state.tasks().filter(|task| task.status.state.is_terminal() && !task.released);
        let holders = |task: &Task| {
            let endpoint = EndpointId::from(&task.id);
            let networks = task.attachments.iter().map(|attachment| &attachment.network);
            networks.flat_map(|network| self.holders(subscribed, network, &endpoint)).collect()
        };
        ended.map(|task| (task.id.clone(), holders(task))).collect()
    }

    /// The resting addresses that nodes are without which were down when the addresses were freed: they
    /// have a newer table now, or none.
    fn let_go(&self, state: &State, subscribed: &Subscriptions) -> BTreeSet<(NetworkId, IpAddr, NodeId)> {
        let mut let_go = BTreeSet::new();
        for network in state.networks() {
            let current = self.tables.get(&network.id).map(|table| table.version());
            let is_without = |node: &&NodeId, since: TableVersion| {
                let acked = self.in_force.version(node, &network.id);
                let newer = acked.is_some_and(|acked| acked.covers(since) || Some(acked) == current);
                self.sessions.contains_key(*node) && (newer || !subscribed.has(node, &network.id))
            };
            for resting in network.state.iter().flat_map(|state| &state.resting) {
                let nodes = resting.holders.iter().filter(|node| is_without(node, resting.since));
                let_go.extend(nodes.map(|node| (network.id.clone(), resting.address, node.clone())));
            }
        }
        let_go
    }

    /// The same of the places that guests left.
    fn guests_held_by(
        &self,
        state: &State,
        subscribed: &Subscriptions,
    ) -> BTreeMap<(ContainerId, NetworkId), BTreeSet<NodeId>> {
        let left = state.guests().flat_map(|guest| guest.leaving.iter().map(move |at| (guest, &at.network)));
        left.map(|(guest, network)| {
            let holders = self.holders(subscribed, network, &guest.endpoint());
            ((guest.id.clone(), network.clone()), holders)
        })
        .collect()
    }

    /// The nodes whose table of a network may still hold an endpoint.
    fn holders(
        &self,
        subscribed: &Subscriptions,
        network: &NetworkId,
        endpoint: &EndpointId,
    ) -> BTreeSet<NodeId> {
        if self.tables.get(network).is_none() {
            return BTreeSet::new();
        }
        let gone = self.tables.gone_since(network, endpoint);
        let holds = |node: &&NodeId| gone.is_none_or(|gone| !self.in_force.covers(node, network, gone));
        subscribed.nodes(network).filter(holds).cloned().collect()
    }
}

/// The nodes that a task waits for: those that have its networks, are not silent, and have not got to
/// the version in question. Every one of them, while there is no such version yet.
fn stale(
    state: &State,
    task: &Task,
    subscribed: &Subscriptions,
    in_force: &InForce,
    since: impl Fn(&NetworkId) -> Option<TableVersion>,
) -> BTreeSet<NodeId> {
    let mut stale = BTreeSet::new();
    for network in task.attachments.iter().map(|attachment| &attachment.network) {
        if state.network(network).is_none() {
            continue;
        }
        let since = since(network);
        let is_stale = |node: &&NodeId| {
            is_awaited(state, node) && since.is_none_or(|since| !in_force.covers(node, network, since))
        };
        stale.extend(subscribed.nodes(network).filter(is_stale).cloned());
    }
    stale
}

/// The nodes that nobody waits for.
fn unasked<'a>(state: &State, task: &'a Task, subscribed: &'a Subscriptions) -> BTreeSet<&'a NodeId> {
    let networks = task.attachments.iter().map(|attachment| &attachment.network);
    networks.flat_map(|network| subscribed.nodes(network)).filter(|node| !is_awaited(state, node)).collect()
}

impl NodeView {
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.catalogue, &other.catalogue)
            && self.drained == other.drained
            && self.tables.len() == other.tables.len()
            && self.tasks.len() == other.tasks.len()
            && self.same_deposits(other)
            && self.tables.iter().zip(&other.tables).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
            && self.tasks.iter().zip(&other.tasks).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
    }

    /// A deposit's value never changes: it is there or not.
    fn same_deposits(&self, other: &Self) -> bool {
        let known = |view: &Self| -> Vec<_> {
            view.deposits.iter().map(|(id, deposit)| (id.clone(), deposit.is_some())).collect()
        };
        self.deposits.len() == other.deposits.len() && known(self) == known(other)
    }
}

#[cfg(test)]
mod tests;
