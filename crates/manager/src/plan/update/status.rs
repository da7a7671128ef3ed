//! What an update says of itself, and what it does about tasks that fail.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{
    Object, Place, Service, ServiceSpec, Task, TaskState, UpdateConfig, UpdateFailureAction, UpdateState,
    UpdateStatus,
};

use super::{Survey, is_outdated};
use crate::plan::{Planner, after};

/// Brings the status of a service's update up to date. Returns the slots that failed in it, or `None`
/// when nothing more is to be replaced now.
pub(super) fn follow(
    planner: &mut Planner<'_>,
    service: &Arc<Service>,
    config: &UpdateConfig,
    survey: &Survey,
) -> Option<BTreeSet<Place>> {
    let Some(mut status) = current(planner, service, survey) else { return Some(BTreeSet::new()) };
    if status.state.is_paused() {
        return None;
    }
    if status.state.is_underway() {
        if let Some(task) = fails(planner, service, config, survey, &mut status) {
            act(planner, service, config, status, &task);
            return None;
        }
        if is_complete(planner, service, config, survey, &status) {
            complete(planner, &mut status);
        }
    }
    let failed = status.failed.clone();
    put(planner, service, Some(status));
    Some(failed)
}

/// The status of the update that goes on, or has just begun.
fn current(planner: &Planner<'_>, service: &Service, survey: &Survey) -> Option<UpdateStatus> {
    let began = || {
        (!survey.outdated.is_empty())
            .then(|| UpdateStatus::begin(UpdateState::Updating, planner.now.wall, "update in progress"))
    };
    let mut status = service.update_status.clone().or_else(began)?;
    if status.total == 0 {
        status.total = survey.outdated.len() as u64;
    }
    Some(status)
}

/// Notes the slots whose new tasks failed while they were watched; returns a task that makes them too
/// many. One that ended by itself has failed, too, as in SwarmKit.
fn fails(
    planner: &Planner<'_>,
    service: &Service,
    config: &UpdateConfig,
    survey: &Survey,
    status: &mut UpdateStatus,
) -> Option<Arc<Task>> {
    let mut last = None;
    for (place, slot) in &survey.slots {
        let failed = |task: &&Arc<Task>| {
            task.meta.created >= status.started
                && !is_outdated(planner, service, task)
                && ended_early(task, config.monitor)
        };
        if let Some(task) = slot.iter().find(failed).cloned()
            && status.failed.insert(place.clone())
        {
            last = Some(task);
        }
    }
    let share = status.failed.len() as f32 / status.total.max(1) as f32;
    last.filter(|_| share > config.max_failure_ratio)
}

fn ended_early(task: &Task, monitor: Duration) -> bool {
    let ended = matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected);
    let watched = task.running_since.is_none_or(|since| task.status.timestamp <= after(since, monitor));
    ended && watched
}

/// What the service wants done when an update fails.
fn act(
    planner: &mut Planner<'_>,
    service: &Service,
    config: &UpdateConfig,
    mut status: UpdateStatus,
    task: &Task,
) {
    let mut because = format!("due to failure or early termination of task {}", task.id);
    let back = status.state.is_rollback();
    let gone = service.previous.as_deref().and_then(|previous| what_is_gone(planner, previous));
    match (config.failure_action, &service.previous) {
        (UpdateFailureAction::Continue, _) => put(planner, service, Some(status)),
        // There is only one way back.
        (UpdateFailureAction::Rollback, Some(previous)) if !back && gone.is_none() => {
            let mut service = Service::clone(service);
            service.spec = ServiceSpec::clone(previous);
            service.previous = None;
            let message = format!("update rolled back {because}");
            let status = UpdateStatus::begin(UpdateState::RollbackStarted, planner.now.wall, message);
            put(planner, &service, Some(status));
        }
        (action, _) => {
            if let (UpdateFailureAction::Rollback, false, Some(gone)) = (action, back, gone) {
                because.push_str(&format!("; there is no way back, since {gone} was removed"));
            }
            let (state, what) = match back {
                true => (UpdateState::RollbackPaused, "rollback paused"),
                false => (UpdateState::Paused, "update paused"),
            };
            status.state = state;
            status.message = format!("{what} {because}");
            put(planner, service, Some(status));
        }
    }
}

/// Something that a former declaration names and that has been removed since. What names it cannot be stored,
/// and a plan that cannot be stored holds up all others.
fn what_is_gone(planner: &Planner<'_>, spec: &ServiceSpec) -> Option<String> {
    let state = planner.state();
    let mut networks = spec.task.networks.iter().map(|target| &target.network);
    let network = networks.find(|network| state.network(network).is_none());
    let mut deposits = spec.task.container.deposits();
    let deposit = deposits.find(|reference| state.deposit(&reference.deposit).is_none());
    let network = network.map(|network| format!("network {network}"));
    network.or_else(|| deposit.map(|reference| format!("what it calls {}", reference.name)))
}

/// Every slot has had its turn, and every new task was watched for its time.
fn is_complete(
    planner: &mut Planner<'_>,
    service: &Service,
    config: &UpdateConfig,
    survey: &Survey,
    status: &UpdateStatus,
) -> bool {
    let waits = survey.underway.iter().any(|place| !status.failed.contains(place));
    if waits || !survey.outdated.is_empty() {
        return false;
    }
    // SwarmKit's time: long enough for a delay, too.
    let watch = match config.delay >= config.monitor {
        true => config.delay + Duration::from_secs(1),
        false => config.monitor,
    };
    let new = |task: &&Arc<Task>| task.meta.created >= status.started && task.is_serving();
    let since: Vec<_> = survey
        .slots
        .values()
        .flatten()
        .filter(new)
        .filter(|task| !is_outdated(planner, service, task))
        .filter_map(|task| task.running_since)
        .collect();
    since.into_iter().all(|since| planner.is_past(after(since, watch)))
}

fn complete(planner: &Planner<'_>, status: &mut UpdateStatus) {
    let (state, message) = match status.state.is_rollback() {
        true => (UpdateState::RollbackCompleted, "rollback completed"),
        false => (UpdateState::Completed, "update completed"),
    };
    status.state = state;
    status.message = message.to_owned();
    status.completed = Some(planner.now.wall);
}

fn put(planner: &mut Planner<'_>, service: &Service, status: Option<UpdateStatus>) {
    planner.draft.put(Object::Service(Service { update_status: status, ..service.clone() }));
}
