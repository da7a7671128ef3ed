//! Log lines of tasks on their way to a manager that asked for them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use shoal_model::{LogSelector, TaskId, TaskState};
use shoal_protocol::encode;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{LogData, NodeMessage};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::node::Node;

/// Lines that travel in one frame at most.
const CHUNK: usize = 128;

/// What a manager is subscribed to; all of it ends with the session.
pub(crate) struct Subscriptions {
    node: Arc<Node>,
    outbox: mpsc::Sender<NodeMessage>,
    open: HashMap<u64, DropGuard>,
}

impl Subscriptions {
    pub(crate) fn new(node: Arc<Node>, outbox: mpsc::Sender<NodeMessage>) -> Self {
        Self { node, outbox, open: HashMap::new() }
    }

    /// Sends the tasks' lines from now on; for each task `end` when there will be no more.
    pub(crate) fn begin(&mut self, subscription: u64, tasks: Vec<TaskId>, selector: LogSelector) {
        let ended = CancellationToken::new();
        for task in tasks {
            let (node, outbox, selector) = (self.node.clone(), self.outbox.clone(), selector.clone());
            let ended = ended.clone();
            tokio::spawn(async move {
                ended.run_until_cancelled(send(node, outbox, subscription, task, selector)).await;
            });
        }
        self.open.insert(subscription, ended.drop_guard());
    }

    pub(crate) fn end(&mut self, subscription: u64) {
        self.open.remove(&subscription);
    }
}

async fn send(
    node: Arc<Node>,
    outbox: mpsc::Sender<NodeMessage>,
    subscription: u64,
    task: TaskId,
    selector: LogSelector,
) {
    let data = |entries, end| NodeMessage {
        message: Some(Up::LogData(LogData { subscription, task_id: task.to_string(), entries, end })),
    };
    if let Some(container) = container(&node, &task, selector.follow).await {
        let mut chunks = node.runtime.logs(&container, selector).ready_chunks(CHUNK);
        while let Some(lines) = chunks.next().await {
            let mut entries = Vec::with_capacity(lines.len());
            for line in lines {
                match line {
                    Ok(entry) => entries.push(encode(&entry).into()),
                    Err(error) => tracing::warn!(%task, %error, "cannot read the task's log"),
                }
            }
            if outbox.send(data(entries, false)).await.is_err() {
                return;
            }
        }
    }
    // A session that has ended wants nothing more.
    let _ = outbox.send(data(Vec::new(), true)).await;
}

/// The task's container, once it has been started; a follower waits for that.
async fn container(node: &Node, task: &TaskId, follow: bool) -> Option<shoal_model::ContainerId> {
    let mut changes = node.tasks.watch(task)?;
    loop {
        {
            let snapshot = changes.borrow_and_update();
            let status = &snapshot.record.progress.status;
            if status.container.is_some() {
                return Some(snapshot.record.container.clone());
            }
            if !follow || status.state > TaskState::Running {
                return None;
            }
        }
        changes.changed().await.ok()?;
    }
}
