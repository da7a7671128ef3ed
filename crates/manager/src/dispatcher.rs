//! Serves the nodes' sessions: one gRPC stream each, over mutual TLS, or over the unix socket of the
//! manager's own node.

pub(crate) mod frames;
mod guests;
pub(crate) mod hub;
mod knowledge;
mod listener;
mod serve;
mod session;
mod surroundings;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::{NetworkId, NodeDescription, NodeId, TableVersion, TaskId, TaskStatus};
use shoal_protocol::session::{ManagerMessage, Surroundings};
use shoal_store::State;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::Error;
use crate::ca::{ClusterKey, keep_certified};
use crate::leader::Shared;
use crate::logs::Logs;
use crate::plan::Observed;
use crate::verify::Questions;
use hub::{Hub, NodeView};
pub(crate) use listener::{Listen, Peer, bind_tcp};

/// Events that may wait for the hub before sessions are held up.
const EVENTS_MAX: usize = 1024;
/// Status reports that may wait for the store before sessions are held up.
const STATUSES_MAX: usize = 1024;
/// Statements on plain containers that may wait for the store before sessions are held up.
const STATEMENTS_MAX: usize = 64;
/// Reports are gathered so long before they are committed together.
const STATUS_BATCH: Duration = Duration::from_millis(10);
/// Reports that could not be committed are tried again after this time.
const STATUS_RETRY: Duration = Duration::from_secs(1);

/// What sessions tell the hub.
enum Event {
    Opened {
        node: NodeId,
        id: u64,
        description: NodeDescription,
        held: BTreeMap<NetworkId, TableVersion>,
        view: watch::Sender<Arc<NodeView>>,
    },
    Closed {
        node: NodeId,
        id: u64,
    },
    Heard {
        node: NodeId,
        id: u64,
    },
    Described {
        node: NodeId,
        id: u64,
        description: NodeDescription,
    },
    Acked {
        node: NodeId,
        id: u64,
        network: NetworkId,
        version: TableVersion,
    },
}

/// One status as a node reported it.
pub(crate) struct Report {
    pub(crate) node: NodeId,
    pub(crate) task: TaskId,
    pub(crate) status: TaskStatus,
}

/// A connected node, seen from outside of its session.
struct Outlet {
    session: u64,
    /// The way for what is no part of its view.
    orders: mpsc::Sender<ManagerMessage>,
    /// What it is to know.
    view: watch::Receiver<Arc<NodeView>>,
    /// What it said of itself last.
    description: Arc<NodeDescription>,
}

/// What sessions share.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    statuses: mpsc::Sender<Report>,
    statements: mpsc::Sender<guests::Statement>,
    pub(crate) logs: Logs,
    pub(crate) questions: Questions,
    /// The connected nodes.
    outlets: Mutex<HashMap<NodeId, Outlet>>,
    /// Requests for tables of networks that the asking node is not on.
    refused: AtomicU64,
    next_session: AtomicU64,
    /// What every node is to know of the cluster around it.
    surroundings: watch::Receiver<Surroundings>,
    /// Opens what the store holds sealed.
    key: Arc<ClusterKey>,
}

impl Dispatcher {
    /// Starts serving on `tcp` and on the unix socket; what the nodes' sessions show appears in
    /// `observed`.
    pub(crate) fn start(
        shared: Arc<Shared>,
        socket: &Path,
        tcp: Listen,
        key: Arc<ClusterKey>,
        observed: watch::Sender<Arc<Observed>>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>, Error> {
        let unix = listener::bind_unix(socket)?;
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (statuses, reports) = mpsc::channel(STATUSES_MAX);
        let (surroundings_out, surroundings) = watch::channel(surroundings::of(&shared.state()));
        let (statements, stated) = mpsc::channel(STATEMENTS_MAX);
        let dispatcher = Arc::new(Self {
            shared: shared.clone(),
            events,
            statuses,
            statements,
            logs: Logs::default(),
            questions: Questions::default(),
            outlets: Mutex::default(),
            refused: AtomicU64::new(0),
            next_session: AtomicU64::new(1),
            surroundings,
            key: key.clone(),
        });
        let (config, tls) = watch::channel(None);
        let doors = listener::open(unix, tcp, tls, &shared.stop);
        tasks.spawn(run_hub(shared.clone(), inbox, observed));
        tasks.spawn(write_statuses(shared.clone(), reports));
        tasks.spawn(guests::answer(dispatcher.clone(), stated));
        tasks.spawn(surroundings::follow(shared.clone(), surroundings_out));
        tasks.spawn(keep_certified(shared, key.clone(), config));
        tasks.spawn(serve::serve(dispatcher.clone(), doors, key, socket.to_owned()));
        Ok(dispatcher)
    }

    /// The way to a node, if it is connected.
    pub(crate) fn outlet(&self, node: &NodeId) -> Option<mpsc::Sender<ManagerMessage>> {
        let outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        outlets.get(node).map(|outlet| outlet.orders.clone())
    }

    /// The versions of the tables that a node is to have now, if it is connected.
    pub(crate) fn wanted(&self, node: &NodeId) -> Option<BTreeMap<NetworkId, TableVersion>> {
        let outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        let view = outlets.get(node)?.view.borrow().clone();
        Some(view.tables.iter().map(|(network, table)| (network.clone(), table.version())).collect())
    }

    /// Requests for tables that were refused so far.
    pub(crate) fn refused_requests(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The way to a node through this very session.
    fn outlet_of(&self, node: &NodeId, session: u64) -> Option<mpsc::Sender<ManagerMessage>> {
        let outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        outlets.get(node).filter(|outlet| outlet.session == session).map(|outlet| outlet.orders.clone())
    }

    /// What a node said of itself last.
    fn described(&self, node: &NodeId) -> Option<Arc<NodeDescription>> {
        let outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        outlets.get(node).map(|outlet| outlet.description.clone())
    }

    /// A session ended; nothing happens when a newer one took its place.
    fn drop_outlet(&self, node: &NodeId, session: u64) {
        let mut outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        if outlets.get(node).is_some_and(|outlet| outlet.session == session) {
            outlets.remove(node);
            self.logs.node_left(node);
            self.questions.node_left(node);
        }
    }
}

/// The sessions' ends of the views, by node.
type Views = HashMap<NodeId, (u64, watch::Sender<Arc<NodeView>>)>;

/// Feeds the hub and hands out what it concludes.
async fn run_hub(
    shared: Arc<Shared>,
    mut inbox: mpsc::Receiver<Event>,
    observed: watch::Sender<Arc<Observed>>,
) {
    let mut hub = Hub::default();
    let mut views = Views::new();
    let mut states = shared.states();
    let mut next_deadline = None;
    let mut conclude = true;
    loop {
        if std::mem::take(&mut conclude) {
            let state = states.borrow_and_update().clone();
            let outcome = hub.update(&state, shared.monotonic());
            next_deadline = outcome.next_deadline;
            // A session of a node that is no member any more ends with its view.
            views.retain(|node, _| state.node(node).is_some());
            for (node, view) in outcome.views {
                if let Some((_, outlet)) = views.get(&node) {
                    outlet.send_replace(view);
                }
            }
            show(&observed, outcome.observed, &state);
        }
        let mut events = Vec::new();
        tokio::select! {
            changed = states.changed() => match changed {
                Ok(()) => conclude = true,
                Err(_) => return,
            },
            count = inbox.recv_many(&mut events, EVENTS_MAX) => if count == 0 { return },
            () = shared.sleep_until(next_deadline) => conclude = true,
            () = shared.stop.cancelled() => return,
        }
        // That a node is still there changes nothing but what is known of it.
        let only_heard = events.iter().all(|event| matches!(event, Event::Heard { .. }));
        let any = !events.is_empty();
        for event in events {
            take(&mut hub, &mut views, event, shared.monotonic());
        }
        if any && only_heard {
            let present = Observed::clone(&observed.borrow());
            let sessions = hub.seen().clone();
            show(&observed, Observed { sessions, ..present }, &states.borrow());
        }
        conclude |= !only_heard;
    }
}

/// Shows what was observed; planning is worth it when something follows from it.
fn show(observed: &watch::Sender<Arc<Observed>>, next: Observed, state: &State) {
    observed.send_if_modified(|present| {
        let changed = next.differs_from(present, state);
        *present = Arc::new(next);
        changed
    });
}

fn take(hub: &mut Hub, views: &mut Views, event: Event, now: Duration) {
    match event {
        Event::Opened { node, id, description, held, view } => {
            tracing::info!(%node, "session opened");
            hub.open(&node, id, description, held, now);
            views.insert(node, (id, view));
        }
        Event::Closed { node, id } => {
            hub.close(&node, id);
            if views.get(&node).is_some_and(|(current, _)| *current == id) {
                tracing::info!(%node, "session closed");
                views.remove(&node);
            }
        }
        Event::Heard { node, id } => hub.heard(&node, id, now),
        Event::Described { node, id, description } => {
            hub.heard(&node, id, now);
            hub.describe(&node, id, description);
        }
        Event::Acked { node, id, network, version } => {
            hub.heard(&node, id, now);
            hub.ack(&node, id, network, version);
        }
    }
}

/// The newest status of each task, by the node that reported it.
pub(crate) type Waiting = BTreeMap<(NodeId, TaskId), TaskStatus>;

/// Commits the nodes' reports in batches. What cannot be stored waits and is tried again: a node says
/// it once in a session only.
async fn write_statuses(shared: Arc<Shared>, mut reports: mpsc::Receiver<Report>) {
    let mut waiting = Waiting::new();
    let mut pause = STATUS_BATCH;
    loop {
        if waiting.is_empty() {
            tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => gather(&mut waiting, report),
                    None => return,
                },
                () = shared.stop.cancelled() => return,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.stop.cancelled() => return,
        }
        while let Ok(report) = reports.try_recv() {
            gather(&mut waiting, report);
        }
        let written = shared
            .transact(|draft, _, _| {
                waiting.iter().for_each(|((node, task), status)| advance(draft, node, task, status));
                Ok::<(), Error>(())
            })
            .await;
        pause = match written {
            Ok(()) => {
                waiting.clear();
                STATUS_BATCH
            }
            Err(error) => {
                tracing::error!(%error, tasks = waiting.len(), "task statuses are not stored yet, trying again");
                STATUS_RETRY
            }
        };
    }
}

pub(crate) fn gather(waiting: &mut Waiting, report: Report) {
    let Report { node, task, status } = report;
    match waiting.entry((node, task)) {
        Entry::Vacant(first) => {
            first.insert(status);
        }
        // One that would go back in life says nothing.
        Entry::Occupied(mut present) => {
            present.get_mut().advance(&status);
        }
    }
}

/// A node speaks for its own tasks only.
pub(crate) fn advance(draft: &mut crate::draft::Draft, node: &NodeId, id: &TaskId, status: &TaskStatus) {
    let Some(task) = draft.state().task(id) else { return };
    if task.node.as_ref() != Some(node) {
        tracing::warn!(%node, task = %id, "report on a task of another node ignored");
        return;
    }
    let mut task = shoal_model::Task::clone(task);
    if task.observe(status) {
        draft.put(shoal_model::Object::Task(task));
    }
}
