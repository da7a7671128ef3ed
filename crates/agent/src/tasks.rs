//! The tasks of this node: who runs them, what was reported of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use shoal_model::{ContainerId, DepositId, IdGenerator, Task, TaskId, TaskStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::node::Node;
use crate::runner::{Order, Runner, Snapshot};
use crate::store::TaskRecord;
use crate::task::{Container, Observed, Progress};
use crate::{deposits, lock};

struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    shown: Arc<watch::Sender<Snapshot>>,
    running: JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct Tasks {
    handles: Mutex<BTreeMap<TaskId, Handle>>,
    /// Whose status the manager does not know yet.
    unreported: Mutex<BTreeSet<TaskId>>,
    news: Notify,
    /// No task is taken on while the node leaves its cluster.
    closed: Mutex<bool>,
}

impl Tasks {
    /// Begins to run a task: a new one, or one that a former process ran.
    pub(crate) fn spawn(&self, node: &Arc<Node>, record: TaskRecord, seen: Observed) {
        let closed = lock(&self.closed);
        if *closed {
            return;
        }
        let id = record.task.id.clone();
        let (orders, inbox) = mpsc::unbounded_channel();
        let snapshot = Snapshot { record: record.clone(), health: None, healthcheck: None };
        let shown = Arc::new(watch::Sender::new(snapshot));
        // Held over the spawn, so that a runner that ends at once finds its handle to forget.
        let mut handles = lock(&self.handles);
        let runner = Runner::new(node.clone(), record, seen, inbox, shown.clone());
        handles.insert(id, Handle { orders, shown, running: tokio::spawn(runner.run()) });
    }

    /// What the manager assigns: new tasks are begun, known ones told.
    pub(crate) fn assign(&self, node: &Arc<Node>, task: Task) {
        let task = {
            let handles = lock(&self.handles);
            match handles
                .get(&task.id)
                .map(|handle| handle.orders.send(Order::Assign(Box::new(task.clone()))))
            {
                Some(Ok(())) => return,
                Some(Err(_)) | None => task,
            }
        };
        let stranger = node.stranger(&task.id);
        let record = TaskRecord {
            progress: Progress::of(&task),
            container: match &stranger {
                Some(container) => container.config.id.clone(),
                None => IdGenerator::from_os().container_id(),
            },
            assigned: true,
            task,
        };
        let values = deposits::is_there(&node.config.run_dir, &record.container);
        let seen = Observed {
            container: stranger.map_or(Container::Absent, |container| crate::runner::found(&container.state)),
            sandbox: false,
            networks_ready: false,
            obstacle: None,
            values_known: false,
            values,
            health: None,
            stop_request: None,
        };
        self.spawn(node, record, seen);
    }

    pub(crate) fn unassign(&self, id: &TaskId) {
        if let Some(handle) = lock(&self.handles).get(id) {
            // A runner that has just ended has forgotten the task already.
            let _ = handle.orders.send(Order::Unassign);
        }
    }

    /// Takes back every assignment that is not among these.
    pub(crate) fn retain(&self, assigned: &HashSet<TaskId>) {
        for (id, handle) in lock(&self.handles).iter() {
            if !assigned.contains(id) {
                let _ = handle.orders.send(Order::Unassign);
            }
        }
    }

    pub(crate) fn order(&self, id: &TaskId, order: Order) {
        if let Some(handle) = lock(&self.handles).get(id) {
            let _ = handle.orders.send(order);
        }
    }

    pub(crate) fn forget(&self, id: &TaskId) {
        lock(&self.handles).remove(id);
        lock(&self.unreported).remove(id);
    }

    /// Changes of one task; `None` when it is not known.
    pub(crate) fn watch(&self, id: &TaskId) -> Option<watch::Receiver<Snapshot>> {
        lock(&self.handles).get(id).map(|handle| handle.shown.subscribe())
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        lock(&self.handles).values().map(|handle| handle.shown.borrow().clone()).collect()
    }

    /// The kept values that tasks name.
    pub(crate) fn deposits(&self) -> BTreeSet<DepositId> {
        let handles = lock(&self.handles);
        let named = |handle: &Handle| -> Vec<DepositId> {
            handle.shown.borrow().record.task.deposits().cloned().collect()
        };
        handles.values().flat_map(named).collect()
    }

    /// The record of a task that is known.
    pub(crate) fn record(&self, id: &str) -> Option<TaskRecord> {
        let handles = lock(&self.handles);
        handles.get(&TaskId::new(id)).map(|handle| handle.shown.borrow().record.clone())
    }

    pub(crate) fn of_container(&self, id: &ContainerId) -> Option<Snapshot> {
        self.snapshots().into_iter().find(|snapshot| snapshot.record.container == *id)
    }

    /// Ends all runners without touching what they run; the records they leave are returned.
    pub(crate) async fn close(&self) -> Vec<TaskRecord> {
        *lock(&self.closed) = true;
        let handles = std::mem::take(&mut *lock(&self.handles));
        lock(&self.unreported).clear();
        let mut records = Vec::new();
        for handle in handles.into_values() {
            handle.running.abort();
            let _ = handle.running.await;
            records.push(handle.shown.borrow().record.clone());
        }
        records
    }

    pub(crate) fn reopen(&self) {
        *lock(&self.closed) = false;
    }

    // === statuses on their way to the manager ===

    /// The manager is to be told this task's status.
    pub(crate) fn report(&self, id: &TaskId) {
        lock(&self.unreported).insert(id.clone());
        self.news.notify_one();
    }

    /// The manager is to be told everything: it may be a new one.
    pub(crate) fn report_all(&self) {
        let ids: Vec<TaskId> = lock(&self.handles).keys().cloned().collect();
        lock(&self.unreported).extend(ids);
        self.news.notify_one();
    }

    /// Returns when there is something to report.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// The newest status of every task the manager has not been told of.
    pub(crate) fn take_unreported(&self) -> Vec<(TaskId, TaskStatus)> {
        let ids = std::mem::take(&mut *lock(&self.unreported));
        let handles = lock(&self.handles);
        ids.into_iter()
            .filter_map(|id| {
                let status = handles.get(&id)?.shown.borrow().record.progress.status.clone();
                Some((id, status))
            })
            .collect()
    }
}
