//! Rolling updates: tasks made from an older declaration are replaced, a few at a time.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::{Place, PortConfig, Service, Task, TaskSpec, TaskState, UpdateConfig, UpdateOrder};

use super::orchestrate::{create, want};
use super::slots::{Slot, is_wanted, slots};
use super::{Constraint, Planner, after, global};

pub(super) fn plan(planner: &mut Planner<'_>) {
    for service in planner.services() {
        // A changed job is executed anew instead.
        let rolls = !service.spec.mode.is_job();
        if rolls && !service.removing && service.allocation_error.is_empty() {
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

/// The slots of a service in an update.
#[derive(Default)]
struct Survey {
    slots: BTreeMap<Place, Slot>,
    underway: Vec<Place>,
    /// Those that do not serve anyway first.
    outdated: Vec<Place>,
}

fn roll(planner: &mut Planner<'_>, service: &Arc<Service>) {
    let config = config_of(service);
    let survey = survey(planner, service, &config);
    // Another declaration, or none to follow now, is another plan's matter.
    let Some(failed) = status::follow(planner, service, &config, &survey) else { return };
    // A slot whose new task failed has had its turn: the failure action lets the update go on.
    let underway = survey.underway.iter().filter(|place| !failed.contains(place)).count();
    let allowed = match config.parallelism {
        0 => usize::MAX,
        parallelism => (parallelism as usize).saturating_sub(underway),
    };
    for place in survey.outdated.iter().take(allowed) {
        replace(planner, service, place, &survey.slots[place], config.order);
    }
}

/// How the service wants to be updated, or to be led back.
fn config_of(service: &Service) -> UpdateConfig {
    let back = service.update_status.as_ref().is_some_and(|status| status.state.is_rollback());
    let config = if back { &service.spec.rollback } else { &service.spec.update };
    config.clone().unwrap_or_default()
}

fn survey(planner: &mut Planner<'_>, service: &Service, config: &UpdateConfig) -> Survey {
    let mut survey = Survey { slots: slots(planner.state(), &service.id), ..Survey::default() };
    let mut outdated = Vec::new();
    for (place, slot) in &survey.slots {
        if !global::may_have(planner, service, place) {
            continue;
        }
        match progress(planner, service, config, slot) {
            Progress::UpToDate => {}
            Progress::Underway => survey.underway.push(place.clone()),
            Progress::Outdated { runs } => outdated.push((runs, place.clone())),
        }
    }
    outdated.sort_unstable();
    survey.outdated = outdated.into_iter().map(|(_, place)| place).collect();
    survey
}

fn replace(planner: &mut Planner<'_>, service: &Service, place: &Place, slot: &Slot, order: UpdateOrder) {
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
    create(planner, service, place, TaskState::Ready, start_after);
}

fn progress(planner: &mut Planner<'_>, service: &Service, config: &UpdateConfig, slot: &Slot) -> Progress {
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
    let updated = older.iter().any(|task| is_outdated(planner, service, task));
    if updated && !planner.is_past(after(newest.status.timestamp, config.delay)) {
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

pub(super) fn same_ports(a: &[PortConfig], b: &[PortConfig]) -> bool {
    a.len() == b.len() && a.iter().all(|port| b.contains(port))
}

#[cfg(test)]
mod tests;
