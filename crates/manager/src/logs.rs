//! Log subscriptions: from a reader, over the sessions of the nodes its tasks run on, and back.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use shoal_model::{LogEntry, LogSelector, NodeId, TaskId};
use shoal_protocol::session::manager_message::Message;
use shoal_protocol::session::{LogData, LogGrant, LogSubscribe, ManagerMessage};
use shoal_protocol::{decode, encode};
use tokio::sync::mpsc;

use crate::dispatcher::Dispatcher;
use crate::{Code, ControlError};

/// Frames that a node may send ahead of the reader. A session carries statuses too, so it never waits
/// for a reader: the node does, with what lies in its log files.
const WINDOW: u32 = 16;
/// The node hears of it when the reader has taken so many of them.
const GRANT: u32 = WINDOW / 2;

/// The open subscriptions.
#[derive(Default)]
pub(crate) struct Logs {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    lines: mpsc::Sender<Frame>,
    /// Tasks that have more to say, and where they run.
    waiting: BTreeMap<TaskId, NodeId>,
    faults: Faults,
}

/// Lines of one task, as they came.
struct Frame {
    node: NodeId,
    task: TaskId,
    entries: Vec<Bytes>,
}

/// Why the reader did not get everything; it hears of it at the end.
type Faults = Arc<Mutex<Vec<String>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Logs {
    /// Lines from a node.
    pub(crate) fn take(&self, node: &NodeId, data: LogData) {
        let mut open = lock(&self.open);
        let task = TaskId::new(&data.task_id);
        let Some(subscription) = open.get_mut(&data.subscription) else { return };
        if subscription.waiting.get(&task) != Some(node) {
            return;
        }
        let frame = Frame { node: node.clone(), task: task.clone(), entries: data.entries };
        if !frame.entries.is_empty() && subscription.lines.try_send(frame).is_err() {
            lock(&subscription.faults).push(format!("node {node} sent more than it was granted"));
            open.remove(&data.subscription);
            return;
        }
        if data.end {
            subscription.waiting.remove(&task);
            if subscription.waiting.is_empty() {
                open.remove(&data.subscription);
            }
        }
    }

    /// A node's session ended: its tasks say nothing more.
    pub(crate) fn node_left(&self, node: &NodeId) {
        lock(&self.open).retain(|_, subscription| {
            let before = subscription.waiting.len();
            subscription.waiting.retain(|_, on| on != node);
            if subscription.waiting.len() != before {
                lock(&subscription.faults).push(missing(node));
            }
            !subscription.waiting.is_empty()
        });
    }
}

fn missing(node: &NodeId) -> String {
    format!("node {node} is not available")
}

/// What a reader hears of faults, in Docker's words; nothing when there were none.
fn incomplete(faults: &[String]) -> Option<ControlError> {
    let text = "warning: incomplete log stream. some logs could not be retrieved for the following reasons";
    (!faults.is_empty())
        .then(|| ControlError::new(Code::Unavailable, format!("{text}: {}", faults.join(", "))))
}

/// A reader's end of a subscription, which ends when the reader goes away.
struct Subscription {
    id: u64,
    /// Frames taken from each node since it was granted more.
    taken: BTreeMap<NodeId, u32>,
    dispatcher: Arc<Dispatcher>,
}

impl Subscription {
    /// The reader took a frame of this node: it may send another.
    async fn took(&mut self, node: &NodeId) {
        let taken = self.taken.entry(node.clone()).or_default();
        *taken += 1;
        if *taken < GRANT {
            return;
        }
        let grant = LogGrant { subscription: self.id, frames: std::mem::take(taken) };
        if let Some(outlet) = self.dispatcher.outlet(node) {
            // Refused by a session that ended, which ends its subscriptions.
            let _ = outlet.send(ManagerMessage { message: Some(Message::LogGrant(grant)) }).await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.dispatcher.logs.open).remove(&self.id);
        for node in self.taken.keys() {
            if let Some(outlet) = self.dispatcher.outlet(node) {
                let message = Some(Message::LogUnsubscribe(self.id));
                // A session that takes nothing any more ends its subscriptions by ending.
                let _ = outlet.try_send(ManagerMessage { message });
            }
        }
    }
}

/// The lines of these tasks, as the nodes send them. An error at the end says what is missing.
pub(crate) fn read(
    dispatcher: Arc<Dispatcher>,
    tasks: BTreeMap<TaskId, NodeId>,
    selector: &LogSelector,
) -> impl Stream<Item = Result<(TaskId, LogEntry), ControlError>> + Send + 'static + use<> {
    let id = dispatcher.logs.next.fetch_add(1, Ordering::Relaxed);
    let mut by_node: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for (task, node) in &tasks {
        by_node.entry(node.clone()).or_default().push(task.to_string());
    }
    let (lines, received) = mpsc::channel(by_node.len().max(1) * WINDOW as usize);
    let faults = Faults::default();
    if !tasks.is_empty() {
        let subscription = Open { lines, waiting: tasks, faults: faults.clone() };
        lock(&dispatcher.logs.open).insert(id, subscription);
    }
    let taken = by_node.keys().map(|node| (node.clone(), 0)).collect();
    let subscription = Subscription { id, taken, dispatcher };
    for (node, task_ids) in by_node {
        let subscribe =
            LogSubscribe { subscription: id, task_ids, selector: encode(selector), window: WINDOW };
        let message = ManagerMessage { message: Some(Message::LogSubscribe(subscribe)) };
        let outlet = subscription.dispatcher.outlet(&node);
        if outlet.is_none_or(|outlet| outlet.try_send(message).is_err()) {
            subscription.dispatcher.logs.node_left(&node);
        }
    }
    let lines = futures::stream::unfold((received, subscription), |(mut received, mut subscription)| async {
        let Frame { node, task, entries } = received.recv().await?;
        subscription.took(&node).await;
        let lines: Vec<_> = entries.iter().map(|entry| line(&task, entry)).collect();
        Some((futures::stream::iter(lines), (received, subscription)))
    });
    let fault = futures::stream::once(async move { incomplete(&lock(&faults)) });
    let fault = fault.flat_map(|fault| futures::stream::iter(fault.map(Err)));
    lines.flatten().chain(fault)
}

fn line(task: &TaskId, entry: &[u8]) -> Result<(TaskId, LogEntry), ControlError> {
    let entry = decode(entry).map_err(|error| ControlError::new(Code::Internal, error.to_string()))?;
    Ok((task.clone(), entry))
}
