//! Simulated clients: from every node, through the tables its kernel holds, to every backend.

use std::time::Duration;

use shoal_model::{EndpointId, NetworkId, TaskId};

use super::world::World;

/// A node that is not heard of is suspect after this time, and down after the other.
const SUSPECT: Duration = Duration::from_secs(3);
const DOWN: Duration = Duration::from_secs(15);

/// A connection that fails.
struct Failed {
    from: usize,
    to: usize,
    network: NetworkId,
    endpoint: EndpointId,
    /// When the backend ceased to serve; `None`: it does, but cannot be reached.
    ended: Option<Duration>,
}

impl World {
    pub(super) fn connections(&mut self) {
        self.connections_later();
        let failed = self.failing();
        let now = self.now();
        for failed in failed {
            let spared = self.is_spared(&failed);
            let until = self.facts.spared.get(&failed.endpoint);
            if spared {
                self.facts.spared.insert(failed.endpoint.clone(), None);
            } else if until == Some(&None) {
                // Since the last look.
                self.facts.spared.insert(failed.endpoint.clone(), Some(now));
            }
            if !self.is_excused(&failed) {
                let Failed { from, to, network, endpoint, ended } = failed;
                self.violate(format!(
                    "a connection from node {from} over {network} to {endpoint} on node {to} fails, which \
                     ended at {ended:?}"
                ));
            }
        }
    }

    fn failing(&self) -> Vec<Failed> {
        let mut failed = Vec::new();
        let senders = self.machines.iter().enumerate();
        for (from, machine) in senders.filter(|(_, machine)| machine.powered && self.is_member(machine)) {
            for (network, table) in &machine.kernel {
                if !self.has_client(machine, network) {
                    continue;
                }
                for endpoint in table.services.values().flat_map(|service| &service.backends) {
                    failed.extend(self.connect_to(from, network, endpoint));
                }
            }
        }
        failed
    }

    /// The failure, if it fails.
    fn connect_to(&self, from: usize, network: &NetworkId, endpoint: &EndpointId) -> Option<Failed> {
        let entry = self.machines[from].kernel.get(network)?.endpoints.get(endpoint)?;
        let to = self.machines.iter().position(|machine| machine.id == entry.node)?;
        let container = self.machines[to].containers.get(&TaskId::new(endpoint.as_str()));
        let answers = |container: &&super::machine::Container| {
            container.serves && container.attachments.iter().any(|held| held.mac == entry.mac)
        };
        let ended = match container.filter(answers) {
            Some(_) if !self.are_separated(from, to) => return None,
            Some(_) => None,
            None => Some(container.and_then(|container| container.ended).unwrap_or_default()),
        };
        Some(Failed { from, to, network: network.clone(), endpoint: endpoint.clone(), ended })
    }

    /// The failure lies within what a fault may cost.
    fn is_excused(&self, failed: &Failed) -> bool {
        let Some(ended) = failed.ended else { return true };
        // A job's task ends by itself, and nobody knows before. Removed by force, nothing of a node is
        // waited for.
        let id = TaskId::new(failed.endpoint.as_str());
        let record = self.machines[failed.to].disk.records.get(&id).map(|record| &record.task);
        let task = self.truth.task(&id).map(AsRef::as_ref).or(record);
        let of_job = task.is_some_and(|task| task.iteration.is_some());
        if self.weather.calm && !of_job && self.is_member(&self.machines[failed.to]) {
            return false;
        }
        let now = self.now();
        let Some(manager) = &self.manager else { return true };
        let last = ended.max(self.facts.manager_disturbed).max(self.disturbed(failed.from));
        let target = &self.machines[failed.to];
        if self.is_heard_of(failed.to) {
            return now < last.max(target.disturbed) + self.slack();
        }
        // A manager that never heard of the node was away itself.
        let known = manager.hub.seen().contains_key(&target.id);
        if !known || self.is_spared(failed) {
            return now < last + DOWN + self.slack();
        }
        // A backend that has been spared goes as soon as others can take over.
        let spared = self.facts.spared.get(&failed.endpoint).copied().flatten().unwrap_or_default();
        now < (last + SUSPECT).max(spared) + self.slack()
    }

    /// The backend stays, since too many of its service are suspect.
    fn is_spared(&self, failed: &Failed) -> bool {
        let task = self.truth.task(&TaskId::new(failed.endpoint.as_str()));
        let tasks = task.into_iter().flat_map(|task| self.truth.service_tasks(&task.service));
        let nodes = tasks.filter(|task| task.is_serving()).filter_map(|task| task.node.as_ref());
        let nodes: Vec<_> =
            nodes.filter_map(|node| self.truth.node(node)).filter(|it| !it.is_down()).collect();
        nodes.iter().filter(|node| node.is_silent()).count() * 2 > nodes.len()
    }

    /// Where nothing else is wrong, what has happened is known everywhere after this time.
    fn slack(&self) -> Duration {
        let weather = &self.weather;
        let late = if weather.late_frames > 0.0 { 1_500.0 } else { 0.0 };
        let steps = weather.latency_ms.1 * 4.0 + weather.commit_ms.1 * 12.0 + weather.apply_ms.1 * 10.0;
        Duration::from_secs_f64((150.0 + late + steps) / 1_000.0)
    }

    /// When this node was last not able to follow the tables.
    pub(super) fn disturbed(&self, node: usize) -> Duration {
        let machine = &self.machines[node];
        if self.is_heard_of(node) && !machine.slow { machine.disturbed } else { self.now() }
    }

    fn is_heard_of(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        let session = machine.daemon.as_ref().and_then(|daemon| daemon.session());
        let works = session.is_some_and(|link| self.is_sound(link));
        machine.powered && works && !self.cut.contains(&node)
    }
}
