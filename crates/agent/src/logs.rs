//! Log lines of tasks on their way to a manager that asked for them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use shoal_model::{ContainerId, LogEntry, LogSelector, TaskId, TaskState};
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{LogData, LogGrant, LogSubscribe, NodeMessage};
use shoal_protocol::{MalformedPayload, decode, encode};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::node::Node;
use crate::session::Host;

/// Lines that travel in one frame at most.
const CHUNK: usize = 128;
/// A frame ends with the line that brings it to this size.
const FRAME_BYTES: usize = 256 << 10;

/// What a manager is subscribed to; all of it ends with the session.
pub(crate) struct Subscriptions<H> {
    node: Arc<H>,
    outbox: mpsc::Sender<NodeMessage>,
    open: HashMap<u64, Open>,
}

struct Open {
    /// A permit for each frame that may be sent.
    room: Arc<Semaphore>,
    _ended: DropGuard,
}

impl<H: Host> Subscriptions<H> {
    pub(crate) fn new(node: Arc<H>, outbox: mpsc::Sender<NodeMessage>) -> Self {
        Self { node, outbox, open: HashMap::new() }
    }

    /// Sends the tasks' lines from now on, as far as there is room; for each task `end` when there will
    /// be no more.
    pub(crate) fn begin(&mut self, subscribe: &LogSubscribe) -> Result<(), MalformedPayload> {
        let selector: LogSelector = decode(&subscribe.selector)?;
        let ended = CancellationToken::new();
        let room = Arc::new(Semaphore::new(subscribe.window as usize));
        for task in subscribe.task_ids.iter().map(TaskId::new) {
            let lines = self.node.lines(task.clone(), selector.clone());
            let outlet = Outlet {
                outbox: self.outbox.clone(),
                room: room.clone(),
                subscription: subscribe.subscription,
                task,
            };
            let ended = ended.clone();
            tokio::spawn(async move { ended.run_until_cancelled(outlet.send(lines)).await });
        }
        self.open.insert(subscribe.subscription, Open { room, _ended: ended.drop_guard() });
        Ok(())
    }

    /// The reader has taken so many frames.
    pub(crate) fn grant(&self, grant: LogGrant) {
        if let Some(open) = self.open.get(&grant.subscription) {
            open.room.add_permits(grant.frames as usize);
        }
    }

    pub(crate) fn end(&mut self, subscription: u64) {
        self.open.remove(&subscription);
    }
}

/// The way of one task's lines to their reader.
struct Outlet {
    outbox: mpsc::Sender<NodeMessage>,
    room: Arc<Semaphore>,
    subscription: u64,
    task: TaskId,
}

impl Outlet {
    /// A session that has ended wants nothing more, and so ends this.
    async fn send(self, mut lines: BoxStream<'static, Vec<LogEntry>>) -> Option<()> {
        while let Some(chunk) = lines.next().await {
            for entries in frames(chunk.iter().map(encode)) {
                // Waiting here leaves the outbox to messages that are no log lines.
                self.room.acquire().await.ok()?.forget();
                self.outbox.send(self.data(entries, false)).await.ok()?;
            }
        }
        self.outbox.send(self.data(Vec::new(), true)).await.ok()
    }

    fn data(&self, entries: Vec<Bytes>, end: bool) -> NodeMessage {
        let (subscription, task_id) = (self.subscription, self.task.to_string());
        NodeMessage { message: Some(Up::LogData(LogData { subscription, task_id, entries, end })) }
    }
}

/// Lines cut into frames of bounded size.
fn frames(lines: impl Iterator<Item = Bytes>) -> Vec<Vec<Bytes>> {
    let (mut frames, mut room) = (Vec::<Vec<Bytes>>::new(), 0);
    for line in lines {
        let size = line.len();
        match frames.last_mut() {
            Some(frame) if room > 0 => frame.push(line),
            _ => {
                frames.push(vec![line]);
                room = FRAME_BYTES;
            }
        }
        room = room.saturating_sub(size);
    }
    frames
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_bounded_and_hold_every_line_in_order() {
        let lines: Vec<Bytes> =
            (0..100u8).map(|number| vec![number; FRAME_BYTES / 8 + usize::from(number)].into()).collect();
        let cut = frames(lines.iter().cloned());
        assert!(
            cut.iter().all(|frame| frame.iter().map(Bytes::len).sum::<usize>() < FRAME_BYTES * 9 / 8 + 100)
        );
        assert!(cut.len() < 20, "{}", cut.len());
        assert_eq!(cut.concat(), lines);
        assert_eq!(frames([Bytes::from(vec![0; 2 * FRAME_BYTES])].into_iter()).len(), 1);
        assert!(frames(std::iter::empty()).is_empty());
    }
}
