//! What each node is to be told, and what the nodes' acknowledgements mean. Pure; time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_model::{EndpointId, NetworkId, NodeDescription, NodeId, TableVersion, Task, TaskId, TaskState};
use shoal_protocol::encode;
use shoal_store::State;

use crate::barrier::{DrainBarrier, Verdict};
use crate::plan::{Observed, SessionView};
use crate::table::{Published, Tables};

/// Everything a node is to know now. Sessions compare it with what they have sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeView {
    pub(crate) tables: BTreeMap<NetworkId, Arc<Published>>,
    pub(crate) tasks: BTreeMap<TaskId, Arc<AssignedTask>>,
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
    acked: BTreeMap<NetworkId, TableVersion>,
    /// `None` until the first one: a node with nothing to do is told so.
    view: Option<Arc<NodeView>>,
}

#[derive(Default)]
pub(crate) struct Hub {
    tables: Tables,
    sessions: BTreeMap<NodeId, Session>,
    barrier: DrainBarrier,
    seen: BTreeMap<NodeId, SessionView>,
    /// By task: the record's version and the effective desired state it was encoded at.
    encoded: BTreeMap<TaskId, (u64, TaskState, Arc<AssignedTask>)>,
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
        self.sessions.insert(node.clone(), Session { id, acked: held, view: None });
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

    pub(crate) fn ack(&mut self, node: &NodeId, id: u64, network: NetworkId, version: TableVersion) {
        if let Some(session) = self.sessions.get_mut(node).filter(|session| session.id == id) {
            session.acked.insert(network, version);
        }
    }

    /// Draws the conclusions from the state and from everything heard.
    pub(crate) fn update(&mut self, state: &State, now: Duration) -> Outcome {
        self.tables.update(state);
        let known = |task: &TaskId| state.task(task).is_some();
        self.barrier.retain(known);
        self.encoded.retain(|task, _| known(task));
        let subscribed = self.subscriptions(state);
        let mut next_deadline: Option<Duration> = None;
        let nodes: Vec<NodeId> = self.sessions.keys().cloned().collect();
        let mut views = Vec::new();
        for node in nodes {
            let mut view = NodeView::default();
            for network in subscribed.get(&node).into_iter().flatten() {
                if let Some(table) = self.tables.get(network) {
                    view.tables.insert(network.clone(), table.clone());
                }
            }
            for task in state.node_tasks(&node) {
                let (desired, deadline) = self.effective(state, task, &subscribed, now);
                next_deadline = [next_deadline, deadline].into_iter().flatten().min();
                view.tasks.insert(task.id.clone(), self.assigned(task, desired));
            }
            if let Some(session) = self.sessions.get_mut(&node)
                && session.view.as_ref().is_none_or(|present| !present.same(&view))
            {
                let view = Arc::new(view);
                session.view = Some(view.clone());
                views.push((node, view));
            }
        }
        let let_go = self.let_go(state, &subscribed);
        Outcome { views, observed: Observed { sessions: self.seen.clone(), let_go }, next_deadline }
    }

    /// The networks each connected node is to have tables of: those its tasks are on, and the ingress
    /// network. The last task's end does not end it: the node goes on using the table it has until it
    /// acknowledges the one without the endpoint, and only then is the task's address let go of.
    fn subscriptions(&self, state: &State) -> BTreeMap<NodeId, BTreeSet<NetworkId>> {
        let ingress = state.ingress_network().map(|network| network.id.clone());
        let of = |node: &NodeId| {
            let present = state.node_tasks(node).filter(|task| !task.released);
            let networks =
                present.flat_map(|task| &task.attachments).map(|attachment| attachment.network.clone());
            networks.chain(ingress.clone()).collect()
        };
        self.sessions.keys().map(|node| (node.clone(), of(node))).collect()
    }

    /// The desired state the node is to act on now, and when to look again.
    fn effective(
        &mut self,
        state: &State,
        task: &Task,
        subscribed: &BTreeMap<NodeId, BTreeSet<NetworkId>>,
        now: Duration,
    ) -> (TaskState, Option<Duration>) {
        let Self { tables, sessions, barrier, .. } = self;
        let endpoint = EndpointId::from(&task.id);
        let acknowledged = || {
            task.attachments.iter().all(|attachment| {
                let network = &attachment.network;
                let since = tables.withdrawn_since(network, &endpoint);
                let removed = state.network(network).is_none();
                removed || since.is_some_and(|since| all_acked(sessions, subscribed, network, since))
            })
        };
        match barrier.judge(task, acknowledged, now) {
            Verdict::Pass => (task.desired, None),
            Verdict::Hold { until } => (TaskState::Running, Some(until)),
            Verdict::Expired => {
                tracing::warn!(task = %task.id, name = task.name(), "stopped without every node's acknowledgement");
                (task.desired, None)
            }
        }
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

    /// Ended tasks that no connected subscriber's tables hold any more.
    fn let_go(&self, state: &State, subscribed: &BTreeMap<NodeId, BTreeSet<NetworkId>>) -> BTreeSet<TaskId> {
        let ended = state.tasks().filter(|task| task.status.state.is_terminal() && !task.released);
        let unheld = |task: &&Arc<Task>| {
            let endpoint = EndpointId::from(&task.id);
            task.attachments.iter().all(|attachment| {
                let since = self.tables.gone_since(&attachment.network, &endpoint);
                since.is_some_and(|since| all_acked(&self.sessions, subscribed, &attachment.network, since))
            })
        };
        ended.filter(unheld).map(|task| task.id.clone()).collect()
    }
}

/// Every connected node that has the network has this version, or a later one, in force.
fn all_acked(
    sessions: &BTreeMap<NodeId, Session>,
    subscribed: &BTreeMap<NodeId, BTreeSet<NetworkId>>,
    network: &NetworkId,
    version: TableVersion,
) -> bool {
    sessions.iter().all(|(node, session)| {
        let subscribes = subscribed.get(node).is_some_and(|networks| networks.contains(network));
        !subscribes || session.acked.get(network).is_some_and(|acked| acked.covers(version))
    })
}

impl NodeView {
    fn same(&self, other: &Self) -> bool {
        self.tables.len() == other.tables.len()
            && self.tasks.len() == other.tasks.len()
            && self.tables.iter().zip(&other.tables).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
            && self.tasks.iter().zip(&other.tasks).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
    }
}
