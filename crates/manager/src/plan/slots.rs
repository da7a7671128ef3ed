//! A service's tasks by their place.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::{Place, ServiceId, Task, TaskState};
use shoal_store::State;

/// The tasks of one place that are not to be forgotten, newest first. Never empty.
pub(super) type Slot = Vec<Arc<Task>>;

pub(super) fn slots(state: &State, service: &ServiceId) -> BTreeMap<Place, Slot> {
    let mut slots: BTreeMap<Place, Slot> = BTreeMap::new();
    for task in state.service_tasks(service).filter(|task| task.desired != TaskState::Remove) {
        slots.entry(task.place()).or_default().push(task.clone());
    }
    for slot in slots.values_mut() {
        slot.sort_by(|a, b| (b.meta.created, &b.id).cmp(&(a.meta.created, &a.id)));
    }
    slots
}

/// The cluster wants this task to run, now or soon.
pub(super) fn is_wanted(task: &Task) -> bool {
    task.desired <= TaskState::Running
}
