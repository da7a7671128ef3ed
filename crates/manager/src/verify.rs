//! Asks every node whether it really holds what its tables say, and compares what is in force there
//! with what should be.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use shoal_model::{ClusterReport, NetworkId, Node, NodeId, NodeReport, NodeVerdict, TableVersion};
use shoal_protocol::decode;
use shoal_protocol::session::manager_message::Message;
use shoal_protocol::session::{ManagerMessage, VerifyReport, VerifyRequest};
use tokio::sync::oneshot;

use crate::State;
use crate::dispatcher::Dispatcher;

/// A node takes a second for its two looks, and time on a busy machine.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// What has just changed may be on its way: whoever is behind is asked again after this time.
const SECOND_ASKING: Duration = Duration::from_secs(1);
/// Nodes asked at once.
const AT_ONCE: usize = 64;

/// Versions by network.
type Versions = BTreeMap<NetworkId, TableVersion>;

/// The questions that wait for their answers.
#[derive(Default)]
pub(crate) struct Questions {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    node: NodeId,
    answer: oneshot::Sender<VerifyReport>,
}

impl Questions {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, node: &NodeId) -> (u64, oneshot::Receiver<VerifyReport>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.open().insert(id, Open { node: node.clone(), answer });
        (id, answered)
    }

    /// A node's answer. Nobody answers for another one.
    pub(crate) fn take(&self, node: &NodeId, report: VerifyReport) {
        let mut open = self.open();
        if open.get(&report.id).is_some_and(|open| open.node == *node)
            && let Some(Open { answer, .. }) = open.remove(&report.id)
        {
            // Who asked may have given up.
            let _ = answer.send(report);
        }
    }

    /// A node's session ended: it answers no more.
    pub(crate) fn node_left(&self, node: &NodeId) {
        self.open().retain(|_, open| open.node != *node);
    }
}

/// Closes a question, however the wait for its answer ends.
struct Closing<'a> {
    questions: &'a Questions,
    id: u64,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.questions.open().remove(&self.id);
    }
}

/// The whole cluster, node by node.
pub(crate) async fn cluster(dispatcher: &Arc<Dispatcher>, state: &State) -> ClusterReport {
    let verdicts = state.nodes().map(|node| verdict(dispatcher.clone(), node.clone()));
    // In the order of the nodes, whoever answers first.
    let nodes = futures::stream::iter(verdicts.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
    ClusterReport { nodes, refused_requests: dispatcher.refused_requests() }
}

async fn verdict(dispatcher: Arc<Dispatcher>, node: Arc<Node>) -> NodeVerdict {
    let mut verdict = NodeVerdict {
        id: Some(node.id.clone()),
        name: node.description.hostname.clone(),
        error: None,
        report: None,
        current: None,
        behind: Vec::new(),
    };
    match compared(&dispatcher, &node.id).await {
        Ok((report, current, behind)) => {
            (verdict.report, verdict.current, verdict.behind) = (Some(report), Some(current), behind);
        }
        Err(error) => verdict.error = Some(error),
    }
    verdict
}

/// A node's report, the versions it should have, and where it is behind.
async fn compared(
    dispatcher: &Dispatcher,
    node: &NodeId,
) -> Result<(NodeReport, Versions, Vec<String>), String> {
    let (report, current) = ask(dispatcher, node).await?;
    let first = behind(&current, &current, &report);
    if first.is_empty() {
        return Ok((report, current, first));
    }
    tokio::time::sleep(SECOND_ASKING).await;
    let (report, now) = ask(dispatcher, node).await?;
    // What was wanted a second ago, and still is, must be in force by now.
    let due: Versions =
        current.iter().filter(|(network, _)| now.contains_key(*network)).map(own_pair).collect();
    let allowed = current.into_iter().chain(now.iter().map(own_pair)).collect();
    let second = behind(&due, &allowed, &report);
    Ok((report, now, second))
}

fn own_pair((network, version): (&NetworkId, &TableVersion)) -> (NetworkId, TableVersion) {
    (network.clone(), *version)
}

/// One question to one node, and the versions wanted when it was asked.
async fn ask(dispatcher: &Dispatcher, node: &NodeId) -> Result<(NodeReport, Versions), String> {
    let no_session = || "the node has no session with the manager".to_owned();
    let outlet = dispatcher.outlet(node).ok_or_else(no_session)?;
    let wanted = dispatcher.wanted(node).ok_or_else(no_session)?;
    let (id, answered) = dispatcher.questions.ask(node);
    let _closed = Closing { questions: &dispatcher.questions, id };
    let message = Some(Message::Verify(VerifyRequest { id }));
    let answer = match outlet.try_send(ManagerMessage { message }) {
        Ok(()) => tokio::time::timeout(ANSWER_BOUND, answered).await,
        Err(_) => return Err("the node takes nothing from the manager any more".to_owned()),
    };
    let report = match answer {
        Ok(Ok(report)) => report,
        Ok(Err(_)) => return Err("the node's session ended before it answered".to_owned()),
        Err(_) => return Err(format!("no answer within {} seconds", ANSWER_BOUND.as_secs())),
    };
    if !report.error.is_empty() {
        return Err(report.error);
    }
    let report = decode(&report.report).map_err(|error| error.to_string())?;
    Ok((report, wanted))
}

/// Where what is in force on a node falls short of what is due, and what is in force that is not even
/// allowed.
fn behind(due: &Versions, allowed: &Versions, report: &NodeReport) -> Vec<String> {
    let in_force = |network: &NetworkId| report.tables.iter().find(|table| table.network == *network);
    let late = due.iter().filter_map(|(network, wanted)| match in_force(network) {
        None => {
            Some(format!("network {network}: no table in force, revision {} is current", wanted.revision))
        }
        Some(table) if !table.version.covers(*wanted) => Some(format!(
            "network {}: revision {} is in force, {} is current",
            table.name, table.version.revision, wanted.revision
        )),
        Some(_) => None,
    });
    let extra = report.tables.iter().filter(|table| !allowed.contains_key(&table.network));
    let extra = extra.map(|table| format!("network {}: in force on a node that is not on it", table.name));
    late.chain(extra).collect()
}

#[cfg(test)]
mod tests {
    use shoal_model::{TableCounts, TableReport};

    use super::*;

    fn versions(of: &[(&str, u64)]) -> Versions {
        of.iter().map(|(network, revision)| (NetworkId::new(network), version(*revision))).collect()
    }

    fn version(revision: u64) -> TableVersion {
        TableVersion { epoch: 1, revision }
    }

    fn report(of: &[(&str, u64)]) -> NodeReport {
        let table = |&(network, revision): &(&str, u64)| TableReport {
            network: NetworkId::new(network),
            name: format!("{network}-name"),
            version: version(revision),
            services: 0,
            endpoints: 0,
            held: TableCounts::default(),
            read_back: TableCounts::default(),
            found: 0,
            repaired: 0,
            differences: Vec::new(),
        };
        NodeReport { tables: of.iter().map(table).collect(), ..NodeReport::default() }
    }

    #[test]
    fn who_is_behind_is_told_and_who_is_ahead_is_not() {
        let due = versions(&[("a", 5), ("b", 5)]);
        assert_eq!(behind(&due, &due, &report(&[("a", 5), ("b", 9)])), Vec::<String>::new());
        assert_eq!(
            behind(&due, &due, &report(&[("a", 4), ("c", 1)])),
            [
                "network a-name: revision 4 is in force, 5 is current",
                "network b: no table in force, revision 5 is current",
                "network c-name: in force on a node that is not on it",
            ]
        );
        let mut other = report(&[("a", 5), ("b", 5)]);
        other.tables[0].version.epoch = 2;
        assert_eq!(behind(&due, &due, &other).len(), 1, "another epoch says nothing");
        let allowed = versions(&[("a", 5), ("b", 5), ("c", 1)]);
        assert_eq!(behind(&versions(&[]), &allowed, &report(&[("c", 1)])), Vec::<String>::new());
    }
}
