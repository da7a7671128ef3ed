//! Which nodes are ready, from their sessions.

use std::time::Duration;

use shoal_model::{Object, TaskState, TaskStatus};

use super::Planner;

/// Silent heartbeat periods after which a node is down, as SwarmKit's grace multiplier.
const GRACE_PERIODS: u32 = 3;

pub(super) fn plan(planner: &mut Planner<'_>) {
    let period = planner.state().cluster().map(|cluster| cluster.spec.heartbeat_period);
    let grace = period.unwrap_or(Duration::from_secs(5)) * GRACE_PERIODS;
    let nodes: Vec<_> = planner.state().nodes().cloned().collect();
    for node in nodes {
        let mut next = (*node).clone();
        // A node not heard of in this term is given the grace from the term's beginning.
        let session = planner.observed.sessions.get(&node.id);
        let last_heard = session.map_or(Duration::ZERO, |session| session.last_heard);
        let down_at = last_heard + grace;
        if planner.now.monotonic >= down_at {
            next.status.ready = false;
            next.status.message = "heartbeat failure".to_owned();
        } else if let Some(session) = session.filter(|session| session.live) {
            next.status.ready = true;
            next.status.message.clear();
            next.description = (*session.description).clone();
        }
        if next.status.ready {
            planner.wake_at(down_at);
        }
        planner.draft.put(Object::Node(next));
    }
    orphan(planner);
}

/// Tasks of nodes that are no longer members are given up.
fn orphan(planner: &mut Planner<'_>) {
    for task in planner.tasks() {
        let Some(node) = &task.node else { continue };
        if planner.state().node(node).is_none() && !task.status.state.is_terminal() {
            let mut task = (*task).clone();
            task.status = TaskStatus {
                error: "its node is no longer a member of the cluster".to_owned(),
                container: task.status.container,
                ..TaskStatus::new(TaskState::Orphaned, planner.now.wall, "orphaned")
            };
            planner.put_task(task);
        }
    }
}
