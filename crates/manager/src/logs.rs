//! Log subscriptions: from a reader, over the sessions of the nodes its tasks run on, and back.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use shoal_model::{LogEntry, LogSelector, NodeId, TaskId};
use shoal_protocol::session::manager_message::Message;
use shoal_protocol::session::{LogData, LogSubscribe, ManagerMessage};
use shoal_protocol::{decode, encode};
use tokio::sync::mpsc;

use crate::dispatcher::Dispatcher;
use crate::{Code, ControlError};

/// Frames of lines that wait for a slow reader. A node's session carries statuses too, so it never
/// waits for a reader: one that falls behind further is cut off, and told so.
const FRAMES_MAX: usize = 8192;

/// The open subscriptions.
#[derive(Default)]
pub(crate) struct Logs {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    lines: mpsc::Sender<(TaskId, Vec<Bytes>)>,
    /// Tasks that have more to say, and where they run.
    waiting: BTreeMap<TaskId, NodeId>,
    faults: Faults,
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
        if !data.entries.is_empty() && subscription.lines.try_send((task.clone(), data.entries)).is_err() {
            lock(&subscription.faults)
                .push("the reader is too slow: the rest of the log is left out".to_owned());
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
    format!("node {node} is not available: the logs of its tasks are incomplete")
}

/// Ends the subscription when the reader goes away.
struct Subscription {
    id: u64,
    nodes: Vec<NodeId>,
    dispatcher: Arc<Dispatcher>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.dispatcher.logs.open).remove(&self.id);
        for node in &self.nodes {
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
    let (lines, received) = mpsc::channel(FRAMES_MAX);
    let faults = Faults::default();
    let mut by_node: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for (task, node) in &tasks {
        by_node.entry(node.clone()).or_default().push(task.to_string());
    }
    if !tasks.is_empty() {
        let subscription = Open { lines, waiting: tasks, faults: faults.clone() };
        lock(&dispatcher.logs.open).insert(id, subscription);
    }
    let subscription = Subscription { id, nodes: by_node.keys().cloned().collect(), dispatcher };
    for (node, task_ids) in by_node {
        let subscribe = LogSubscribe { subscription: id, task_ids, selector: encode(selector) };
        let message = ManagerMessage { message: Some(Message::LogSubscribe(subscribe)) };
        let outlet = subscription.dispatcher.outlet(&node);
        if outlet.is_none_or(|outlet| outlet.try_send(message).is_err()) {
            subscription.dispatcher.logs.node_left(&node);
        }
    }
    let lines =
        futures::stream::unfold((received, subscription), |(mut received, subscription)| async move {
            let (task, entries) = received.recv().await?;
            let lines: Vec<_> = entries.iter().map(|entry| line(&task, entry)).collect();
            Some((futures::stream::iter(lines), (received, subscription)))
        });
    let faults = futures::stream::once(async move { std::mem::take(&mut *lock(&faults)) });
    let faults = faults.flat_map(futures::stream::iter);
    lines.flatten().chain(faults.map(|fault| Err(ControlError::new(Code::Unavailable, fault))))
}

fn line(task: &TaskId, entry: &[u8]) -> Result<(TaskId, LogEntry), ControlError> {
    let entry = decode(entry).map_err(|error| ControlError::new(Code::Internal, error.to_string()))?;
    Ok((task.clone(), entry))
}
