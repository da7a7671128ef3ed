//! What is at rest. Most of a big cluster runs as it should, and nothing follows from it whatever the
//! clocks say: a plan looks at all of it once, and goes on with the rest.

use std::collections::BTreeSet;

use shoal_model::{NodeId, Service, ServiceMode, Task, TaskId, TaskState};
use shoal_store::State;

use super::keeps_tasks;
use super::release::kept_history;
use super::update::same_ports;

/// The task runs as is wanted, or has ended and let go of its addresses.
pub(super) fn is_at_rest(task: &Task) -> bool {
    let state = task.status.state;
    match task.desired {
        TaskState::Running if task.is_done() => task.released,
        TaskState::Running => state == TaskState::Running && !task.status.draining,
        TaskState::Shutdown => task.node.is_some() && state.is_terminal() && task.released,
        _ => false,
    }
}

/// The tasks with which a plan may have something to do.
pub(super) fn moving(state: &State) -> BTreeSet<TaskId> {
    state.tasks().filter(|task| !is_at_rest(task)).map(|task| task.id.clone()).collect()
}

/// The nodes that cannot keep the tasks they have.
pub(super) fn unfit_nodes(state: &State) -> BTreeSet<NodeId> {
    state.nodes().filter(|node| !keeps_tasks(node)).map(|node| node.id.clone()).collect()
}

/// The service has exactly the tasks it declares, all of them as declared, and no more past than is to
/// be remembered; a job is done. Said of a part of those of which it is true: constraints depend on more.
pub(super) fn is_settled(state: &State, service: &Service, unfit: &BTreeSet<NodeId>) -> bool {
    let (declared, is_job) = match service.spec.mode {
        ServiceMode::Replicated { replicas } => (replicas, false),
        ServiceMode::ReplicatedJob { total, .. } => (total, true),
        ServiceMode::Global | ServiceMode::GlobalJob => return false,
    };
    let iteration = service.job.map(|job| job.iteration);
    let underway = service.update_status.as_ref().is_some_and(|status| status.state.is_underway());
    let constrained = !service.spec.task.placement.constraints.is_empty();
    if service.removing || underway || (constrained && !is_job) || !service.allocation_error.is_empty() {
        return false;
    }
    let (mut running, mut ended) = (Vec::new(), Vec::new());
    for task in state.service_tasks(&service.id) {
        if !is_at_rest(task) || task.pinned.is_some() {
            return false;
        }
        if task.desired > TaskState::Running {
            ended.push(task.slot);
        } else if is_job {
            if !task.is_done() || task.iteration != iteration {
                return false;
            }
            running.push(task.slot);
        } else if task.spec == service.spec.task
            && same_ports(&task.ports, &service.endpoint.ports)
            && task.node.as_ref().is_some_and(|node| !unfit.contains(node))
        {
            running.push(task.slot);
        } else {
            return false;
        }
    }
    running.sort_unstable();
    ended.sort_unstable();
    let history = kept_history(state, service).saturating_sub(1);
    let known = |past: &[u64]| running.binary_search(&past[0]).is_ok() && past.len() as u64 <= history;
    running.len() as u64 == declared
        && running.windows(2).all(|pair| pair[0] != pair[1])
        && ended.chunk_by(|a, b| a == b).all(known)
}

#[cfg(test)]
mod tests;
