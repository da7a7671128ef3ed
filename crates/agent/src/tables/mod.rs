//! Network tables on their way into kernel and resolver.
//!
//! What the manager wants is kept apart from what is in force. One task works on the difference;
//! whatever comes in between, the newest wish is what it works towards.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoal_balancer::{Balancer, PortKey};
use shoal_model::{EndpointId, NetworkId, NetworkTable, TableDelta, TableMismatch, TableVersion};
use shoal_network::Fabric;
use shoal_resolver::Names;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::plan::{Held, Step};
use crate::resolver::Resolver;
use crate::store::NodeStore;
use crate::{Result, lock};

pub(crate) use self::plan::{ports, services};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(8);

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
}

/// One network as it is to be.
struct Wish {
    /// As the manager sent it: what is stored, and what deltas start from.
    sent: Arc<NetworkTable>,
    /// As this node serves it: without the endpoints it knows to be out of service.
    served: Arc<NetworkTable>,
}

pub(crate) struct Tables {
    wishes: std::sync::Mutex<Wishes>,
    wake: Notify,
    in_force: watch::Sender<InForce>,
    /// Changes whenever a network has been looked at.
    progress: watch::Sender<()>,
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

/// Everything a table takes effect in.
pub(crate) struct Effects {
    pub fabric: Fabric,
    pub balancer: Arc<Balancer>,
    pub resolver: Arc<Resolver>,
    pub store: NodeStore,
}

impl Tables {
    /// Starts from the tables a former process stored.
    pub(crate) fn new(stored: Vec<NetworkTable>) -> Self {
        let tables: BTreeMap<_, _> =
            stored.into_iter().map(|table| (table.network.clone(), Arc::new(table))).collect();
        let dirty = tables.keys().cloned().collect();
        Self {
            wishes: std::sync::Mutex::new(Wishes { tables, dirty, ..Wishes::default() }),
            wake: Notify::new(),
            in_force: watch::Sender::default(),
            progress: watch::Sender::default(),
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

    pub(crate) fn clear(&self) {
        let mut wishes = lock(&self.wishes);
        let networks: Vec<_> = std::mem::take(&mut wishes.tables).into_keys().collect();
        wishes.dirty.extend(networks);
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

    /// A table as the manager sent it last.
    #[cfg(test)]
    pub(crate) fn sent(&self, network: &NetworkId) -> Option<Arc<NetworkTable>> {
        lock(&self.wishes).tables.get(network).cloned()
    }

    /// The networks this node is to know.
    pub(crate) fn wanted(&self) -> HashSet<NetworkId> {
        lock(&self.wishes).tables.keys().cloned().collect()
    }

    /// Whether the tables of all these networks are in force, and meant to stay so. May become true
    /// whenever [`in_force`](Self::in_force) changes.
    pub(crate) fn are_ready<'a>(&self, mut networks: impl Iterator<Item = &'a NetworkId>) -> bool {
        let wishes = lock(&self.wishes);
        let in_force = self.in_force.borrow();
        networks.all(|network| wishes.tables.contains_key(network) && in_force.contains_key(network))
    }

    /// The tables in force, and their changes.
    pub(crate) fn in_force(&self) -> watch::Receiver<InForce> {
        self.in_force.subscribe()
    }

    /// Returns when no table is wanted, and nothing is left of any in kernel and resolver.
    pub(crate) async fn cleared(&self) {
        let mut progress = self.progress.subscribe();
        while !self.is_clear() && progress.changed().await.is_ok() {}
    }

    fn is_clear(&self) -> bool {
        let wishes = lock(&self.wishes);
        wishes.tables.is_empty() && wishes.dirty.is_empty() && wishes.at_work.is_empty()
    }

    /// Brings what is wanted into force until cancelled.
    pub(crate) async fn run(&self, effects: &Effects, closing: CancellationToken) {
        let mut held = self.sweep(effects).await;
        let mut failures = Failures::new();
        while closing.run_until_cancelled(self.pass(effects, &mut held, &mut failures)).await.is_some() {
            let next = failures.values().map(|failure| failure.not_before).min();
            let retry = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = retry => {}
                () = closing.cancelled() => {}
            }
        }
    }

    /// What the kernel's maps hold from a former process, sorted by network. Entries of no network
    /// we know are removed.
    async fn sweep(&self, effects: &Effects) -> BTreeMap<NetworkId, Held> {
        let mut held: BTreeMap<NetworkId, Held> = BTreeMap::new();
        let kernel = match effects.balancer.read_back() {
            Ok(kernel) => kernel,
            Err(error) => {
                tracing::warn!(%error, "the balancer's maps cannot be read back");
                return held;
            }
        };
        let tables = lock(&self.wishes).tables.clone();
        for (key, backends) in kernel.services {
            match tables.values().find(|table| table.config.vni == key.vni) {
                Some(table) => {
                    held.entry(table.network.clone()).or_default().services.insert(key, backends);
                }
                None => report("remove a stale virtual address", effects.balancer.remove_service(key)),
            }
        }
        let ingress = tables.values().find(|table| table.config.ingress);
        for key in kernel.ports.into_keys() {
            match ingress {
                Some(table) => {
                    held.entry(table.network.clone()).or_default().local_ports.insert(key);
                }
                None => report("remove a stale port", effects.balancer.remove_port(key)),
            }
        }
        held
    }

    /// One look at every network to look at, and at one of those that failed before.
    async fn pass(&self, effects: &Effects, held: &mut BTreeMap<NetworkId, Held>, failures: &mut Failures) {
        let (wishes, dead) = self.take(failures, Instant::now());
        for (network, wish) in wishes {
            let state = held.entry(network.clone()).or_default();
            if let Err(error) = bring_into_force(effects, &network, state, wish.as_ref(), &dead).await {
                tracing::warn!(%network, %error, "network table not in force yet, trying again");
                let failure = Failure::after(failures.get(&network).copied(), Instant::now());
                failures.insert(network.clone(), failure);
                self.done(network, false);
                continue;
            }
            failures.remove(&network);
            if wish.is_none() {
                held.remove(&network);
            }
            self.publish(network.clone(), wish.map(|wish| wish.served));
            self.done(network, true);
        }
    }

    fn done(&self, network: NetworkId, well: bool) {
        let mut wishes = lock(&self.wishes);
        wishes.at_work.remove(&network);
        if !well {
            wishes.dirty.insert(network);
        }
        self.progress.send_replace(());
    }

    /// The networks to look at as they are to be, and this node's dead endpoints. Of those that
    /// failed only the one that is due longest, and last: it may take its time again.
    fn take(
        &self,
        failures: &Failures,
        now: Instant,
    ) -> (Vec<(NetworkId, Option<Wish>)>, BTreeSet<EndpointId>) {
        let mut wishes = lock(&self.wishes);
        let Wishes { tables, marks, dirty, at_work } = &mut *wishes;
        marks
            .retain(|id, mark| !mark.orphan || tables.values().any(|table| table.endpoints.contains_key(id)));
        let withdrawn: BTreeSet<EndpointId> = marks.keys().cloned().collect();
        let dead = marks.iter().filter(|(_, mark)| mark.dead).map(|(id, _)| id.clone()).collect();
        let wish = |sent: &Arc<NetworkTable>| {
            let concerned = withdrawn.iter().any(|id| sent.endpoints.contains_key(id));
            let served = if concerned { Arc::new(sent.without(&withdrawn)) } else { sent.clone() };
            Wish { sent: sent.clone(), served }
        };
        let (failed, mut networks): (Vec<_>, Vec<_>) =
            std::mem::take(dirty).into_iter().partition(|network| failures.contains_key(network));
        let due = |network: &&NetworkId| failures.get(*network).map(|failure| failure.not_before);
        let retried = failed.iter().filter(|network| due(network) <= Some(now)).min_by_key(due).cloned();
        dirty.extend(failed.into_iter().filter(|network| Some(network) != retried.as_ref()));
        networks.extend(retried);
        at_work.extend(networks.iter().cloned());
        for network in networks.iter().filter(|network| !tables.contains_key(*network)) {
            // Under the lock: nobody may still count on a network whose removal begins.
            self.publish(network.clone(), None);
        }
        (networks.into_iter().map(|id| (id.clone(), tables.get(&id).map(wish))).collect(), dead)
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

/// Performs one network's plan, noting in `held` what has been done.
async fn bring_into_force(
    effects: &Effects,
    network: &NetworkId,
    held: &mut Held,
    wish: Option<&Wish>,
    dead: &BTreeSet<EndpointId>,
) -> Result<()> {
    let wanted = wish.map(|wish| &*wish.served);
    let steps = plan::plan(held, wanted, dead);
    if steps.is_empty() {
        return Ok(());
    }
    // On disk before in force: a restarted agent must not go back behind what it has acknowledged.
    match wish {
        Some(wish) => effects.store.put_table(&wish.sent).await?,
        None => effects.store.remove_table(network).await?,
    }
    for step in steps {
        perform(effects, network, held, wanted, step).await?;
    }
    held.released = plan::gone(held, wanted, dead);
    held.table = wanted.cloned();
    Ok(())
}

async fn perform(
    effects: &Effects,
    network: &NetworkId,
    held: &mut Held,
    wanted: Option<&NetworkTable>,
    step: Step,
) -> Result<()> {
    let Effects { fabric, balancer, resolver, .. } = effects;
    match (step, wanted) {
        (Step::ApplyFabric, Some(table)) => fabric.apply_network(table).await?,
        (Step::PruneFabric, Some(table)) => fabric.prune_network(table).await?,
        (Step::SetNames, Some(table)) => resolver.set_names(Names::from_table(table)).await?,
        (Step::ApplyFabric | Step::PruneFabric | Step::SetNames, None) => {}
        (Step::RemoveFabric, _) => fabric.remove_network(network).await?,
        (Step::RemoveNames, _) => resolver.remove_names(network).await?,
        (Step::SetService(key, backends), _) => {
            balancer.set_service(key, &backends)?;
            held.services.insert(key, backends);
        }
        (Step::RemoveService(key), _) => {
            balancer.remove_service(key)?;
            held.services.remove(&key);
        }
        (Step::AcceptPorts(ports), _) => {
            fabric.apply_ports(&ports).await?;
            held.ports = ports;
        }
        (Step::SetPort(key, backends), _) => {
            balancer.set_port(key, &backends)?;
            held.local_ports.insert(key);
        }
        (Step::RemovePort(key), _) => {
            balancer.remove_port(key)?;
            held.local_ports.remove(&key);
        }
        (Step::Release(address), _) => {
            release(effects, network, wanted.or(held.table.as_ref()), address).await;
            held.released.insert(address);
        }
    }
    Ok(())
}

/// Resets what this node's clients have open to a dead address, so that they connect anew at once.
async fn release(effects: &Effects, network: &NetworkId, table: Option<&NetworkTable>, address: IpAddr) {
    let mut namespaces: Vec<_> = effects
        .resolver
        .served()
        .into_iter()
        .filter(|served| served.view.networks.contains(network))
        .map(|served| served.view.netns)
        .collect();
    if table.is_some_and(|table| table.config.ingress) {
        // Clients on the node itself are led to the tasks at connect time.
        namespaces.push(Path::new("/proc/self/ns/net").to_owned());
    }
    let destroyed = tokio::task::spawn_blocking(move || {
        for netns in namespaces {
            match shoal_balancer::destroy_sockets(&netns, address) {
                Ok(count) => tracing::debug!(netns = %netns.display(), %address, count, "reset sockets"),
                Err(error) => {
                    tracing::debug!(netns = %netns.display(), %address, %error, "cannot reset sockets")
                }
            }
        }
    });
    let (_, forgotten) = tokio::join!(destroyed, effects.fabric.forget_flows(address));
    report("forget flows to a dead address", forgotten);
}

fn report<E: std::fmt::Display>(what: &str, outcome: Result<(), E>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot {what}");
    }
}

/// Every port key of a table, for reports.
pub(crate) fn port_keys(table: &NetworkTable) -> BTreeSet<PortKey> {
    ports(table).into_keys().map(|(protocol, port)| PortKey { protocol, port }).collect()
}

#[cfg(test)]
mod tests;
