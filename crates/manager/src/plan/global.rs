//! Global services: a task on every node that may have one.

use std::sync::Arc;

use shoal_model::{Availability, Node, Place, Service, TaskState};

use super::orchestrate::{create, want};
use super::slots::{Slot, is_wanted, slots};
use super::{Constraint, Planner, schedule};

/// Gives nodes that came, or became fit, their task; ends those on nodes that are not asked for any more.
pub(super) fn spread(planner: &mut Planner<'_>, service: &Service) {
    let slots = slots(planner.state(), &service.id);
    let nodes: Vec<Arc<Node>> = planner.state().nodes().cloned().collect();
    for node in nodes {
        let place = Place::Node(node.id.clone());
        if may_have(planner, service, &place) && slots.get(&place).is_none_or(lacks_a_task) {
            create(planner, service, &place, TaskState::Running, None);
        }
    }
    for (place, slot) in &slots {
        let Place::Node(node) = place else { continue };
        let desired = match planner.state().node(node) {
            None => TaskState::Remove,
            Some(node) if !is_asked_for(service, node) => TaskState::Shutdown,
            Some(_) => continue,
        };
        for task in slot {
            want(planner, task, desired);
        }
    }
}

/// The cluster stopped the last one. Whether one that ended by itself is replaced, its restart policy
/// says.
pub(super) fn lacks_a_task(slot: &Slot) -> bool {
    let own = |state| matches!(state, TaskState::Complete | TaskState::Failed | TaskState::Rejected);
    !slot.iter().any(|task| is_wanted(task)) && slot.first().is_none_or(|task| !own(task.status.state))
}

/// Whether there is to be a task in this place: in a slot always, on a node when it takes tasks and is
/// one that the service asks for.
pub(super) fn may_have(planner: &Planner<'_>, service: &Service, place: &Place) -> bool {
    let Place::Node(node) = place else { return true };
    if !service.spec.mode.is_global() {
        return false;
    }
    // One that has a task already keeps it, should it say nothing of a configuration any more.
    let configurations = schedule::configurations(planner.state(), &service.spec.task);
    let takes_tasks = |node: &Node| {
        let has = |name: &String| node.description.configurations.contains_key(name);
        !node.is_down() && node.spec.availability == Availability::Active && configurations.iter().all(has)
    };
    planner.state().node(node).is_some_and(|node| takes_tasks(node) && is_asked_for(service, node))
}

/// The node is one of those that the service is to be on.
fn is_asked_for(service: &Service, node: &Node) -> bool {
    let placement = &service.spec.task.placement;
    let constraints = Constraint::parse_all(&placement.constraints).unwrap_or_default();
    constraints.iter().all(|constraint| constraint.holds(node)) && schedule::is_platform(placement, node)
}

#[cfg(test)]
mod tests;
