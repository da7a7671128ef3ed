//! Which tasks there are to be, and what is wanted of each.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{
    Availability, Meta, Node, NodeId, Place, RestartCondition, Service, ServiceId, ServiceMode, Task, TaskId,
    TaskSpec, TaskState, TaskStatus,
};

use super::slots::{Slot, is_wanted, slots};
use super::{Constraint, Planner, after, failures, global, jobs, keeps_tasks};

/// A replacement waits at most so long for the task before it to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) fn plan(planner: &mut Planner<'_>) {
    let gone = |id: &&ServiceId| planner.state().service(id).is_none_or(|service| service.removing);
    let gone: Vec<ServiceId> = planner.state().services_with_tasks().filter(gone).cloned().collect();
    for service in gone {
        let tasks: Vec<_> = planner.state().service_tasks(&service).cloned().collect();
        for task in &tasks {
            want(planner, task, TaskState::Remove);
        }
    }
    for service in planner.services() {
        if !service.removing {
            jobs::end_former(planner, &service);
            replace_ended(planner, &service);
            match service.spec.mode {
                ServiceMode::Replicated { replicas } => scale(planner, &service, replicas),
                ServiceMode::Global => global::spread(planner, &service),
                ServiceMode::ReplicatedJob { concurrent, total } => {
                    jobs::fill(planner, &service, concurrent, total);
                }
                ServiceMode::GlobalJob => jobs::spread(planner, &service),
            }
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

/// Makes a task in a place.
pub(super) fn create(
    planner: &mut Planner<'_>,
    service: &Service,
    place: &Place,
    desired: TaskState,
    start_after: Option<Timestamp>,
) {
    let now = planner.now.wall;
    let failures = failures::inherited(planner.state(), service, place, now);
    let (slot, pinned) = match place {
        Place::Slot(slot) => (*slot, None),
        Place::Node(node) => (0, Some(node.clone())),
    };
    let task = Task {
        id: TaskId::new(planner.ids.object_id()),
        meta: Meta::new(now),
        service: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone(),
        slot,
        pinned,
        spec: service.spec.task.clone(),
        ports: service.endpoint.ports.clone(),
        node: None,
        desired,
        status: TaskStatus::new(TaskState::New, now, "created"),
        attachments: Vec::new(),
        running_since: None,
        released: false,
        credentials: service.credentials.clone(),
        start_after,
        failures,
        iteration: service.job.map(|job| job.iteration),
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
    if task.is_done() {
        return None;
    }
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
    for (place, slot) in slots(planner.state(), &service.id) {
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
        if !restarts(planner, service, &slot, task) || !global::may_have(planner, service, &place) {
            continue;
        }
        let delay = match end {
            End::Own => service.spec.task.restart.delay,
            End::Node => Duration::ZERO,
        };
        let start_after = after(planner.now.wall, delay);
        create(planner, service, &place, TaskState::Ready, Some(start_after));
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
    let of_same = |task: &&Arc<Task>| task.spec == ended.spec && task.iteration == ended.iteration;
    let same = slot.iter().filter(of_same);
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
fn scale(planner: &mut Planner<'_>, service: &Service, replicas: u64) {
    let slots = slots(planner.state(), &service.id);
    let present = slots.len() as u64;
    if present < replicas {
        let unused = (1..).map(Place::Slot).filter(|place| !slots.contains_key(place));
        for place in unused.take((replicas - present) as usize) {
            create(planner, service, &place, TaskState::Running, None);
        }
    } else if present > replicas {
        for place in surplus(&slots, (present - replicas) as usize) {
            for task in &slots[&place] {
                want(planner, task, TaskState::Remove);
            }
        }
    }
}

/// The slots to give up: those that do not run first, then from the nodes with the most tasks of this
/// service, then the highest numbers.
fn surplus(slots: &BTreeMap<Place, Slot>, count: usize) -> Vec<Place> {
    let serving = |slot: &Slot| slot.iter().find(|task| task.is_serving()).cloned();
    let mut on_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in slots.values().filter_map(|slot| serving(slot)?.node.clone()) {
        *on_node.entry(node).or_default() += 1;
    }
    let mut left: Vec<(Place, Option<NodeId>)> = slots
        .iter()
        .map(|(place, slot)| (place.clone(), serving(slot).and_then(|task| task.node.clone())))
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        let load = |node: &Option<NodeId>| node.as_ref().and_then(|node| on_node.get(node)).copied();
        left.sort_by_key(|(place, node)| (node.is_some(), Reverse(load(node)), Reverse(place.clone())));
        let (place, node) = left.remove(0);
        if let Some(load) = node.and_then(|node| on_node.get_mut(&node)) {
            *load -= 1;
        }
        chosen.push(place);
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
        other.place() == task.place()
            && other.id != task.id
            && !is_wanted(other)
            && !other.status.state.is_terminal()
            && other.node.as_ref().and_then(|node| state.node(node)).is_some_and(|node| !node.is_down())
    });
    let since = task.start_after.unwrap_or(task.meta.created);
    stopping && !planner.is_past(after(since, STOP_WAIT_MAX))
}
