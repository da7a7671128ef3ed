//! Nodes on which a service keeps failing.
//!
//! Ended tasks are forgotten soon, so the newest task of a slot carries what is worth remembering of
//! those before it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{Failure, NodeId, Place, Service, ServiceId, Task, TaskState};
use shoal_store::State;

use super::after;
use super::slots::slots;

/// A failure counts for so long (SwarmKit's `monitorFailures`).
const WINDOW: Duration = Duration::from_secs(5 * 60);
/// So many of them make a node one to avoid (SwarmKit's `maxFailures`).
pub(super) const MANY: usize = 5;

/// What a new task in a place is to remember: the failures of the same declaration.
pub(super) fn inherited(state: &State, service: &Service, place: &Place, now: Timestamp) -> Vec<Failure> {
    let before = state.service_tasks(&service.id).filter(|task| task.place() == *place);
    let newest = before.max_by_key(|task| (task.meta.created, task.id.clone()));
    let Some(newest) = newest.filter(|task| task.spec == service.spec.task) else { return Vec::new() };
    let mut failures = newest.failures.clone();
    failures.extend(own(newest));
    failures.retain(|failure| is_recent(failure, now));
    // More than what makes a node one to avoid says nothing more of it.
    let mut seen: BTreeMap<NodeId, usize> = BTreeMap::new();
    failures.reverse();
    failures.retain(|failure| {
        let count = seen.entry(failure.node.clone()).or_default();
        *count += 1;
        *count <= MANY
    });
    failures.reverse();
    failures
}

/// How often tasks of a service failed lately, by node.
pub(super) fn by_node(state: &State, service: &ServiceId, now: Timestamp) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for slot in slots(state, service).values() {
        let Some(newest) = slot.first() else { continue };
        let failures = newest.failures.iter().cloned().chain(own(newest));
        for failure in failures.filter(|failure| is_recent(failure, now)) {
            *counts.entry(failure.node).or_default() += 1;
        }
    }
    counts
}

fn own(task: &Task) -> Option<Failure> {
    let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
    let node = task.node.clone().filter(|_| failed)?;
    Some(Failure { node, at: task.status.timestamp })
}

fn is_recent(failure: &Failure, now: Timestamp) -> bool {
    after(failure.at, WINDOW) > now
}
