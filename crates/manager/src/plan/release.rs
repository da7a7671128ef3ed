//! The end of things: addresses are let go of, old tasks and removed services are forgotten.

use std::sync::Arc;

use shoal_model::{ObjectKey, Task, TaskState};

use super::Planner;
use super::slots::{is_wanted, slots};

pub(super) fn plan(planner: &mut Planner<'_>) {
    for task in planner.tasks() {
        release(planner, &task);
    }
    for task in planner.tasks() {
        let never_ran = task.node.is_none() && !is_wanted(&task);
        if never_ran || (task.desired == TaskState::Remove && is_over(&task)) {
            planner.draft.remove(ObjectKey::Task(task.id.clone()));
        }
    }
    for service in planner.services() {
        if !service.removing {
            forget_history(planner, &service);
        } else if planner.state().service_tasks(&service.id).next().is_none() {
            planner.draft.remove(ObjectKey::Service(service.id.clone()));
        }
    }
}

/// An ended task's addresses may be handed out again once no node sends anything to them.
fn release(planner: &mut Planner<'_>, task: &Arc<Task>) {
    let unheld =
        task.attachments.is_empty() || task.node.is_none() || planner.observed.let_go.contains(&task.id);
    if task.status.state.is_terminal() && !task.released && unheld {
        let mut task = Task::clone(task);
        task.released = true;
        planner.put_task(task);
    }
}

fn is_over(task: &Task) -> bool {
    task.status.state.is_terminal() && task.released
}

/// Keeps the newest tasks of each slot only, as many as the cluster is told to; the newest always,
/// since a slot that ended for good must be known as such.
fn forget_history(planner: &mut Planner<'_>, service: &shoal_model::Service) {
    let kept = planner.state().cluster().map_or(5, |cluster| cluster.spec.task_history);
    let kept = match service.spec.task.restart.max_attempts {
        0 => kept,
        attempts => attempts.saturating_add(1),
    };
    for (_, slot) in slots(planner.state(), &service.id) {
        for task in slot.iter().skip(usize::try_from(kept.max(1)).unwrap_or(usize::MAX)) {
            if is_over(task) && !is_wanted(task) {
                planner.draft.remove(ObjectKey::Task(task.id.clone()));
            }
        }
    }
}
