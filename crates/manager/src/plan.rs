//! The control loops: what follows from the state of the cluster and from what is observed of it.
//!
//! Pure and level-triggered: no clock, no I/O, no randomness of its own. Planning again after a plan
//! was carried out changes nothing.

mod allocate;
mod authority;
mod constraint;
mod failures;
mod global;
mod guests;
mod jobs;
mod nodes;
mod orchestrate;
mod preference;
mod release;
mod rest;
mod schedule;
mod slots;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{
    Availability, ContainerId, IdGenerator, NetworkId, Node, NodeDescription, NodeId, Object, Service,
    ServiceId, Task, TaskId,
};
use shoal_store::State;

pub use crate::draft::{Change, ClaimedTwice, Draft, commit_of};
pub(crate) use allocate::{
    Addresses, NoSubnet, Spot, WantedPlace, network as allocate_network, overlap, overlap_of,
    place as allocate_place, service as allocate_service,
};
pub(crate) use authority::behind;
pub(crate) use constraint::Constraint;
pub(crate) use nodes::Patience;
pub(crate) use preference::Preference;

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
    /// Ended tasks, and the nodes that may still send to their addresses. A task that is not in here
    /// has not been judged yet.
    pub held_by: BTreeMap<TaskId, BTreeSet<NodeId>>,
    /// The same of places that guests left.
    pub guests_held_by: BTreeMap<(ContainerId, NetworkId), BTreeSet<NodeId>>,
    /// Resting addresses, and nodes that came back and are without them.
    pub let_go: BTreeSet<(NetworkId, IpAddr, NodeId)>,
    /// Serving tasks that every node concerned sends connections to.
    pub in_service: BTreeSet<TaskId>,
}

impl Observed {
    /// Something in here may lead to another plan than `before` did. That a node is still heard of does
    /// not, as long as it is well: a plan looks at that when its deadline has come.
    pub(crate) fn differs_from(&self, before: &Self, state: &State) -> bool {
        let is_well = |id: &NodeId| state.node(id).is_some_and(|node| !node.is_silent());
        let same_session = |(node, session): (&NodeId, &SessionView)| {
            before.sessions.get(node).is_some_and(|other| {
                let heard = session.last_heard != other.last_heard;
                session.live == other.live
                    && session.description == other.description
                    && (!heard || is_well(node))
            })
        };
        self.sessions.len() != before.sessions.len()
            || !self.sessions.iter().all(same_session)
            || self.held_by != before.held_by
            || self.guests_held_by != before.guests_held_by
            || self.let_go != before.let_go
            || self.in_service != before.in_service
    }
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
    let moving = rest::moving(state);
    plan_for(state, observed, now, ids, moving, |planner| planner.find_settled())
}

/// The same for a choice of tasks and services to look at.
fn plan_for(
    state: &State,
    observed: &Observed,
    now: Now,
    ids: &mut IdGenerator,
    moving: BTreeSet<TaskId>,
    find_settled: fn(&mut Planner<'_>),
) -> Plan {
    let draft = Draft::new(state.clone(), now.wall);
    let settled = BTreeSet::new();
    let mut planner = Planner { draft, observed, now, ids, next_deadline: None, moving, settled };
    let mut addresses = Addresses::default();
    nodes::plan(&mut planner);
    authority::plan(&mut planner);
    allocate::networks_and_services(&mut planner, &mut addresses);
    find_settled(&mut planner);
    orchestrate::plan(&mut planner);
    update::plan(&mut planner);
    orchestrate::promote(&mut planner);
    allocate::tasks(&mut planner, &mut addresses);
    schedule::plan(&mut planner, &mut addresses);
    release::plan(&mut planner);
    guests::plan(&mut planner);
    Plan { changes: planner.draft.into_changes(), next_deadline: planner.next_deadline }
}

/// What the steps of a plan share.
pub(crate) struct Planner<'a> {
    draft: Draft,
    observed: &'a Observed,
    now: Now,
    ids: &'a mut IdGenerator,
    next_deadline: Option<Duration>,
    /// The tasks that are not at rest, and those this plan touched.
    moving: BTreeSet<TaskId>,
    /// The services that need no look at their tasks.
    settled: BTreeSet<ServiceId>,
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

    /// Clients everywhere reach a serving task, as far as one can wait for that.
    fn is_in_service(&self, task: &Task) -> bool {
        task.attachments.is_empty() || self.observed.in_service.contains(&task.id)
    }

    fn put_task(&mut self, task: Task) {
        self.moving.insert(task.id.clone());
        self.draft.put(Object::Task(task));
    }

    fn find_settled(&mut self) {
        let unfit = rest::unfit_nodes(self.state());
        let settled = |service: &&Arc<Service>| rest::is_settled(self.state(), service, &unfit);
        self.settled =
            self.state().all_services().filter(settled).map(|service| service.id.clone()).collect();
    }

    /// Those that are not settled.
    fn services(&self) -> Vec<Arc<Service>> {
        let unsettled = |service: &&Arc<Service>| !self.settled.contains(&service.id);
        self.state().all_services().filter(unsettled).cloned().collect()
    }

    /// Those that are not at rest.
    fn tasks(&self) -> Vec<Arc<Task>> {
        self.moving.iter().filter_map(|id| self.state().task(id)).cloned().collect()
    }
}

/// The node may keep the tasks it has.
fn keeps_tasks(node: &Node) -> bool {
    !node.is_down() && node.spec.availability != Availability::Drain
}

/// A wall-clock time this much later; the end of time when it does not fit.
fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
