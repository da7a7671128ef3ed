//! Jobs: tasks that are to come to an end. One that failed is replaced in its place as its restart policy
//! says; one that has done its work stays as it is until the job is executed anew. A task of the execution
//! before in the same place has stopped, or its time is up, before the next one starts.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::{Node, Place, Service, Task, TaskState};

use super::Planner;
use super::global::{lacks_a_task, may_have};
use super::orchestrate::{create, want};
use super::slots::{Slot, is_wanted, slots};

/// Another execution has begun: of the one before, what still runs is ended, the rest is its past.
pub(super) fn end_former(planner: &mut Planner<'_>, service: &Service) {
    let Some(job) = service.job else { return };
    let former = |task: &&Arc<Task>| task.iteration != Some(job.iteration);
    let tasks: Vec<_> = planner.state().service_tasks(&service.id).filter(former).cloned().collect();
    for task in &tasks {
        let over = task.status.state.is_terminal();
        want(planner, task, if over { TaskState::Shutdown } else { TaskState::Remove });
    }
}

/// Begins with as many of the places that are left as may be worked on at a time. A place whose task failed
/// for good stays as it is: the job does not come to its end.
pub(super) fn fill(planner: &mut Planner<'_>, service: &Service, concurrent: u64, total: u64) {
    let present = of_this_execution(planner, service);
    let works = |slot: &&Slot| slot.iter().any(|task| is_wanted(task) && !task.is_done());
    let working = present.values().filter(works).count() as u64;
    let left = (0..total).map(Place::Slot).filter(|place| !present.contains_key(place));
    for place in left.take(concurrent.saturating_sub(working) as usize) {
        create(planner, service, &place, TaskState::Ready, None);
    }
}

/// Gives a task to every node that was there when the execution began.
pub(super) fn spread(planner: &mut Planner<'_>, service: &Service) {
    let Some(job) = service.job else { return };
    let present = of_this_execution(planner, service);
    let was_there = |node: &&Arc<Node>| node.meta.created <= job.begun;
    let nodes: Vec<Arc<Node>> = planner.state().nodes().filter(was_there).cloned().collect();
    for node in nodes {
        let place = Place::Node(node.id.clone());
        if may_have(planner, service, &place) && present.get(&place).is_none_or(lacks_a_task) {
            create(planner, service, &place, TaskState::Ready, None);
        }
    }
}

/// The places that were worked on in this execution.
fn of_this_execution(planner: &Planner<'_>, service: &Service) -> BTreeMap<Place, Slot> {
    let iteration = service.job.map(|job| job.iteration);
    let mut slots = slots(planner.state(), &service.id);
    for slot in slots.values_mut() {
        slot.retain(|task| task.iteration == iteration);
    }
    slots.retain(|_, slot| !slot.is_empty());
    slots
}

#[cfg(test)]
mod tests;
