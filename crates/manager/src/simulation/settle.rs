//! What must come about once nothing goes wrong any more.

use std::collections::BTreeSet;

use shoal_model::{Guest, Network, NetworkId, NodeId, ServiceMode, Task, TaskState};

use super::machine::Machine;
use super::world::World;
use crate::table::derive;

/// Addresses rest only while somebody is away.
fn network_unsettled(network: &Network) -> Option<String> {
    let resting = network.state.iter().flat_map(|state| &state.resting).next()?;
    Some(format!("{} of {} still rests", resting.address, network.spec.name))
}

impl World {
    /// What is not as declared yet.
    pub(super) fn unsettled(&self) -> Option<String> {
        if self.manager.is_none() {
            return Some("there is no manager".into());
        }
        let services = self.truth.all_services().find_map(|service| self.service_unsettled(service));
        services
            .or_else(|| self.truth.tasks().find_map(|task| self.task_unsettled(task)))
            .or_else(|| self.truth.guests().find_map(|guest| self.guest_unsettled(guest)))
            .or_else(|| self.machines.iter().find_map(|machine| self.machine_unsettled(machine)))
            .or_else(|| self.truth.networks().find_map(|network| network_unsettled(network)))
    }

    fn service_unsettled(&self, service: &shoal_model::Service) -> Option<String> {
        let name = &service.spec.name;
        if service.removing {
            return Some(format!("{name} is not gone"));
        }
        if !service.allocation_error.is_empty() {
            return Some(format!("{name}: {}", service.allocation_error));
        }
        if let ServiceMode::ReplicatedJob { total, .. } = service.spec.mode {
            return self.job_unfinished(service, total);
        }
        let wanted: Vec<_> =
            self.truth.service_tasks(&service.id).filter(|task| task.desired <= TaskState::Running).collect();
        let slots: BTreeSet<u64> = wanted.iter().map(|task| task.slot).collect();
        let replicas = service.spec.mode.replicas().unwrap_or_default();
        if wanted.len() as u64 != replicas || slots.len() as u64 != replicas {
            return Some(format!("{name} has {} tasks in {} slots of {replicas}", wanted.len(), slots.len()));
        }
        let outdated = wanted.iter().find(|task| task.spec != service.spec.task)?;
        Some(format!("{} is outdated", outdated.name()))
    }

    /// Each of its places holds one task that has done its work; another may have done it on a node that was
    /// given up.
    fn job_unfinished(&self, job: &shoal_model::Service, total: u64) -> Option<String> {
        let iteration = job.job.map(|job| job.iteration);
        let tasks = self.truth.service_tasks(&job.id);
        let tasks = tasks.filter(|task| task.iteration == iteration && task.desired <= TaskState::Running);
        let mut done: Vec<u64> = tasks.filter(|task| task.is_done()).map(|task| task.slot).collect();
        done.sort_unstable();
        let places: Vec<u64> = (0..total).collect();
        (done != places).then(|| format!("{} is done in {done:?} of {total}", job.spec.name))
    }

    fn task_unsettled(&self, task: &Task) -> Option<String> {
        let what = |what: &str| Some(format!("{} {what}: {}", task.name(), task.status.error));
        if task.desired > TaskState::Running {
            return if !task.status.state.is_terminal() {
                what("has not ended")
            } else if !task.released {
                what("has not let go of its addresses")
            } else {
                None
            };
        }
        if task.is_done() {
            return if task.released { None } else { what("has not let go of its addresses") };
        }
        let machine = task.node.as_ref().and_then(|node| self.machine(node));
        let container = machine.and_then(|machine| machine.containers.get(&task.id));
        if !task.is_serving() {
            what(&format!("is {}, wanted {}", task.status.state, task.desired))
        } else if !container.is_some_and(|container| container.serves) {
            what("does not really run")
        } else {
            None
        }
    }

    fn guest_unsettled(&self, guest: &Guest) -> Option<String> {
        let plain = self.machine(&guest.node).and_then(|machine| machine.plains.get(&guest.id));
        if !guest.leaving.is_empty() {
            Some(format!("{} still leaves", guest.name))
        } else if !plain.is_some_and(|plain| plain.is_settled()) {
            Some(format!("{} is a guest, but does not run", guest.name))
        } else {
            None
        }
    }

    fn machine_unsettled(&self, machine: &Machine) -> Option<String> {
        let id = &machine.id;
        if !self.is_member(machine) {
            let task = machine.containers.iter().find(|(_, container)| container.runs());
            return task.map(|(task, _)| format!("{id}, which was removed, still runs {task}"));
        }
        let unsettled = machine.plains.iter().find(|(_, plain)| !plain.is_settled());
        if let Some((plain, _)) = unsettled {
            return Some(format!("{plain} on {id} does not run"));
        }
        let Some(daemon) = &machine.daemon else { return Some(format!("{id} has no daemon")) };
        for (task, container) in &machine.containers {
            let wanted = self.truth.task(task).is_some_and(|task| task.desired <= TaskState::Running);
            if !wanted && container.runs() {
                return Some(format!("{id} still has {task}"));
            }
        }
        let subscribed = self.subscribed(id);
        let kernel: BTreeSet<NetworkId> = machine.kernel.keys().cloned().collect();
        if subscribed != kernel {
            return Some(format!("{id} holds {kernel:?} instead of {subscribed:?}"));
        }
        for (network, held) in &machine.kernel {
            let derived = derive(&self.truth, network)?;
            if !derived.same_content(held) {
                return Some(format!("{id} holds {network} at {:?}, which is not current", held.version));
            }
            if daemon.in_force.get(network) != Some(&held.version) {
                return Some(format!("{id} has not all of {network} in force"));
            }
        }
        None
    }

    /// The networks whose tables a node is to have.
    fn subscribed(&self, node: &NodeId) -> BTreeSet<NetworkId> {
        let tasks = self.truth.node_tasks(node).filter(|task| !task.released);
        let guests = self.truth.node_guests(node);
        let places = guests.flat_map(|guest| guest.attachments.iter().chain(&guest.leaving));
        let networks =
            tasks.flat_map(|task| &task.attachments).chain(places).map(|held| held.network.clone());
        networks.chain(self.truth.ingress_network().map(|network| network.id.clone())).collect()
    }

    /// What is still there of a cluster from which everything has been removed.
    pub(super) fn left_over(&self) -> Option<String> {
        let service = self.truth.all_services().next().map(|service| service.spec.name.clone());
        let task = self.truth.tasks().next().map(|task| task.name());
        let network = self.truth.networks().find(|network| !network.spec.ingress);
        let network = network.map(|network| network.spec.name.clone());
        let members = self.machines.iter().filter(|machine| self.is_member(machine));
        let on_machines = members.into_iter().find_map(|machine| {
            let container = machine.containers.keys().next().map(|task| format!("the container of {task}"));
            let record = machine.disk.records.keys().next().map(|task| format!("the record of {task}"));
            let table = machine.kernel.values().find(|table| !table.config.ingress);
            let table = table.map(|table| format!("{} on {}", table.network, machine.id));
            let plain = machine.plains.keys().next().map(|plain| format!("{plain} on {}", machine.id));
            container.or(record).or(table).or(plain)
        });
        let guest = self.truth.guests().next().map(|guest| guest.name.clone());
        service.or(task).or(guest).or(network).or(on_machines)
    }
}
