//! The control loops: what follows from the state of the cluster and from what is observed of it.
//!
//! Pure and level-triggered: no clock, no I/O, no randomness of its own. Planning again after a plan
//! was carried out changes nothing.

mod allocate;
mod constraint;
mod nodes;
mod orchestrate;
mod release;
mod schedule;
mod slots;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{IdGenerator, Node, NodeDescription, NodeId, Object, Service, Task, TaskId};
use shoal_store::State;

pub use crate::draft::{Change, ClaimedTwice, Draft, commit_of};
pub(crate) use allocate::{Addresses, network as allocate_network, overlap_of, service as allocate_service};
pub(crate) use constraint::Constraint;

/// The two clocks, read once per plan.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since the leader's term began; every decision about duration within the term uses it.
    pub monotonic: Duration,
    /// For display, and for times that outlive a leader.
    pub wall: Timestamp,
}

/// What is known of the nodes but is in no store.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Every node that had a session in this term.
    pub sessions: BTreeMap<NodeId, SessionView>,
    /// Ended tasks whose endpoints no subscribed node holds any more.
    pub let_go: BTreeSet<TaskId>,
}

/// The manager's side of one node's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// The node was last heard of then (monotonic).
    pub last_heard: Duration,
    pub live: bool,
    pub description: Arc<NodeDescription>,
}

/// What is to be committed, and when to plan again even if nothing happens (monotonic).
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub next_deadline: Option<Duration>,
}

/// Plans everything that follows from `state`.
pub fn plan(state: &State, observed: &Observed, now: Now, ids: &mut IdGenerator) -> Plan {
    let draft = Draft::new(state.clone(), now.wall);
    let mut planner = Planner { draft, observed, now, ids, next_deadline: None };
    let mut addresses = Addresses::default();
    nodes::plan(&mut planner);
    allocate::networks_and_services(&mut planner, &mut addresses);
    orchestrate::plan(&mut planner);
    update::plan(&mut planner);
    orchestrate::promote(&mut planner);
    allocate::tasks(&mut planner, &mut addresses);
    schedule::plan(&mut planner);
    release::plan(&mut planner);
    Plan { changes: planner.draft.into_changes(), next_deadline: planner.next_deadline }
}

/// What the steps of a plan share.
pub(crate) struct Planner<'a> {
    draft: Draft,
    observed: &'a Observed,
    now: Now,
    ids: &'a mut IdGenerator,
    next_deadline: Option<Duration>,
}

impl Planner<'_> {
    fn state(&self) -> &State {
        self.draft.state()
    }

    fn wake_at(&mut self, at: Duration) {
        self.next_deadline = Some(self.next_deadline.map_or(at, |present| present.min(at)));
    }

    /// `true` once the time has come; until then the plan is made again at that time.
    fn is_past(&mut self, at: Timestamp) -> bool {
        match Duration::try_from(at.duration_since(self.now.wall)) {
            Ok(left) if left > Duration::ZERO => {
                self.wake_at(self.now.monotonic + left);
                false
            }
            _ => true,
        }
    }

    fn put_task(&mut self, task: Task) {
        self.draft.put(Object::Task(task));
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.state().all_services().cloned().collect()
    }

    fn tasks(&self) -> Vec<Arc<Task>> {
        self.state().tasks().cloned().collect()
    }
}

/// The node may keep the tasks it has.
fn keeps_tasks(node: Option<&Arc<Node>>) -> bool {
    node.is_some_and(|node| node.status.ready && node.spec.availability != shoal_model::Availability::Drain)
}

/// A wall-clock time this much later; the end of time when it does not fit.
fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
