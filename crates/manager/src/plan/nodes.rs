//! How each node is doing, from what is heard of it, and what becomes of the tasks of lost nodes.

use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{Node, NodeCondition, NodeId, Object, Task, TaskState, TaskStatus};
use shoal_store::State;

use super::allocate::clash;
use super::{Planner, SessionView, after};

/// Heartbeats a node sends in one heartbeat period of the cluster's declaration.
const BEATS_PER_PERIOD: u32 = 5;
/// Heartbeats that may fail to come before a node is suspect.
const SUSPECT_BEATS: u32 = 3;
/// Silent heartbeat periods after which a node is down, as SwarmKit's grace multiplier.
const DOWN_PERIODS: u32 = 3;
/// Tasks of a node that is down for so long are given up, as SwarmKit's.
pub(crate) const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The time it takes to believe something of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Between two heartbeats.
    pub(crate) beat: Duration,
    /// A node silent for so long is suspect.
    pub(crate) suspect: Duration,
    /// A node silent for so long is down.
    pub(crate) down: Duration,
}

impl Patience {
    /// What the cluster declares.
    pub(crate) fn of(state: &State) -> Self {
        let period = state.cluster().map(|cluster| cluster.spec.heartbeat_period);
        let period = period.unwrap_or(Duration::from_secs(5));
        let beat = period / BEATS_PER_PERIOD;
        Self { beat, suspect: beat * SUSPECT_BEATS, down: period * DOWN_PERIODS }
    }
}

pub(super) fn plan(planner: &mut Planner<'_>) {
    let patience = Patience::of(planner.state());
    let nodes: Vec<_> = planner.state().nodes().cloned().collect();
    for node in nodes {
        let session = planner.observed.sessions.get(&node.id);
        let condition = condition(node.status.condition, session, planner.now.monotonic, patience);
        let mut next = Node::clone(&node);
        if condition != node.status.condition {
            next.status.condition = condition;
            next.status.since = planner.now.wall;
            next.status.message = message(condition, session.is_some(), patience);
        }
        if let Some(session) = session.filter(|session| session.live && condition == NodeCondition::Ready) {
            next.description = (*session.description).clone();
            next.status.message = clash(planner.state(), &next.description.routes);
            if !next.status.message.is_empty() && next.status.message != node.status.message {
                tracing::warn!(node = %node.id, message = next.status.message, "a network may not work there");
            }
        }
        if let Some(at) = next_look(condition, session, patience) {
            planner.wake_at(at);
        }
        planner.draft.put(Object::Node(next));
    }
    orphan(planner);
}

/// A node that is not heard of gets worse step by step, and is well again when it opens a session. One
/// that was not heard of in this term at all stays as it was for the whole grace: it was the manager
/// that was away.
fn condition(
    present: NodeCondition,
    session: Option<&SessionView>,
    now: Duration,
    patience: Patience,
) -> NodeCondition {
    let Some(session) = session else {
        return if now >= patience.down { NodeCondition::Down } else { present };
    };
    let silence = now.saturating_sub(session.last_heard);
    if silence >= patience.down {
        NodeCondition::Down
    } else if silence >= patience.suspect {
        present.max(NodeCondition::Suspect)
    } else if session.live {
        NodeCondition::Ready
    } else {
        present
    }
}

/// When silence alone makes the node's condition worse.
fn next_look(
    condition: NodeCondition,
    session: Option<&SessionView>,
    patience: Patience,
) -> Option<Duration> {
    match (condition, session) {
        (NodeCondition::Down, _) => None,
        (NodeCondition::Ready, Some(session)) => Some(session.last_heard + patience.suspect),
        (NodeCondition::Suspect, Some(session)) => Some(session.last_heard + patience.down),
        (NodeCondition::Ready | NodeCondition::Suspect, None) => Some(patience.down),
    }
}

fn message(condition: NodeCondition, heard_of: bool, patience: Patience) -> String {
    match condition {
        NodeCondition::Ready => String::new(),
        NodeCondition::Suspect => {
            let silence = patience.suspect.as_secs_f32();
            format!("silent for {silence} s: its tasks get no new connections")
        }
        NodeCondition::Down if heard_of => "heartbeat failure".to_owned(),
        NodeCondition::Down => "heartbeat failure for node in \"unknown\" state".to_owned(),
    }
}

/// Tasks are given up when their node is no longer a member, or has been down for too long.
fn orphan(planner: &mut Planner<'_>) {
    let busy: Vec<NodeId> = planner.state().nodes_with_tasks().cloned().collect();
    for id in busy {
        let error = match planner.state().node(&id).cloned() {
            None => "its node is no longer a member of the cluster",
            Some(node) if planner.is_lost(&node) => "its node has been down for too long",
            Some(_) => continue,
        };
        let tasks: Vec<_> = planner.state().node_tasks(&id).cloned().collect();
        for task in tasks.into_iter().filter(|task| !task.status.state.is_terminal()) {
            let mut task = Task::clone(&task);
            task.status = TaskStatus {
                error: error.to_owned(),
                container: task.status.container,
                ..TaskStatus::new(TaskState::Orphaned, planner.now.wall, "orphaned")
            };
            planner.put_task(task);
        }
    }
}

impl Planner<'_> {
    /// The node has been down for so long that nothing is kept for it any more.
    pub(super) fn is_lost(&mut self, node: &Node) -> bool {
        node.is_down() && self.is_past(lost_at(node))
    }
}

fn lost_at(node: &Node) -> Timestamp {
    after(node.status.since, ORPHAN_AFTER)
}
