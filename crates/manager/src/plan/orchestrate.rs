//! Replicated services: which tasks there are to be, and what is wanted of each.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{
    Availability, Meta, Node, NodeId, RestartCondition, Service, Task, TaskId, TaskSpec, TaskState,
    TaskStatus,
};

use super::slots::{Slot, is_wanted, slots};
use super::{Constraint, Planner, after, failures, keeps_tasks};

/// A replacement waits at most so long for the task before it to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) fn plan(planner: &mut Planner<'_>) {
    for task in planner.tasks() {
        let service = planner.state().service(&task.service);
        if service.is_none_or(|service| service.removing) {
            want(planner, &task, TaskState::Remove);
        }
    }
    for service in planner.services() {
        if !service.removing {
            replace_ended(planner, &service);
            scale(planner, &service);
        }
    }
}

/// Raises what is wanted of a task; a desired state never goes back.
pub(super) fn want(planner: &mut Planner<'_>, task: &Arc<Task>, desired: TaskState) {
    if task.desired < desired {
        let mut task = Task::clone(task);
        task.desired = desired;
        planner.put_task(task);
    }
}

/// Makes a task in a slot.
pub(super) fn create(
    planner: &mut Planner<'_>,
    service: &Service,
    slot: u64,
    desired: TaskState,
    start_after: Option<Timestamp>,
) {
    let now = planner.now.wall;
    let failures = failures::inherited(planner.state(), service, slot, now);
    let task = Task {
        id: TaskId::new(planner.ids.object_id()),
        meta: Meta::new(now),
        service: service.id.clone(),
        service_name: service.spec.name.clone(),
        slot,
        spec: service.spec.task.clone(),
        ports: service.endpoint.ports.clone(),
        node: None,
        desired,
        status: TaskStatus::new(TaskState::New, now, "created"),
        attachments: Vec::new(),
        running_since: None,
        released: false,
        start_after,
        failures,
    };
    planner.put_task(task);
}

/// Why a wanted task has to go.
enum End {
    /// It ended by itself, or its node wants it out of service.
    Own,
    /// Its node is gone, down or drained, or does not fulfil its constraints any more.
    Node,
}

fn end_of(planner: &Planner<'_>, task: &Task) -> Option<End> {
    if task.status.state.is_terminal() || task.status.draining {
        return Some(End::Own);
    }
    let node = planner.state().node(task.node.as_ref()?);
    let stays = node.is_some_and(|node| keeps_tasks(node) && !is_misplaced(planner, task, node));
    (!stays).then_some(End::Node)
}

/// SwarmKit's constraint enforcer: the node was changed, and the task would not be put there any more.
/// Constraints that were changed are a matter of the update.
fn is_misplaced(planner: &Planner<'_>, task: &Task, node: &Node) -> bool {
    if node.spec.availability != Availability::Active {
        return false;
    }
    let violates = |spec: &TaskSpec| {
        let constraints = Constraint::parse_all(&spec.placement.constraints).unwrap_or_default();
        !constraints.iter().all(|constraint| constraint.holds(node))
    };
    let declared = planner.state().service(&task.service);
    violates(&task.spec) && declared.is_none_or(|service| violates(&service.spec.task))
}

fn replace_ended(planner: &mut Planner<'_>, service: &Service) {
    for (number, slot) in slots(planner.state(), &service.id) {
        let (mut stays, mut replaced) = (false, None);
        for task in slot.iter().filter(|task| is_wanted(task)) {
            let Some(end) = end_of(planner, task) else {
                stays = true;
                continue;
            };
            // Preparing it failed before its time had come: the next attempt has to wait for that
            // time, too, or a missing image would be looked for without a pause.
            if task.start_after.is_some_and(|at| matches!(end, End::Own) && !planner.is_past(at)) {
                stays = true;
                continue;
            }
            want(planner, task, TaskState::Shutdown);
            replaced.get_or_insert((task, end));
        }
        // During an update a slot may lose its old and its new task at once: one replaces both.
        let Some((task, end)) = replaced.filter(|_| !stays) else { continue };
        if !restarts(planner, service, &slot, task) {
            continue;
        }
        let delay = match end {
            End::Own => service.spec.task.restart.delay,
            End::Node => Duration::ZERO,
        };
        let start_after = after(planner.now.wall, delay);
        create(planner, service, number, TaskState::Ready, Some(start_after));
    }
}

/// The restart policy allows one more task in this slot.
fn restarts(planner: &Planner<'_>, service: &Service, slot: &Slot, ended: &Task) -> bool {
    let policy = &service.spec.task.restart;
    match policy.condition {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if ended.status.state == TaskState::Complete => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    if policy.max_attempts == 0 {
        return true;
    }
    // Every task of the slot but the first is a restart; a changed service counts anew.
    let same = slot.iter().filter(|task| task.spec == ended.spec);
    let attempts = if policy.window.is_zero() {
        same.count().saturating_sub(1)
    } else {
        let since = planner.now.wall.checked_sub(policy.window).unwrap_or(Timestamp::MIN);
        let first = same.clone().next_back().map(|task| task.id.clone());
        same.filter(|task| task.meta.created >= since && Some(&task.id) != first.as_ref()).count()
    };
    (attempts as u64) < policy.max_attempts
}

/// Adds the lowest unused slots, or removes the least useful ones.
fn scale(planner: &mut Planner<'_>, service: &Service) {
    let slots = slots(planner.state(), &service.id);
    let replicas = service.spec.mode.replicas();
    let present = slots.len() as u64;
    if present < replicas {
        let unused = (1..).filter(|number| !slots.contains_key(number));
        for number in unused.take((replicas - present) as usize) {
            create(planner, service, number, TaskState::Running, None);
        }
    } else if present > replicas {
        for number in surplus(&slots, (present - replicas) as usize) {
            for task in &slots[&number] {
                want(planner, task, TaskState::Remove);
            }
        }
    }
}

/// The slots to give up: those that do not run first, then from the nodes with the most tasks of this
/// service, then the highest numbers.
fn surplus(slots: &BTreeMap<u64, Slot>, count: usize) -> Vec<u64> {
    let serving = |slot: &Slot| slot.iter().find(|task| task.is_serving()).cloned();
    let mut on_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in slots.values().filter_map(|slot| serving(slot)?.node.clone()) {
        *on_node.entry(node).or_default() += 1;
    }
    let mut left: Vec<(u64, Option<NodeId>)> = slots
        .iter()
        .map(|(number, slot)| (*number, serving(slot).and_then(|task| task.node.clone())))
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        let load = |node: &Option<NodeId>| node.as_ref().and_then(|node| on_node.get(node)).copied();
        left.sort_by_key(|(number, node)| (node.is_some(), Reverse(load(node)), Reverse(*number)));
        let (number, node) = left.remove(0);
        if let Some(load) = node.and_then(|node| on_node.get_mut(&node)) {
            *load -= 1;
        }
        chosen.push(number);
    }
    chosen
}

/// Lets prepared tasks start: when their time has come and the task before them has stopped.
pub(super) fn promote(planner: &mut Planner<'_>) {
    for task in planner.tasks() {
        if task.desired != TaskState::Ready {
            continue;
        }
        let due = task.start_after.is_none_or(|at| planner.is_past(at));
        if due && !waits_for_another(planner, &task) {
            want(planner, &task, TaskState::Running);
        }
    }
}

fn waits_for_another(planner: &mut Planner<'_>, task: &Task) -> bool {
    let state = planner.state();
    let stopping = state.service_tasks(&task.service).any(|other| {
        other.slot == task.slot
            && other.id != task.id
            && !is_wanted(other)
            && !other.status.state.is_terminal()
            && other.node.as_ref().and_then(|node| state.node(node)).is_some_and(|node| !node.is_down())
    });
    let since = task.start_after.unwrap_or(task.meta.created);
    stopping && !planner.is_past(after(since, STOP_WAIT_MAX))
}
