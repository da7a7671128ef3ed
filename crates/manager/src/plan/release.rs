//! The end of things: addresses are let go of, old tasks and removed services are forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_model::{
    Attachment, DepositId, DepositKind, Network, NodeId, Object, ObjectKey, Resting, TableVersion, Task,
    TaskState,
};

use shoal_store::State;

use super::Planner;
use super::slots::{is_wanted, slots};

pub(super) fn plan(planner: &mut Planner<'_>) {
    wake_rested(planner);
    for task in planner.tasks() {
        release(planner, &task);
    }
    for task in planner.tasks() {
        let never_ran = task.node.is_none() && !is_wanted(&task);
        if never_ran || (task.desired == TaskState::Remove && is_over(&task)) {
            planner.draft.remove(ObjectKey::Task(task.id.clone()));
        }
    }
    forget_credentials(planner);
    for service in planner.services() {
        if !service.removing {
            forget_history(planner, &service);
        } else if planner.state().service_tasks(&service.id).next().is_none() {
            planner.draft.remove(ObjectKey::Service(service.id.clone()));
        }
    }
}

/// Credentials go when no service has them any more, and no task that may still need an image.
fn forget_credentials(planner: &mut Planner<'_>) {
    let state = planner.state();
    let kept: BTreeSet<&DepositId> =
        state.services().filter_map(|service| service.credentials.as_ref()).collect();
    let is_needed = |id: &DepositId| {
        let waits = |task: &Arc<Task>| task.status.state < TaskState::Running;
        kept.contains(id) || state.tasks().any(|task| waits(task) && task.credentials.as_ref() == Some(id))
    };
    let all = state.deposits(DepositKind::Credentials).map(|deposit| deposit.id.clone());
    let unneeded: Vec<DepositId> = all.filter(|id| !is_needed(id)).collect();
    for id in unneeded {
        planner.draft.remove(ObjectKey::Deposit(id));
    }
}

/// An ended task's addresses may be handed out again once no node sends anything to them. Nodes that are
/// down cannot say so: for them the addresses rest.
fn release(planner: &mut Planner<'_>, task: &Arc<Task>) {
    if task.released || !task.status.state.is_terminal() {
        return;
    }
    let on_networks = task.node.is_some() && !task.attachments.is_empty();
    let held_by = planner.observed.held_by.get(&task.id);
    let Some(holders) = held_by.cloned().or((!on_networks).then(BTreeSet::new)) else { return };
    let holders = planner.possible_holders(holders);
    let down = |node: &NodeId| planner.state().node(node).is_some_and(|node| node.is_down());
    if !holders.iter().all(down) {
        return;
    }
    let mut task = Task::clone(task);
    task.released = true;
    let attachments = task.attachments.clone();
    planner.put_task(task);
    if !holders.is_empty() {
        for attachment in attachments {
            rest(planner, &attachment, &holders);
        }
    }
}

pub(super) fn rest(planner: &mut Planner<'_>, attachment: &Attachment, holders: &BTreeSet<NodeId>) {
    let epoch = planner.state().cluster().map_or(0, |cluster| cluster.epoch);
    let since = TableVersion { epoch, revision: planner.state().revision() };
    let Some(network) = planner.state().network(&attachment.network) else { return };
    let mut network = Network::clone(network);
    let Some(state) = &mut network.state else { return };
    let addresses = [Some(attachment.address), attachment.address_v6];
    for address in addresses.into_iter().flatten().map(|address| address.addr()) {
        state.resting.push(Resting { address, since, holders: holders.clone() });
    }
    planner.draft.put(Object::Network(network));
}

/// Addresses have rested when every node that may have held them is back and without them, or is given
/// up.
fn wake_rested(planner: &mut Planner<'_>) {
    let networks: Vec<_> = planner.state().networks().cloned().collect();
    for network in networks {
        if network.state.as_ref().is_none_or(|state| state.resting.is_empty()) {
            continue;
        }
        let mut network = Network::clone(&network);
        let Some(state) = &mut network.state else { continue };
        for resting in &mut state.resting {
            let let_go = |node: &NodeId| {
                let known = (network.id.clone(), resting.address, node.clone());
                planner.observed.let_go.contains(&known)
            };
            resting.holders.retain(|node| !let_go(node));
            resting.holders = planner.possible_holders(std::mem::take(&mut resting.holders));
        }
        state.resting.retain(|resting| !resting.holders.is_empty());
        planner.draft.put(Object::Network(network));
    }
}

impl Planner<'_> {
    /// Without nodes that are no members any more, or have been down for too long.
    pub(super) fn possible_holders(&mut self, mut holders: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        holders.retain(|node| self.state().node(node).cloned().is_some_and(|node| !self.is_lost(&node)));
        holders
    }
}

fn is_over(task: &Task) -> bool {
    task.status.state.is_terminal() && task.released
}

/// How many tasks of a slot are remembered, the one that runs among them.
pub(super) fn kept_history(state: &State, service: &shoal_model::Service) -> u64 {
    let kept = match service.spec.task.restart.max_attempts {
        0 => state.cluster().map_or(5, |cluster| cluster.spec.task_history),
        attempts => attempts.saturating_add(1),
    };
    kept.max(1)
}

/// Keeps the newest tasks of each slot only, as many as the cluster is told to; the newest always,
/// since a slot that ended for good must be known as such.
fn forget_history(planner: &mut Planner<'_>, service: &shoal_model::Service) {
    let kept = usize::try_from(kept_history(planner.state(), service)).unwrap_or(usize::MAX);
    for (_, slot) in slots(planner.state(), &service.id) {
        for task in slot.iter().skip(kept) {
            if is_over(task) && !is_wanted(task) {
                planner.draft.remove(ObjectKey::Task(task.id.clone()));
            }
        }
    }
}
