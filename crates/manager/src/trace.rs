//! What a manager adds to a node's trace: the versions that should be in force, every task of the services
//! concerned, and where else the name is known.

use std::collections::BTreeMap;

use shoal_model::trace::{Elsewhere, Trace, TracedService, TracedTask, beyond};
use shoal_model::{NetworkId, Place, Service, ServiceId, TableVersion, Task, TaskState};

use crate::State;
use crate::table::derive;

/// `wanted` are the versions that the node is to have in force.
pub(crate) fn explain(state: &State, wanted: &BTreeMap<NetworkId, TableVersion>, trace: &mut Trace) {
    trace.from_manager = true;
    for network in &mut trace.networks {
        network.current = wanted.get(&network.network).copied();
    }
    for id in unlisted(state, trace) {
        trace.services.entry(id).or_default();
    }
    for (id, traced) in &mut trace.services {
        if let Some(service) = state.service(id) {
            complete(state, service, traced);
        }
    }
    if !trace.is_known() {
        // Networks of its node alone the store does not know.
        trace.elsewhere.retain(|place| state.network(&place.network).is_none());
        let elsewhere = elsewhere(state, trace);
        trace.elsewhere.extend(elsewhere);
    }
}

/// Services by this name that are meant to be on one of the asker's networks, and are in no table yet.
fn unlisted(state: &State, trace: &Trace) -> Vec<ServiceId> {
    if trace.is_known() {
        return Vec::new();
    }
    let name = trace.name.trim_end_matches('.');
    let concerns = |service: &Service| {
        let of_asker = |network: &NetworkId| trace.networks.iter().any(|own| own.network == *network);
        service.spec.task.networks.iter().any(|target| {
            let mut names = target.aliases.iter().chain([&service.spec.name]);
            of_asker(&target.network) && names.any(|own| own.eq_ignore_ascii_case(name))
        })
    };
    state.services().filter(|service| concerns(service)).map(|service| service.id.clone()).collect()
}

fn complete(state: &State, service: &Service, traced: &mut TracedService) {
    traced.name.clone_from(&service.spec.name);
    traced.replicas = service.spec.mode.replicas();
    traced.error.clone_from(&service.allocation_error);
    let mut tasks: Vec<&Task> = state.service_tasks(&service.id).map(|task| &**task).collect();
    tasks.sort_by_key(|task| (task.slot, task.meta.created));
    let stays = |task: &&Task| task.desired <= TaskState::Running && !task.status.state.is_terminal();
    let failed = |task: &&Task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
    let seen = std::mem::take(&mut traced.tasks);
    let tell = |task: &&Task| match seen.iter().find(|seen| seen.id == task.id) {
        // The node itself knows it best, but for its name.
        Some(seen) => TracedTask { host: host(state, task), ..seen.clone() },
        None => of_store(state, task),
    };
    traced.tasks = tasks.iter().filter(|task| stays(task)).map(tell).collect();
    let last: BTreeMap<Place, &Task> =
        tasks.iter().filter(|task| failed(task)).map(|task| (task.place(), *task)).collect();
    // What runs by now was not kept from it.
    let serves = |place: &Place| tasks.iter().any(|task| task.is_serving() && task.place() == *place);
    traced.failed =
        last.iter().filter(|(place, _)| !serves(place)).map(|(_, task)| of_store(state, task)).collect();
}

fn of_store(state: &State, task: &Task) -> TracedTask {
    TracedTask {
        id: task.id.clone(),
        name: task.name(),
        node: task.node.clone(),
        host: host(state, task),
        state: task.status.state,
        message: task.status.message.clone(),
        error: task.status.error.clone(),
        serving: task.is_serving(),
        health: None,
        health_output: String::new(),
    }
}

fn host(state: &State, task: &Task) -> Option<String> {
    let node = state.node(task.node.as_ref()?)?;
    let silent = if node.is_silent() { " (silent)" } else { "" };
    Some(format!("{}{silent}", node.description.hostname))
}

fn elsewhere(state: &State, trace: &Trace) -> Vec<Elsewhere> {
    let of_asker = |network: &NetworkId| trace.networks.iter().any(|own| own.network == *network);
    let others = state.networks().filter(|network| !of_asker(&network.id));
    others.filter_map(|network| beyond(&derive(state, &network.id)?, &trace.name)).collect()
}

#[cfg(test)]
mod tests;
