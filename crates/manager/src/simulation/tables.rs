//! Tables on their way into a simulated kernel: what is wanted, what is at work, what is in force.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use shoal_model::{EndpointId, NetworkId, NetworkTable, TableDelta, TaskId};

use super::daemon::{Daemon, Wanted};
use super::world::{DaemonEvent, World, note};

/// Before a table that could not be brought into force is tried again.
const RETRY: Duration = Duration::from_millis(100);

impl World {
    pub(super) fn put_table(&mut self, node: usize, table: NetworkTable) {
        note!(self, "node {node} gets {} whole at {}", table.network, table.version.revision);
        self.check_received(node, &table);
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        daemon.dirty.insert(table.network.clone());
        daemon.wanted.insert(table.network.clone(), Arc::new(table));
        self.pass_soon(node);
        self.wake_all(node);
        self.wake_plains(node);
    }

    /// The network whose snapshot must be asked for, if the delta does not fit.
    pub(super) fn apply_delta(&mut self, node: usize, delta: &TableDelta) -> Option<NetworkId> {
        let misfit = self.chance(self.weather.misfits);
        let daemon = self.machines[node].daemon.as_mut()?;
        if misfit {
            daemon.wanted.remove(&delta.network);
            note!(self, "node {node} has mislaid {}", delta.network);
            self.disturb(node, self.now());
        }
        let daemon = self.machines[node].daemon.as_mut()?;
        let fits = match daemon.wanted.get_mut(&delta.network) {
            Some(table) => Arc::make_mut(table).apply(delta).is_ok(),
            None => false,
        };
        if !fits {
            return Some(delta.network.clone());
        }
        daemon.dirty.insert(delta.network.clone());
        let table = daemon.wanted.get(&delta.network).cloned()?;
        note!(
            self,
            "node {node} gets {} from {} to {}",
            delta.network,
            delta.from.revision,
            delta.to.revision
        );
        self.check_received(node, &table);
        self.pass_soon(node);
        None
    }

    pub(super) fn table_gone(&mut self, node: usize, network: &NetworkId) {
        note!(self, "node {node} is to drop {network}");
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        daemon.wanted.remove(network);
        daemon.dirty.insert(network.clone());
        self.pass_soon(node);
    }

    /// Takes one of the node's endpoints out of service, or back into it. `Some(true)`: for good,
    /// its task is forgotten.
    pub(super) fn mark(&mut self, node: usize, task: &TaskId, mark: Option<bool>) {
        let endpoint = EndpointId::from(task);
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        let before = match mark {
            Some(orphan) => daemon.withdrawn.insert(endpoint.clone(), orphan),
            None => daemon.withdrawn.remove(&endpoint),
        };
        if before != mark {
            let Daemon { wanted, dirty, .. } = daemon;
            let concerned = wanted.values().filter(|table| table.endpoints.contains_key(&endpoint));
            dirty.extend(concerned.map(|table| table.network.clone()));
            self.pass_soon(node);
        }
    }

    pub(super) fn pass_soon(&mut self, node: usize) {
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        if daemon.dirty.is_empty() || !daemon.applying.is_empty() || daemon.pass_due {
            return;
        }
        daemon.pass_due = true;
        let wait = self.millis((0.02, 1.0));
        self.daemon_later(node, wait, DaemonEvent::Pass);
    }

    /// Takes every network to look at, as it is to be now.
    pub(super) fn begin_pass(&mut self, node: usize) {
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        daemon.pass_due = false;
        let Daemon { wanted, withdrawn, dirty, applying, in_force, .. } = daemon;
        if !applying.is_empty() {
            return;
        }
        let present = |id: &EndpointId| wanted.values().any(|table| table.endpoints.contains_key(id));
        withdrawn.retain(|id, orphan| !*orphan || present(id));
        let out = withdrawn.keys().cloned().collect();
        for network in std::mem::take(dirty) {
            let wish =
                wanted.get(&network).map(|sent| Wanted { sent: sent.clone(), served: sent.without(&out) });
            if wish.is_none() {
                // Nobody may still count on a network whose removal begins.
                in_force.remove(&network);
            }
            applying.push_back((network, wish));
        }
        self.apply_next(node);
    }

    fn apply_next(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let Some(daemon) = &mut machine.daemon else { return };
        let Some((network, wish)) = daemon.applying.front() else {
            self.tables_settled(node);
            return self.pass_soon(node);
        };
        // On disk before in force.
        match wish {
            Some(wish) => machine.disk.tables.insert(network.clone(), NetworkTable::clone(&wish.sent)),
            None => machine.disk.tables.remove(network),
        };
        let bound = if machine.slow { (500.0, 6_000.0) } else { self.weather.apply_ms };
        let slow = machine.slow;
        let work = self.millis(bound);
        if slow {
            self.disturb(node, self.now() + work);
        }
        let switch = work.mul_f64(self.rng.random_range(0.0..1.0));
        self.daemon_later(node, switch, DaemonEvent::Switch);
        self.daemon_later(node, work, DaemonEvent::Applied);
    }

    /// From here on the kernel goes by the table that is being applied.
    pub(super) fn switch_kernel(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let Some((network, wish)) = machine.daemon.as_ref().and_then(|daemon| daemon.applying.front()) else {
            return;
        };
        match wish {
            Some(wish) => machine.kernel.insert(network.clone(), wish.served.clone()),
            None => machine.kernel.remove(network),
        };
    }

    pub(super) fn applied(&mut self, node: usize) {
        let failed = self.chance(self.weather.failing_tables);
        let machine = &mut self.machines[node];
        let Some(daemon) = &mut machine.daemon else { return };
        let Some((network, wish)) = daemon.applying.pop_front() else { return };
        if failed {
            note!(self, "node {node} cannot bring {network} into force");
            daemon.dirty.insert(network);
            self.disturb(node, self.now());
            self.daemon_later(node, RETRY, DaemonEvent::Pass);
            return self.apply_next(node);
        }
        match wish {
            Some(wish) => {
                note!(self, "node {node} has {network} in force at {}", wish.served.version.revision);
                daemon.in_force.insert(network, wish.served.version);
            }
            None => {
                note!(self, "node {node} has {network} no more");
                daemon.in_force.remove(&network);
            }
        }
        self.acknowledge(node);
        self.wake_all(node);
        self.wake_plains(node);
        self.apply_next(node);
    }
}
