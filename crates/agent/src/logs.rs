//! Log lines of tasks on their way to a manager that asked for them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use shoal_model::{ContainerId, LogEntry, LogSelector, TaskId, TaskState};
use shoal_protocol::encode;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{LogData, NodeMessage};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::node::Node;
use crate::session::Host;

/// Lines that travel in one frame at most.
const CHUNK: usize = 128;

/// What a manager is subscribed to; all of it ends with the session.
pub(crate) struct Subscriptions<H> {
    node: Arc<H>,
    outbox: mpsc::Sender<NodeMessage>,
    open: HashMap<u64, DropGuard>,
}

impl<H: Host> Subscriptions<H> {
    pub(crate) fn new(node: Arc<H>, outbox: mpsc::Sender<NodeMessage>) -> Self {
        Self { node, outbox, open: HashMap::new() }
    }

    /// Sends the tasks' lines from now on; for each task `end` when there will be no more.
    pub(crate) fn begin(&mut self, subscription: u64, tasks: Vec<TaskId>, selector: LogSelector) {
        let ended = CancellationToken::new();
        for task in tasks {
            let lines = self.node.lines(task.clone(), selector.clone());
            let sending = send(self.outbox.clone(), subscription, task, lines);
            let ended = ended.clone();
            tokio::spawn(async move { ended.run_until_cancelled(sending).await });
        }
        self.open.insert(subscription, ended.drop_guard());
    }

    pub(crate) fn end(&mut self, subscription: u64) {
        self.open.remove(&subscription);
    }
}

async fn send(
    outbox: mpsc::Sender<NodeMessage>,
    subscription: u64,
    task: TaskId,
    mut lines: BoxStream<'static, Vec<LogEntry>>,
) {
    let data = |entries, end| NodeMessage {
        message: Some(Up::LogData(LogData { subscription, task_id: task.to_string(), entries, end })),
    };
    while let Some(chunk) = lines.next().await {
        let entries = chunk.iter().map(encode).collect();
        if outbox.send(data(entries, false)).await.is_err() {
            return;
        }
    }
    // A session that has ended wants nothing more.
    let _ = outbox.send(data(Vec::new(), true)).await;
}

/// A task's lines in chunks.
pub(crate) fn lines(
    node: Arc<Node>,
    task: TaskId,
    selector: LogSelector,
) -> BoxStream<'static, Vec<LogEntry>> {
    let opening = async move {
        let container = container(&node, &task, selector.follow).await?;
        let readable = node.runtime.logs(&container, selector).filter_map(move |line| {
            if let Err(error) = &line {
                tracing::warn!(%container, %error, "cannot read the log");
            }
            std::future::ready(line.ok())
        });
        Some(readable.ready_chunks(CHUNK))
    };
    futures::stream::once(opening).filter_map(std::future::ready).flatten().boxed()
}

/// The task's container, once it has been started; a follower waits for that.
async fn container(node: &Node, task: &TaskId, follow: bool) -> Option<ContainerId> {
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
