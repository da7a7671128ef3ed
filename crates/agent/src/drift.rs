//! Truth is checked, not assumed: looks at kernel and resolver again and again, and has whatever
//! differs from the tables in force made anew, by those who made it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_model::{ContainerId, DriftCounts, KindCounts, NetworkId, TaskId};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::node::Node;
use crate::runner::Order;
use crate::tables::InForce;
use crate::verify::{self, Finding, Kind, Place};
use crate::{Result, lock};

/// Changes have settled when none has come for so long.
const QUIET: Duration = Duration::from_millis(500);
/// At most one part in this many of the time is spent on looking.
const SHARE: u32 = 20;
/// Until everything that is made anew has been made.
const REPAIR_BOUND: Duration = Duration::from_secs(30);
/// Differences of one kind in one place that are logged one by one.
const LOGGED_MAX: usize = 4;

/// What the node has found so far.
#[derive(Default)]
pub(crate) struct Drift {
    counters: Mutex<Counters>,
    /// Look now.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Counters {
    looks: u64,
    look: Duration,
    kinds: BTreeMap<Kind, KindCounts>,
    networks: BTreeMap<NetworkId, KindCounts>,
    /// Found, counted, and not repaired yet.
    open: BTreeSet<Finding>,
}

impl Counters {
    /// Counts what was not known; returns it.
    fn found(&mut self, confirmed: &BTreeSet<Finding>) -> Vec<Finding> {
        let new: Vec<Finding> = confirmed.difference(&self.open).cloned().collect();
        for finding in &new {
            self.count(finding, |counts| counts.found += 1);
        }
        self.open.extend(new.iter().cloned());
        new
    }

    /// Whatever a look does not see any more has been repaired; returns how many that are.
    fn remaining(&mut self, seen: &BTreeSet<Finding>, unseen: &BTreeSet<Place>) -> usize {
        let gone = self.open.difference(seen).filter(|finding| !unseen.contains(&finding.place));
        let gone: Vec<Finding> = gone.cloned().collect();
        for finding in &gone {
            self.count(finding, |counts| counts.repaired += 1);
            self.open.remove(finding);
        }
        gone.len()
    }

    fn count(&mut self, finding: &Finding, change: impl Fn(&mut KindCounts)) {
        change(self.kinds.entry(finding.kind).or_default());
        if let Place::Network(network) = &finding.place {
            change(self.networks.entry(network.clone()).or_default());
        }
    }
}

impl Drift {
    /// The next look comes at once.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    pub(crate) fn counts(&self) -> DriftCounts {
        let counters = lock(&self.counters);
        let sum = |part: fn(&KindCounts) -> u64| counters.kinds.values().map(part).sum();
        DriftCounts {
            looks: counters.looks,
            look_micros: u64::try_from(counters.look.as_micros()).unwrap_or(u64::MAX),
            found: sum(|counts| counts.found),
            repaired: sum(|counts| counts.repaired),
            open: counters.open.len() as u64,
            kinds: counters.kinds.iter().map(|(kind, counts)| (kind.as_str().to_owned(), *counts)).collect(),
        }
    }

    /// Found and repaired on one network.
    pub(crate) fn of_network(&self, network: &NetworkId) -> (u64, u64) {
        let counts = lock(&self.counters).networks.get(network).copied().unwrap_or_default();
        (counts.found, counts.repaired)
    }
}

/// Looks and repairs until the node closes; never, with a period of zero.
pub(crate) async fn watch(node: Arc<Node>) {
    let period = node.config.verify_period;
    if period.is_zero() {
        return;
    }
    let mut in_force = node.tables.in_force();
    let mut pause = QUIET;
    while node.closing.run_until_cancelled(next(&node.drift, &mut in_force, period, pause)).await.is_some() {
        let begun = Instant::now();
        match node.closing.run_until_cancelled(check(&node)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "cannot look at what kernel and resolver hold"),
        }
        let looked = lock(&node.drift.counters).look.min(begun.elapsed());
        pause = (looked * SHARE).max(QUIET);
    }
}

/// Returns when it is time to look: the period is over, changes have settled, or somebody asks.
async fn next(drift: &Drift, in_force: &mut watch::Receiver<InForce>, period: Duration, pause: Duration) {
    let settled = async {
        if in_force.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        while tokio::time::timeout(pause, in_force.changed()).await.is_ok_and(|changed| changed.is_ok()) {}
    };
    tokio::select! {
        () = tokio::time::sleep(period.max(pause)) => {}
        () = settled => {}
        () = drift.hurry.notified() => {}
    }
}

/// One look, and the repair of what it confirms.
async fn check(node: &Arc<Node>) -> Result<()> {
    let begun = Instant::now();
    let first = verify::look(node).await?;
    {
        let mut counters = lock(&node.drift.counters);
        counters.looks += 1;
        counters.look = begun.elapsed();
        let in_force = node.tables.in_force().borrow().clone();
        counters.networks.retain(|network, _| in_force.contains_key(network));
        counters.remaining(&first.findings, &first.unseen);
    }
    if first.findings.is_empty() {
        return Ok(());
    }
    let confirmed = verify::confirm(node, first).await?.findings;
    if confirmed.is_empty() {
        return Ok(());
    }
    log(&lock(&node.drift.counters).found(&confirmed));
    repair(node, &confirmed).await;
    let after = verify::look(node).await?;
    let repaired = lock(&node.drift.counters).remaining(&after.findings, &after.unseen);
    let left = confirmed.intersection(&after.findings).count();
    tracing::info!(repaired, left, "made anew what differed");
    Ok(())
}

/// The first few of each kind in each place.
fn log(new: &[Finding]) {
    let mut seen: BTreeMap<(&Place, Kind), usize> = BTreeMap::new();
    for finding in new {
        let count = seen.entry((&finding.place, finding.kind)).or_default();
        *count += 1;
        let (network, task) = match &finding.place {
            Place::Network(network) => (Some(network.as_str()), None),
            Place::Sandbox(task) => (None, Some(task.as_str())),
            _ => (None, None),
        };
        if *count <= LOGGED_MAX {
            tracing::warn!(network, task, "not as the tables say: {}", finding.text);
        }
    }
    let more: usize = seen.values().map(|count| count.saturating_sub(LOGGED_MAX)).sum();
    if more > 0 {
        tracing::warn!(more, "further differences of the same kind are not listed");
    }
}

/// Has everything concerned made anew, what others need first.
async fn repair(node: &Arc<Node>, confirmed: &BTreeSet<Finding>) {
    let concerned = |place: &Place| confirmed.iter().any(|finding| finding.place == *place);
    if concerned(&Place::Programs) {
        let balancer = node.balancer.clone();
        let restored = tokio::task::spawn_blocking(move || balancer.restore()).await;
        report("attach the balancer's programs again", restored.unwrap_or(Ok(())));
    }
    if concerned(&Place::Addresses) {
        report("tell the balancer the node's addresses", tell_addresses(node));
    }
    if concerned(&Place::Node) {
        report("make the node's rules and gateway anew", node.fabric.renew_node().await);
        report("lead ports to single tasks anew", node.host_ports.renew(node).await);
    }
    let networks: BTreeSet<NetworkId> = confirmed
        .iter()
        .filter_map(|finding| match &finding.place {
            Place::Network(network) => Some(network.clone()),
            _ => None,
        })
        .collect();
    if tokio::time::timeout(REPAIR_BOUND, node.tables.renew(&networks)).await.is_err() {
        tracing::warn!("what differed is not made anew yet");
    }
    if confirmed.iter().any(|finding| finding.kind == Kind::Balancer) {
        let balancer = node.balancer.clone();
        let swept = tokio::task::spawn_blocking(move || balancer.sweep()).await;
        report("sweep the balancer's maps", swept.unwrap_or(Ok(())));
    }
    let sandboxes: BTreeSet<&String> = confirmed
        .iter()
        .filter_map(|finding| match &finding.place {
            Place::Sandbox(task) => Some(task),
            _ => None,
        })
        .collect();
    let renewed = futures::future::join_all(sandboxes.into_iter().map(|id| renew_sandbox(node, id)));
    if tokio::time::timeout(REPAIR_BOUND, renewed).await.is_err() {
        tracing::warn!("sandboxes that differed are not made anew yet");
    }
}

/// Has whose sandbox it is make it whole.
async fn renew_sandbox(node: &Arc<Node>, id: &str) {
    if let Some(keeper) = node.plains.get(&ContainerId::new(id)) {
        return report("make the container's sandbox whole again", keeper.renew(node).await);
    }
    let (done, renewed) = oneshot::channel();
    node.tasks.order(&TaskId::new(id), Order::Renew(done));
    // A task that is gone by now drops its end.
    let _ = renewed.await;
}

/// Tells the balancer which addresses are the node's own.
pub(crate) fn tell_addresses(node: &Node) -> Result<()> {
    let addresses = node.fabric.address_changes().borrow().clone();
    Ok(node.balancer.set_node(shoal_balancer::own_netns_cookie()?, &addresses)?)
}

fn report<E: std::fmt::Display>(what: &str, outcome: Result<(), E>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(network: &str, text: &str) -> Finding {
        Finding { place: Place::Network(network.into()), kind: Kind::Fabric, text: text.to_owned() }
    }

    #[test]
    fn a_difference_is_counted_once_until_it_is_gone() {
        let drift = Drift::default();
        let (one, two) = (finding("n1", "one"), finding("n2", "two"));
        let mut counters = lock(&drift.counters);
        assert_eq!(counters.found(&[one.clone(), two.clone()].into()).len(), 2);
        assert_eq!(counters.remaining(&[two.clone()].into(), &BTreeSet::new()), 1);
        let unseen = BTreeSet::from([two.place.clone()]);
        assert_eq!(counters.remaining(&BTreeSet::new(), &unseen), 0, "who knows");
        assert_eq!(counters.found(&[two.clone()].into()).len(), 0, "known, and still there");
        drop(counters);
        let counts = drift.counts();
        assert_eq!((counts.found, counts.repaired, counts.open), (2, 1, 1));
        assert_eq!(counts.kinds["fabric"], KindCounts { found: 2, repaired: 1 });
        assert_eq!((drift.of_network(&"n1".into()), drift.of_network(&"n2".into())), ((1, 1), (1, 0)));
        let mut counters = lock(&drift.counters);
        assert_eq!(counters.remaining(&BTreeSet::new(), &BTreeSet::new()), 1);
        assert_eq!(counters.found(&[two].into()).len(), 1, "it came back");
    }

    #[tokio::test]
    async fn a_look_comes_after_the_period_at_once_when_asked_and_when_changes_have_settled() {
        const LONG: Duration = Duration::from_secs(3600);
        let drift = Drift::default();
        let sender = watch::Sender::new(InForce::default());
        let mut in_force = sender.subscribe();
        let pause = Duration::from_millis(200);
        let begun = Instant::now();
        next(&drift, &mut in_force, pause / 4, pause).await;
        assert!(begun.elapsed() >= pause, "looking has its share of the time, not more");

        drift.hurry();
        next(&drift, &mut in_force, LONG, LONG).await;

        let begun = Instant::now();
        let changes = async {
            for _ in 0..4 {
                sender.send_modify(|_| {});
                tokio::time::sleep(pause / 4).await;
            }
        };
        tokio::join!(next(&drift, &mut in_force, LONG, pause), changes);
        assert!(begun.elapsed() >= pause / 4 * 3 + pause, "not before they have settled");
    }
}
