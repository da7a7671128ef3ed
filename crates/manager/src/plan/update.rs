//! Rolling updates: tasks made from an older declaration are replaced, a few at a time.

use std::sync::Arc;

use shoal_model::{PortConfig, Service, Task, TaskSpec, TaskState, UpdateOrder};

use super::orchestrate::{create, want};
use super::slots::{Slot, is_wanted, slots};
use super::{Constraint, Planner, after};

pub(super) fn plan(planner: &mut Planner<'_>) {
    for service in planner.services() {
        if !service.removing && service.allocation_error.is_empty() {
            roll(planner, &service);
        }
    }
}

/// How far one slot is.
enum Progress {
    UpToDate,
    /// Its new task is not in service yet, or the pause after it has not passed.
    Underway,
    Outdated {
        runs: bool,
    },
}

fn roll(planner: &mut Planner<'_>, service: &Service) {
    let config = service.spec.update.clone().unwrap_or_default();
    let mut underway = 0;
    let mut outdated = Vec::new();
    for (number, slot) in slots(planner.state(), &service.id) {
        match progress(planner, service, &slot) {
            Progress::UpToDate => {}
            Progress::Underway => underway += 1,
            Progress::Outdated { runs } => outdated.push((runs, number, slot)),
        }
    }
    outdated.sort_by_key(|(runs, number, _)| (*runs, *number));
    let allowed = match config.parallelism {
        0 => usize::MAX,
        parallelism => (parallelism as usize).saturating_sub(underway),
    };
    for (_, number, slot) in outdated.into_iter().take(allowed) {
        replace(planner, service, number, &slot, config.order);
    }
}

fn replace(planner: &mut Planner<'_>, service: &Service, number: u64, slot: &Slot, order: UpdateOrder) {
    // One task serves on. An update before this one is over, however far it has come.
    let mut serving = slot.iter().filter(|task| task.is_serving() && order == UpdateOrder::StartFirst);
    let serving = serving.clone().find(|task| planner.is_in_service(task)).or(serving.next());
    for task in slot.iter().filter(|task| is_wanted(task) && serving.is_none_or(|kept| kept.id != task.id)) {
        want(planner, task, TaskState::Shutdown);
    }
    // After a failed attempt to replace it the restart delay is kept.
    let failed = slot.iter().find(|task| !is_wanted(task) && task.status.state.is_terminal());
    let failed = failed.filter(|task| serving.is_some() && !is_outdated(planner, service, task));
    let delay = service.spec.task.restart.delay;
    let start_after = failed.map(|task| after(task.status.timestamp, delay));
    create(planner, service, number, TaskState::Ready, start_after);
}

fn progress(planner: &mut Planner<'_>, service: &Service, slot: &Slot) -> Progress {
    let Some(newest) = slot.iter().find(|task| is_wanted(task)).or(slot.first()) else {
        return Progress::UpToDate;
    };
    if is_outdated(planner, service, newest) {
        return Progress::Outdated { runs: newest.is_serving() };
    }
    if !is_wanted(newest) {
        // Ended for good, and nothing newer is declared.
        return Progress::UpToDate;
    }
    let older: Vec<&Arc<Task>> = slot.iter().filter(|task| task.id != newest.id).collect();
    if newest.status.state < TaskState::Running || !planner.is_in_service(newest) {
        return Progress::Underway;
    }
    for task in &older {
        want(planner, task, TaskState::Shutdown);
    }
    let delay = service.spec.update.as_ref().map(|config| config.delay).unwrap_or_default();
    let updated = older.iter().any(|task| is_outdated(planner, service, task));
    if updated && !planner.is_past(after(newest.status.timestamp, delay)) {
        return Progress::Underway;
    }
    Progress::UpToDate
}

/// SwarmKit's `IsTaskDirty`: the task differs from what the service declares now.
fn is_outdated(planner: &Planner<'_>, service: &Service, task: &Task) -> bool {
    let declared = &service.spec.task;
    if !same_ports(&task.ports, &service.endpoint.ports) {
        return true;
    }
    if task.spec == *declared {
        return false;
    }
    let moved = TaskSpec { placement: declared.placement.clone(), ..task.spec.clone() };
    if moved != *declared {
        return true;
    }
    // Only the placement changed: a task whose node still fits stays.
    let constraints = Constraint::parse_all(&declared.placement.constraints).unwrap_or_default();
    let node = task.node.as_ref().and_then(|node| planner.state().node(node));
    node.is_some_and(|node| !constraints.iter().all(|constraint| constraint.holds(node)))
}

fn same_ports(a: &[PortConfig], b: &[PortConfig]) -> bool {
    a.len() == b.len() && a.iter().all(|port| b.contains(port))
}

#[cfg(test)]
mod tests;
