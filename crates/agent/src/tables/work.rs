//! The work on network tables: each network's difference between what is wanted and what is held, on
//! its own, so that one that is slow or fails keeps no other waiting.
//!
//! Within one network the order is the plan's. What networks share (the node's nft tables, the
//! balancer's maps, the resolver's feed) has one writer each, which takes changes one at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_balancer::Balancer;
use shoal_model::{NetworkId, NetworkTable};
use shoal_network::{Fabric, Ports};
use shoal_resolver::Names;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::{self, Held, Own, Step};
use super::{AT_ONCE, Failure, Failures, Job, Outcome, RETRIES_AT_ONCE, Tables};
use crate::host_ports::HostPorts;
use crate::local::{self, Locals};
use crate::resolver::Resolver;
use crate::store::NodeStore;
use crate::{Membership, Result, lock};

/// Everything a table takes effect in.
pub(crate) struct Effects {
    pub fabric: Fabric,
    pub balancer: Arc<Balancer>,
    pub resolver: Arc<Resolver>,
    pub store: NodeStore,
    /// Who has the other ports in the balancer's map.
    pub host_ports: Arc<HostPorts>,
    /// What the node knows of networks itself.
    pub locals: Arc<Locals>,
    pub membership: watch::Receiver<Option<Membership>>,
}

impl Effects {
    fn own(&self) -> Own {
        let node = self.membership.borrow().as_ref().map(|member| member.node.clone());
        Own { node, links: self.fabric.own_network().borrow().links.clone() }
    }
}

/// What tables take effect in, as the work on them sees it.
pub(crate) trait Force {
    /// What is left in force from a former process, by network; what belongs to none of these is
    /// removed.
    fn sweep(&self, tables: &BTreeMap<NetworkId, Arc<NetworkTable>>) -> BTreeMap<NetworkId, Held>;

    /// A table with what only the node itself knows of its network. What the node cannot build, and why: then
    /// none of its own is on the network, but its names are served, and nobody waits for the node.
    fn on_this_node(
        &self,
        table: Arc<NetworkTable>,
    ) -> impl Future<Output = (Arc<NetworkTable>, Option<String>)> + Send;

    /// Does one job to its end, noting in `held` what has been done.
    fn perform(&self, job: &Job, held: &mut Held) -> impl Future<Output = Result<()>> + Send;
}

/// A job that has been worked on.
struct Worked {
    job: Job,
    held: Held,
    outcome: Result<()>,
}

async fn work(force: &impl Force, mut job: Job, mut held: Held) -> Worked {
    job.obstacle = None;
    if let Some(wish) = &mut job.wish {
        (wish.served, job.obstacle) = force.on_this_node(wish.served.clone()).await;
    }
    let outcome = force.perform(&job, &mut held).await;
    Worked { job, held, outcome }
}

impl Tables {
    /// Brings what is wanted into force until cancelled.
    pub(crate) async fn run(&self, force: &impl Force, closing: CancellationToken) {
        let stored = lock(&self.wishes).tables.clone();
        let mut held = force.sweep(&stored);
        let mut failures = Failures::new();
        let mut at_work = FuturesUnordered::new();
        loop {
            for job in self.take(&failures, Instant::now()) {
                let held = held.remove(&job.network).unwrap_or_default();
                at_work.push(work(force, job, held));
            }
            let due = self.next_retry(&failures);
            let retry = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(worked) = at_work.next() => self.settle(worked, &mut held, &mut failures),
                () = self.wake.notified() => {}
                () = retry => {}
                () = closing.cancelled() => return,
            }
        }
    }

    /// When the next of the networks that failed is to be looked at again; `None` also while there is
    /// no place for it.
    fn next_retry(&self, failures: &Failures) -> Option<Instant> {
        let wishes = lock(&self.wishes);
        let (at_work, waiting): (Vec<_>, Vec<_>) =
            failures.iter().partition(|(network, _)| wishes.at_work.contains(*network));
        let is_full = at_work.len() >= RETRIES_AT_ONCE || wishes.at_work.len() >= AT_ONCE;
        waiting.iter().map(|(_, failure)| failure.not_before).min().filter(|_| !is_full)
    }

    fn settle(&self, worked: Worked, held: &mut BTreeMap<NetworkId, Held>, failures: &mut Failures) {
        let Worked { job: Job { network, wish, obstacle, .. }, held: now_held, outcome } = worked;
        self.note(&network, obstacle);
        if let Err(error) = outcome {
            tracing::warn!(%network, %error, "network table not in force yet, trying again");
            let failure = Failure::after(failures.get(&network).copied(), Instant::now());
            failures.insert(network.clone(), failure);
            held.insert(network.clone(), now_held);
            self.done(network, Outcome::Failed);
            return;
        }
        failures.remove(&network);
        let outcome = if wish.is_some() { Outcome::InForce } else { Outcome::Gone };
        if outcome == Outcome::InForce {
            held.insert(network.clone(), now_held);
        }
        self.publish(network.clone(), wish.map(|wish| wish.served));
        self.done(network, outcome);
    }
}

impl Force for Effects {
    /// What the kernel's maps hold from a former process, sorted by network. Entries of no network
    /// we know are removed.
    fn sweep(&self, tables: &BTreeMap<NetworkId, Arc<NetworkTable>>) -> BTreeMap<NetworkId, Held> {
        let mut held: BTreeMap<NetworkId, Held> = BTreeMap::new();
        let kernel = match self.balancer.read_back() {
            Ok(kernel) => kernel,
            Err(error) => {
                tracing::warn!(%error, "the balancer's maps cannot be read back");
                return held;
            }
        };
        for (key, backends) in kernel.services {
            match tables.values().find(|table| table.config.vni == key.vni) {
                Some(table) => {
                    held.entry(table.network.clone()).or_default().services.insert(key, backends);
                }
                None => report("remove a stale virtual address", self.balancer.remove_service(key)),
            }
        }
        let ingress = tables.values().find(|table| table.config.ingress);
        let others = self.host_ports.keys();
        for (key, backends) in kernel.ports.into_iter().filter(|(key, _)| !others.contains(key)) {
            match ingress {
                Some(table) => {
                    held.entry(table.network.clone()).or_default().local_ports.insert(key, backends);
                }
                None => report("remove a stale port", self.balancer.remove_port(key)),
            }
        }
        held
    }

    async fn on_this_node(&self, table: Arc<NetworkTable>) -> (Arc<NetworkTable>, Option<String>) {
        if table.config.is_local() || table.config.is_overlay() {
            return (table, None);
        }
        let node = self.membership.borrow().as_ref().map(|member| member.node.clone());
        let table = self.locals.on_this_node(&table, node.as_ref());
        let obstacle = match self.locals.clash(&table.config) {
            Some(text) => Some(text),
            // What cannot be found out now shows when it is built.
            None => self.fabric.obstacle(&table).await.ok().flatten().map(|error| error.to_string()),
        };
        let table = if obstacle.is_some() { local::unbuilt(table, node.as_ref()) } else { table };
        (Arc::new(table), obstacle)
    }

    async fn perform(&self, job: &Job, held: &mut Held) -> Result<()> {
        bring_into_force(self, job, held).await
    }
}

/// Performs one network's plan, noting in `held` what has been done.
async fn bring_into_force(effects: &Effects, job: &Job, held: &mut Held) -> Result<()> {
    let Job { network, wish, dead, doubted, .. } = job;
    let wish = wish.as_ref();
    let wanted = wish.map(|wish| &*wish.served);
    if *doubted {
        look_again(effects, network, held, wanted).await?;
    }
    let steps = plan::plan(held, wanted, dead, &effects.own());
    if steps.is_empty() && !held.unsaved {
        return Ok(());
    }
    // On disk before it is called in force: a restarted agent must not go back behind what it has acknowledged. A
    // full disk keeps nothing from taking effect, but from being acknowledged.
    let saved = match wish {
        // What it follows from is on disk already.
        Some(wish) if wish.sent.config.is_local() => Ok(()),
        Some(wish) => effects.store.put_table(&wish.sent).await,
        None => effects.store.remove_table(network).await,
    };
    for step in steps {
        perform(effects, network, held, wanted, step).await?;
    }
    held.released = plan::gone(held, wanted, dead);
    held.table = wanted.cloned();
    held.doubted = false;
    held.unsaved = saved.is_err();
    saved
}

/// Takes what the kernel really holds of a network for what is held.
async fn look_again(
    effects: &Effects,
    network: &NetworkId,
    held: &mut Held,
    wanted: Option<&NetworkTable>,
) -> Result<()> {
    held.doubted = true;
    effects.fabric.distrust(network).await;
    let Some(table) = wanted else { return Ok(()) };
    let kernel = effects.balancer.read_back()?;
    held.services = kernel.services.into_iter().filter(|(key, _)| key.vni == table.config.vni).collect();
    if table.config.ingress {
        // All of it is put again, whatever the kernel holds.
        held.ports = Ports::new();
        let others = effects.host_ports.keys();
        held.local_ports = kernel.ports.into_iter().filter(|(key, _)| !others.contains(key)).collect();
    }
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
            held.local_ports.insert(key, backends);
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
