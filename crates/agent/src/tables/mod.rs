//! Network tables on their way into kernel and resolver.
//!
//! What the manager wants is kept apart from what is in force. The difference is worked on network by
//! network, independently of each other; whatever comes in between, the newest wish is what it is
//! worked towards.

mod plan;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{
    EndpointId, NetworkId, NetworkTable, Port, Protocol, TableConfig, TableDelta, TableMismatch, TableVersion,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::published::{PortsHeld, Published};
use crate::{Result, lock};

pub(crate) use self::plan::{Own, local_ports, ports, services};
pub(crate) use self::work::Effects;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(8);
/// Networks worked on at once.
const AT_ONCE: usize = 32;
/// Of those, networks that failed before: each may take its time again.
const RETRIES_AT_ONCE: usize = 8;

/// The tables in force, as this node serves them.
pub(crate) type InForce = Arc<BTreeMap<NetworkId, Arc<NetworkTable>>>;

/// What this node knows of one of its own endpoints before the manager does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Nobody will answer there again; otherwise it only takes no new connection.
    pub dead: bool,
    /// Its task is forgotten: the mark goes when the tables no longer hold the endpoint.
    pub orphan: bool,
}

#[derive(Default)]
struct Wishes {
    /// As the manager sent them.
    tables: BTreeMap<NetworkId, Arc<NetworkTable>>,
    marks: BTreeMap<EndpointId, Mark>,
    /// Networks to look at again.
    dirty: BTreeSet<NetworkId>,
    /// Networks being looked at.
    at_work: BTreeSet<NetworkId>,
    /// Networks of which kernel and resolver do not hold what is believed.
    doubted: BTreeSet<NetworkId>,
    /// The network that carries published ports, until nothing is left of it: its links and ports have one
    /// place on a node, so that the next one has to wait for it.
    ingress: Option<NetworkId>,
    published: Published,
    /// Why networks cannot be built here.
    obstacles: BTreeMap<NetworkId, String>,
}

/// One network as it is to be.
struct Wish {
    /// As the manager sent it: what is stored, and what deltas start from.
    sent: Arc<NetworkTable>,
    /// As this node serves it: without the endpoints it knows to be out of service, without the ports that
    /// other programs have, and with what only the node itself knows of the network.
    served: Arc<NetworkTable>,
}

pub(crate) struct Tables {
    wishes: std::sync::Mutex<Wishes>,
    wake: Notify,
    in_force: watch::Sender<InForce>,
    /// Changes whenever a network has been looked at.
    progress: watch::Sender<()>,
    ports_held: watch::Sender<PortsHeld>,
}

/// A network that could not be brought into force, and is left alone for a while.
#[derive(Debug, Clone, Copy)]
struct Failure {
    not_before: Instant,
    pause: Duration,
}

type Failures = BTreeMap<NetworkId, Failure>;

impl Failure {
    fn after(former: Option<Self>, now: Instant) -> Self {
        let pause = former.map_or(RETRY_FIRST, |former| (former.pause * 2).min(RETRY_MAX));
        Self { not_before: now + pause, pause }
    }
}

/// How work on one network ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    InForce,
    Gone,
    Failed,
}

/// What is to be done about one network.
pub(crate) struct Job {
    network: NetworkId,
    /// `None`: take it away.
    wish: Option<Wish>,
    /// This node's endpoints that will never answer again.
    dead: Arc<BTreeSet<EndpointId>>,
    /// Why the node cannot build it; found out with the work.
    obstacle: Option<String>,
    /// Begin with a look at what kernel and resolver really hold.
    doubted: bool,
}

impl Tables {
    /// Starts from the tables a former process stored.
    pub(crate) fn new(stored: Vec<NetworkTable>) -> Self {
        let tables: BTreeMap<_, _> =
            stored.into_iter().map(|table| (table.network.clone(), Arc::new(table))).collect();
        let dirty = tables.keys().cloned().collect();
        let ingress = tables.values().find(|table| table.config.ingress).map(|table| table.network.clone());
        Self {
            wishes: std::sync::Mutex::new(Wishes { tables, dirty, ingress, ..Wishes::default() }),
            wake: Notify::new(),
            in_force: watch::Sender::default(),
            progress: watch::Sender::default(),
            ports_held: watch::Sender::default(),
        }
    }

    /// A snapshot from the manager.
    pub(crate) fn put(&self, table: NetworkTable) {
        let mut wishes = lock(&self.wishes);
        wishes.dirty.insert(table.network.clone());
        wishes.tables.insert(table.network.clone(), Arc::new(table));
        self.wake.notify_one();
        // For those who wait for `are_ready`: this very table may be in force still.
        self.in_force.send_modify(|_| {});
    }

    /// A delta from the manager. On a mismatch nothing changes and a snapshot must be asked for.
    pub(crate) fn apply(&self, delta: &TableDelta) -> Result<(), TableMismatch> {
        let mut wishes = lock(&self.wishes);
        match wishes.tables.get_mut(&delta.network) {
            Some(table) => Arc::make_mut(table).apply(delta)?,
            None => {
                return Err(TableMismatch {
                    network: delta.network.clone(),
                    from: delta.from,
                    held: TableVersion::default(),
                });
            }
        }
        wishes.dirty.insert(delta.network.clone());
        self.wake.notify_one();
        Ok(())
    }

    /// The node has no endpoint on this network any more.
    pub(crate) fn remove(&self, network: &NetworkId) {
        let mut wishes = lock(&self.wishes);
        wishes.tables.remove(network);
        wishes.dirty.insert(network.clone());
        self.wake.notify_one();
    }

    /// The cluster is left: nothing of what a manager sent is wanted any more.
    pub(crate) fn clear(&self) {
        let mut wishes = lock(&self.wishes);
        let (kept, given) =
            std::mem::take(&mut wishes.tables).into_iter().partition(|(_, table)| table.config.is_local());
        wishes.tables = kept;
        let given: BTreeMap<_, _> = given;
        wishes.dirty.extend(given.into_keys());
        wishes.marks.clear();
        self.wake.notify_one();
    }

    /// Takes one of this node's endpoints out of service, or back into it.
    pub(crate) fn mark(&self, endpoint: EndpointId, mark: Option<Mark>) {
        let mut wishes = lock(&self.wishes);
        let before = match mark {
            Some(mark) => wishes.marks.insert(endpoint.clone(), mark),
            None => wishes.marks.remove(&endpoint),
        };
        if before != mark {
            let Wishes { tables, dirty, .. } = &mut *wishes;
            let concerned = tables.values().filter(|table| table.endpoints.contains_key(&endpoint));
            dirty.extend(concerned.map(|table| table.network.clone()));
            self.wake.notify_one();
        }
    }

    /// All of them as they were sent last.
    pub(crate) fn sent_tables(&self) -> BTreeMap<NetworkId, Arc<NetworkTable>> {
        lock(&self.wishes).tables.clone()
    }

    /// A table as the manager sent it last.
    #[cfg(test)]
    pub(crate) fn sent(&self, network: &NetworkId) -> Option<Arc<NetworkTable>> {
        lock(&self.wishes).tables.get(network).cloned()
    }

    /// The network that carries published ports.
    pub(crate) fn ingress(&self) -> Option<NetworkId> {
        let wishes = lock(&self.wishes);
        wishes.tables.values().find(|table| table.config.ingress).map(|table| table.network.clone())
    }

    /// The ports of the routing mesh.
    pub(crate) fn published(&self) -> BTreeSet<(Protocol, u16)> {
        let wishes = lock(&self.wishes);
        wishes.tables.values().flat_map(|table| plan::published(table)).collect()
    }

    /// The networks this node is to know.
    pub(crate) fn wanted(&self) -> HashSet<NetworkId> {
        lock(&self.wishes).tables.keys().cloned().collect()
    }

    /// Those of them that a manager sent.
    pub(crate) fn of_cluster(&self) -> HashSet<NetworkId> {
        let wishes = lock(&self.wishes);
        let sent = wishes.tables.iter().filter(|(_, table)| !table.config.is_local());
        sent.map(|(network, _)| network.clone()).collect()
    }

    /// Whether the tables of all these networks are in force with this endpoint in them, and meant to stay
    /// so. An older one, from before the endpoint was given its place, may be of a time when nobody waited
    /// for this node: addresses in it may be others' by now. May become true whenever
    /// [`in_force`](Self::in_force) changes.
    pub(crate) fn are_ready<'a>(
        &self,
        endpoint: &EndpointId,
        mut networks: impl Iterator<Item = &'a NetworkId>,
    ) -> bool {
        let wishes = lock(&self.wishes);
        let in_force = self.in_force.borrow();
        networks.all(|network| {
            let table = in_force.get(network).filter(|_| wishes.tables.contains_key(network));
            table.is_some_and(|table| table.endpoints.contains_key(endpoint))
        })
    }

    /// Waits until they are. Nobody may look from within a watcher's `wait_for`: that holds the tables in force,
    /// and `are_ready` takes the lock that whoever wants to change them holds.
    pub(crate) async fn ready(&self, endpoint: &EndpointId, networks: &[NetworkId]) {
        let mut changes = self.in_force();
        while !self.are_ready(endpoint, networks.iter()) && changes.changed().await.is_ok() {}
    }

    /// The tables in force, and their changes.
    pub(crate) fn in_force(&self) -> watch::Receiver<InForce> {
        self.in_force.subscribe()
    }

    /// Returns when nothing is to be done about a network any more.
    pub(crate) async fn in_effect(&self, network: &NetworkId) {
        let mut progress = self.progress.subscribe();
        let pending = || {
            let wishes = lock(&self.wishes);
            wishes.dirty.contains(network) || wishes.at_work.contains(network)
        };
        while pending() && progress.changed().await.is_ok() {}
    }

    /// Returns when no table of a manager's is wanted, and nothing is left of any in kernel and resolver.
    pub(crate) async fn cleared(&self) {
        let mut progress = self.progress.subscribe();
        while !self.is_clear() && progress.changed().await.is_ok() {}
    }

    /// A network's table, if it is in force and nothing about it is being changed or about to be.
    pub(crate) fn settled(&self, network: &NetworkId) -> Option<Arc<NetworkTable>> {
        let wishes = lock(&self.wishes);
        let busy = wishes.dirty.contains(network) || wishes.at_work.contains(network);
        let in_force = self.in_force.borrow();
        in_force.get(network).filter(|_| !busy).cloned()
    }

    /// Some of these networks is wanted.
    pub(crate) fn any(&self, of_these: impl Fn(&TableConfig) -> bool) -> bool {
        lock(&self.wishes).tables.values().any(|table| of_these(&table.config))
    }

    /// The node is not what it was: these networks are looked at again.
    pub(crate) fn look_again_at(&self, these: impl Fn(&TableConfig) -> bool) {
        let mut wishes = lock(&self.wishes);
        let Wishes { tables, dirty, .. } = &mut *wishes;
        let concerned = tables.values().filter(|table| these(&table.config));
        dirty.extend(concerned.map(|table| table.network.clone()));
        self.wake.notify_one();
    }

    /// Brings these networks into force anew, from what kernel and resolver really hold. Returns when
    /// each has been looked at.
    pub(crate) async fn renew(&self, networks: &BTreeSet<NetworkId>) {
        let mut progress = self.progress.subscribe();
        {
            let mut wishes = lock(&self.wishes);
            wishes.doubted.extend(networks.iter().cloned());
            wishes.dirty.extend(networks.iter().cloned());
            self.wake.notify_one();
        }
        let pending = || {
            let wishes = lock(&self.wishes);
            !networks.is_disjoint(&wishes.doubted) || !networks.is_disjoint(&wishes.at_work)
        };
        while pending() && progress.changed().await.is_ok() {}
    }

    fn is_clear(&self) -> bool {
        let wishes = lock(&self.wishes);
        let all_local = wishes.tables.values().all(|table| table.config.is_local());
        all_local && wishes.dirty.is_empty() && wishes.at_work.is_empty()
    }

    fn note(&self, network: &NetworkId, obstacle: Option<String>) {
        let mut wishes = lock(&self.wishes);
        let before = match &obstacle {
            Some(text) => wishes.obstacles.insert(network.clone(), text.clone()),
            None => wishes.obstacles.remove(network),
        };
        if let Some(text) = obstacle.filter(|text| before.as_ref() != Some(text)) {
            tracing::warn!(%network, reason = text, "a network of the cluster cannot be built on this node");
        }
    }

    /// Why one of these networks cannot be built on this node.
    pub(crate) fn obstacle<'a>(&self, mut networks: impl Iterator<Item = &'a NetworkId>) -> Option<String> {
        let wishes = lock(&self.wishes);
        networks.find_map(|network| wishes.obstacles.get(network).cloned())
    }

    fn done(&self, network: NetworkId, outcome: Outcome) {
        let mut wishes = lock(&self.wishes);
        wishes.at_work.remove(&network);
        if outcome != Outcome::Failed && wishes.ingress.as_ref() == Some(&network) {
            let in_force = self.in_force.borrow().get(&network).cloned();
            wishes.published.settle(in_force.as_deref());
            self.show_ports(&wishes.published);
        }
        match outcome {
            Outcome::InForce => {}
            Outcome::Gone => {
                wishes.ingress.take_if(|ingress| *ingress == network);
            }
            Outcome::Failed => {
                wishes.dirty.insert(network);
            }
        }
        self.progress.send_replace(());
    }

    /// The networks to work on now. Those that failed wait for their time, and never take every place.
    fn take(&self, failures: &Failures, now: Instant) -> Vec<Job> {
        let mut wishes = lock(&self.wishes);
        let Wishes { tables, marks, dirty, at_work, doubted, ingress, published, .. } = &mut *wishes;
        marks
            .retain(|id, mark| !mark.orphan || tables.values().any(|table| table.endpoints.contains_key(id)));
        let withdrawn: BTreeSet<EndpointId> = marks.keys().cloned().collect();
        let dead = marks.iter().filter(|(_, mark)| mark.dead).map(|(id, _)| id.clone()).collect();
        let dead: Arc<BTreeSet<EndpointId>> = Arc::new(dead);
        let mut wish = |sent: &Arc<NetworkTable>| {
            let concerned = withdrawn.iter().any(|id| sent.endpoints.contains_key(id));
            let served = if concerned { Arc::new(sent.without(&withdrawn)) } else { sent.clone() };
            Wish { sent: sent.clone(), served: published.serve(served) }
        };
        let carries_ports =
            |network: &NetworkId| tables.get(network).is_some_and(|table| table.config.ingress);
        let is_free = |network: &&NetworkId| {
            !carries_ports(network) || ingress.as_ref().is_none_or(|held| held == *network)
        };
        let waiting = dirty.iter().filter(is_free).cloned().collect();
        let networks = next(&waiting, at_work, failures, now);
        dirty.retain(|network| !networks.contains(network));
        at_work.extend(networks.iter().cloned());
        if let Some(network) = networks.iter().find(|network| carries_ports(network)) {
            *ingress = Some(network.clone());
        }
        for network in networks.iter().filter(|network| !tables.contains_key(*network)) {
            // Under the lock: nobody may still count on a network whose removal begins.
            self.publish(network.clone(), None);
        }
        let job = |network: NetworkId| Job {
            wish: tables.get(&network).map(&mut wish),
            dead: dead.clone(),
            obstacle: None,
            doubted: doubted.remove(&network),
            network,
        };
        let jobs = networks.into_iter().map(job).collect();
        self.show_ports(&wishes.published);
        jobs
    }

    fn show_ports(&self, published: &Published) {
        let standing = published.standing();
        self.ports_held.send_if_modified(|shown| {
            let changed = *shown != standing;
            *shown = standing;
            changed
        });
    }

    /// How it stands with the published ports on this node, and how that changes.
    pub(crate) fn ports_held(&self) -> watch::Receiver<PortsHeld> {
        self.ports_held.subscribe()
    }

    /// Looks whether published ports that could not be held have become free, or others' by now.
    pub(crate) fn retry_ports(&self) {
        let mut wishes = lock(&self.wishes);
        if wishes.published.retry()
            && let Some(network) = wishes.ingress.clone()
        {
            wishes.dirty.insert(network);
            self.wake.notify_one();
        }
        self.show_ports(&wishes.published);
    }

    /// These ports are to be had by a task of this node alone.
    pub(crate) fn give_up_ports(&self, ports: impl Iterator<Item = Port>) {
        let mut wishes = lock(&self.wishes);
        ports.for_each(|port| wishes.published.give_up(port));
        self.show_ports(&wishes.published);
    }

    /// Tells everybody what is in force of one network; `None`: it is gone.
    pub(crate) fn publish(&self, network: NetworkId, table: Option<Arc<NetworkTable>>) {
        self.in_force.send_if_modified(|in_force| {
            if in_force.get(&network) == table.as_ref() {
                return false;
            }
            let tables = Arc::make_mut(in_force);
            match table {
                Some(table) => tables.insert(network, table),
                None => tables.remove(&network),
            };
            true
        });
    }
}

/// Which of the networks to look at come next: first those that did not fail, then those that did and
/// are due longest.
fn next(
    dirty: &BTreeSet<NetworkId>,
    at_work: &BTreeSet<NetworkId>,
    failures: &Failures,
    now: Instant,
) -> Vec<NetworkId> {
    let free = AT_ONCE.saturating_sub(at_work.len());
    let retried = at_work.iter().filter(|network| failures.contains_key(*network)).count();
    let waiting = dirty.iter().filter(|network| !at_work.contains(*network));
    let (failed, mut networks): (Vec<_>, Vec<_>) =
        waiting.cloned().partition(|network| failures.contains_key(network));
    let mut due: Vec<_> = failed
        .into_iter()
        .filter_map(|network| Some((failures.get(&network)?.not_before, network)))
        .filter(|(at, _)| *at <= now)
        .collect();
    due.sort();
    due.truncate(RETRIES_AT_ONCE.saturating_sub(retried));
    networks.extend(due.into_iter().map(|(_, network)| network));
    networks.truncate(free);
    networks
}

#[cfg(test)]
mod tests;
