//! One node's session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::{NetworkId, NodeDescription, NodeId, TableVersion, TaskId};
use shoal_protocol::session::dispatcher_server::Dispatcher as DispatcherService;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{Hello, ManagerMessage, NodeMessage, TableAck, Welcome};
use shoal_protocol::{MalformedPayload, decode, negotiate};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::frames::Sent;
use super::hub::NodeView;
use super::{Dispatcher, Event, Report};
use crate::plan::Patience;

/// Frames on their way to the node before the session waits for it.
const FRAMES_MAX: usize = 16;
/// Log subscriptions and the like that may wait.
const ORDERS_MAX: usize = 256;
/// A node says hello at once.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Sessions(pub(super) Arc<Dispatcher>);

#[tonic::async_trait]
impl DispatcherService for Sessions {
    type SessionStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WAIT_MAX, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(Up::Hello(hello)) = hello.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("a session begins with hello"));
        };
        let (welcome, greeted) = self.greet(hello)?;
        let (down, outbound) = mpsc::channel(FRAMES_MAX);
        tokio::spawn(run(self.0.clone(), greeted, welcome, inbound, down));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

/// A node that may have a session.
struct Greeted {
    node: NodeId,
    description: NodeDescription,
    held: BTreeMap<NetworkId, TableVersion>,
    patience: Patience,
}

impl Sessions {
    fn greet(&self, hello: Hello) -> Result<(Welcome, Greeted), Status> {
        let protocol = negotiate(hello.protocol_min, hello.protocol_max).ok_or_else(|| {
            let (min, max) = (hello.protocol_min, hello.protocol_max);
            Status::failed_precondition(format!("no common session protocol: the node speaks {min} to {max}"))
        })?;
        let node = NodeId::new(&hello.node_id);
        let state = self.0.shared.state();
        if state.node(&node).is_none() {
            return Err(not_a_member(&node));
        }
        let description = decode(&hello.description).map_err(malformed)?;
        let held = hello.held.iter().map(TableAck::parts).collect();
        let patience = Patience::of(&state);
        let heartbeat_period_ms = u64::try_from(patience.beat.as_millis()).unwrap_or(u64::MAX);
        let welcome = Welcome { protocol, heartbeat_period_ms };
        Ok((welcome, Greeted { node, description, held, patience }))
    }
}

fn not_a_member(node: &NodeId) -> Status {
    Status::permission_denied(format!("{node} is not a member of the cluster"))
}

fn malformed(error: MalformedPayload) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Tables the node asks to have again, whole.
#[derive(Default)]
struct Requests {
    networks: Mutex<BTreeSet<NetworkId>>,
    asked: Notify,
}

async fn run(
    dispatcher: Arc<Dispatcher>,
    greeted: Greeted,
    welcome: Welcome,
    inbound: Streaming<NodeMessage>,
    down: mpsc::Sender<Result<ManagerMessage, Status>>,
) {
    let Greeted { node, description, held, patience } = greeted;
    let id = dispatcher.next_session.fetch_add(1, Ordering::Relaxed);
    let (view, views) = watch::channel(Arc::default());
    let (outlet, orders) = mpsc::channel(ORDERS_MAX);
    if lock(&dispatcher.outlets).insert(node.clone(), (id, outlet)).is_some() {
        // What was subscribed in the session before ended with it.
        dispatcher.logs.node_left(&node);
    }
    let opened = Event::Opened { node: node.clone(), id, description, held: held.clone(), view };
    if dispatcher.events.send(opened).await.is_err() {
        return;
    }
    let requests = Requests::default();
    let stop = dispatcher.shared.stop.clone();
    let mut ended = tokio::select! {
        ended = receive(&dispatcher, &node, id, inbound, &requests, patience.down) => ended,
        ended = send(&down, welcome, Sent::holding(held), views, orders, &requests) => ended,
        () = other_patience(&dispatcher, patience) => {
            Some(Status::aborted("heartbeats are to come at another pace"))
        }
        () = stop.cancelled() => Some(Status::unavailable("the manager is stopping")),
    };
    if ended.is_some() && dispatcher.shared.state().node(&node).is_none() {
        ended = Some(not_a_member(&node));
    }
    if let Some(status) = ended {
        tracing::debug!(%node, %status, "session ended");
        // The node may not be reading any more.
        let _ = down.try_send(Err(status));
    }
    dispatcher.drop_outlet(&node, id);
    // Refused only when the manager stops.
    let _ = dispatcher.events.send(Event::Closed { node, id }).await;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns when the cluster declares another pace than the node was told: it is told the new one when it
/// opens its next session.
async fn other_patience(dispatcher: &Dispatcher, told: Patience) {
    let mut states = dispatcher.shared.states();
    // Refused only when the manager stops.
    let _ = states.wait_for(|state| Patience::of(state) != told).await;
}

/// Sends what the node is to know; `None` when the node, or a newer session, ended it.
async fn send(
    down: &mpsc::Sender<Result<ManagerMessage, Status>>,
    welcome: Welcome,
    mut sent: Sent,
    mut views: watch::Receiver<Arc<NodeView>>,
    mut orders: mpsc::Receiver<ManagerMessage>,
    requests: &Requests,
) -> Option<Status> {
    let welcome = ManagerMessage { message: Some(Down::Welcome(welcome)) };
    down.send(Ok(welcome)).await.ok()?;
    // The first view comes from the hub once it knows of the session.
    views.changed().await.ok()?;
    loop {
        for network in std::mem::take(&mut *lock(&requests.networks)) {
            sent.forget_table(&network);
        }
        let view = views.borrow_and_update().clone();
        for frame in sent.frames(&view) {
            down.send(Ok(frame)).await.ok()?;
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() {
                return Some(Status::aborted("the node opened another session"));
            },
            order = orders.recv() => down.send(Ok(order?)).await.ok()?,
            () = requests.asked.notified() => {}
        }
    }
}

/// Takes in what the node says, until it ends or is silent for too long.
async fn receive(
    dispatcher: &Dispatcher,
    node: &NodeId,
    id: u64,
    mut inbound: Streaming<NodeMessage>,
    requests: &Requests,
    silence: Duration,
) -> Option<Status> {
    loop {
        let message = match tokio::time::timeout(silence, inbound.message()).await {
            Err(_) => return Some(Status::deadline_exceeded("the node is silent")),
            Ok(Err(status)) => return Some(status),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(message))) => message.message,
        };
        let taken = match message {
            Some(message) => take(dispatcher, node, id, message, requests).await,
            // A message of a newer protocol that has no meaning here.
            None => Ok(()),
        };
        if let Err(status) = taken {
            return Some(status);
        }
    }
}

async fn take(
    dispatcher: &Dispatcher,
    node: &NodeId,
    id: u64,
    message: Up,
    requests: &Requests,
) -> Result<(), Status> {
    let stopping = |_| Status::unavailable("the manager is stopping");
    let heard = match message {
        Up::Ack(ack) => {
            let (network, version) = ack.parts();
            Event::Acked { node: node.clone(), id, network, version }
        }
        Up::Description(payload) => {
            let description = decode(&payload).map_err(malformed)?;
            Event::Described { node: node.clone(), id, description }
        }
        message => {
            match message {
                Up::Hello(_) => return Err(Status::invalid_argument("hello was said already")),
                Up::Statuses(statuses) => {
                    for report in statuses.reports {
                        let status = decode(&report.status).map_err(malformed)?;
                        let report =
                            Report { node: node.clone(), task: TaskId::new(&report.task_id), status };
                        dispatcher
                            .statuses
                            .send(report)
                            .await
                            .map_err(|_| Status::unavailable("the manager is stopping"))?;
                    }
                }
                Up::TableRequest(request) => {
                    lock(&requests.networks).insert(NetworkId::new(&request.network_id));
                    requests.asked.notify_one();
                }
                Up::LogData(data) => dispatcher.logs.take(node, data),
                Up::Heartbeat(_) | Up::Ack(_) | Up::Description(_) => {}
            }
            Event::Heard { node: node.clone(), id }
        }
    };
    dispatcher.events.send(heard).await.map_err(stopping)
}
