//! One node's session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use shoal_model::{
    AddressPool, Deposit, NetworkId, Node, NodeDescription, NodeId, Object, TableVersion, TaskId, check_pool,
};
use shoal_protocol::session::dispatcher_server::Dispatcher as DispatcherService;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{
    Hello, ManagerMessage, NodeMessage, Surroundings, TableAck, TableRefusal, Welcome,
};
use shoal_protocol::{MalformedPayload, decode, negotiate};
use shoal_store::State;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::frames::Sent;
use super::guests::Statement;
use super::hub::NodeView;
use super::{Dispatcher, Event, Outlet, Peer, Report};
use crate::Error;
use crate::ca::ClusterKey;
use crate::control::open_deposit;
use crate::plan::Patience;

/// Frames on their way to the node before the session waits for it.
const FRAMES_MAX: usize = 16;
/// Log subscriptions and the like that may wait.
const ORDERS_MAX: usize = 256;
/// Requests for whole tables that may wait.
const REQUESTS_MAX: usize = 1024;
/// A node says hello at once.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often the clock is compared with the end of a certificate.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

pub(super) struct Sessions(pub(super) Arc<Dispatcher>);

#[tonic::async_trait]
impl DispatcherService for Sessions {
    type SessionStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or(Peer::Candidate);
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WAIT_MAX, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(Up::Hello(hello)) = hello.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("a session begins with hello"));
        };
        let (welcome, greeted) = self.greet(hello, &peer)?;
        self.note_certificate(&greeted.node, &peer).await?;
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
    /// The certificate it showed is good until then.
    expires: Option<Timestamp>,
}

impl Sessions {
    fn greet(&self, hello: Hello, peer: &Peer) -> Result<(Welcome, Greeted), Status> {
        let protocol = negotiate(hello.protocol_min, hello.protocol_max).ok_or_else(|| {
            let (min, max) = (hello.protocol_min, hello.protocol_max);
            Status::failed_precondition(format!("no common session protocol: the node speaks {min} to {max}"))
        })?;
        let node = NodeId::new(&hello.node_id);
        let state = self.0.shared.state();
        let expires = authorise(&state, &node, peer)?;
        let description = described(&hello.description)?;
        let held = hello.held.iter().map(TableAck::parts).collect();
        let patience = Patience::of(&state);
        let heartbeat_period_ms = u64::try_from(patience.beat.as_millis()).unwrap_or(u64::MAX);
        let welcome = Welcome { protocol, heartbeat_period_ms };
        Ok((welcome, Greeted { node, description, held, patience, expires }))
    }
}

impl Sessions {
    /// The certificate a node shows is the one it has stored: only now is an older one history.
    async fn note_certificate(&self, node: &NodeId, peer: &Peer) -> Result<(), Status> {
        let Peer::Member(shown) = peer else { return Ok(()) };
        let noted = self.0.shared.transact(|draft, _, _| {
            let state = draft.state();
            let (Some(cluster), Some(member)) = (state.cluster(), state.node(node)) else { return Ok(()) };
            let certificate = shown.info(cluster);
            let gone = "the certificate is of an authority that the cluster has given up";
            let certificate = certificate.ok_or_else(|| Status::unauthenticated(gone))?;
            let member = Node { certificate: Some(certificate), ..Node::clone(member) };
            draft.put(Object::Node(member));
            Ok::<_, Unnoted>(())
        });
        noted.await.map_err(|Unnoted(status)| status)
    }
}

/// Why a certificate was not noted.
struct Unnoted(Status);

impl From<Status> for Unnoted {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl From<Error> for Unnoted {
    fn from(error: Error) -> Self {
        Self(Status::unavailable(error.to_string()))
    }
}

/// A node speaks for itself alone, and only while it is a member. Returns when that ends by itself.
fn authorise(state: &State, node: &NodeId, peer: &Peer) -> Result<Option<Timestamp>, Status> {
    let member = state.node(node).ok_or_else(|| not_a_member(node))?;
    match peer {
        Peer::OwnNode if member.manager.is_some() => Ok(None),
        Peer::OwnNode => Err(Status::permission_denied(format!("the manager does not run on {node}"))),
        Peer::Member(shown) => {
            let identity = &shown.certificate.identity;
            if identity.node != *node {
                let text = format!("the certificate is of {}, not of {node}", identity.node);
                return Err(Status::permission_denied(text));
            }
            if state.cluster().is_none_or(|cluster| cluster.id != identity.cluster) {
                return Err(Status::permission_denied("the certificate is of another cluster"));
            }
            Ok(Some(shown.certificate.expires))
        }
        Peer::Candidate => Err(Status::unauthenticated("a session needs a node's certificate")),
    }
}

/// Why the hub let go of a session.
fn replaced(dispatcher: &Dispatcher, node: &NodeId) -> Status {
    match dispatcher.shared.state().node(node) {
        Some(_) => Status::aborted("the node opened another session"),
        None => not_a_member(node),
    }
}

/// Returns at this time; never without one. Looks at the clock again and again: it may be set.
async fn until(time: Option<Timestamp>) {
    let Some(time) = time else { return std::future::pending().await };
    while let Ok(left) = Duration::try_from(time.duration_since(Timestamp::now())) {
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

fn not_a_member(node: &NodeId) -> Status {
    Status::permission_denied(format!("{node} is not a member of the cluster"))
}

fn malformed(error: MalformedPayload) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Tables the node asks to have again, whole.
struct Requests<'a> {
    dispatcher: &'a Dispatcher,
    node: &'a NodeId,
    networks: Mutex<BTreeSet<NetworkId>>,
    asked: Notify,
}

impl<'a> Requests<'a> {
    fn new(dispatcher: &'a Dispatcher, node: &'a NodeId) -> Self {
        Self { dispatcher, node, networks: Mutex::default(), asked: Notify::new() }
    }

    fn add(&self, network: NetworkId) -> Result<(), Status> {
        let mut networks = lock(&self.networks);
        if networks.len() >= REQUESTS_MAX {
            return Err(Status::resource_exhausted("too many tables asked for"));
        }
        networks.insert(network);
        self.asked.notify_one();
        Ok(())
    }

    /// A node has tables of the networks it is on, and of no others.
    fn refuse(&self, network: &NetworkId) -> Down {
        let node = self.node;
        tracing::warn!(%node, %network, "refused the table of a network that the node is not on");
        self.dispatcher.refused.fetch_add(1, Ordering::Relaxed);
        let reason = format!("node {node} has nothing on network {network}");
        let refusal = TableRefusal { network_id: network.to_string(), reason };
        Down::TableRefused(refusal)
    }
}

async fn run(
    dispatcher: Arc<Dispatcher>,
    greeted: Greeted,
    welcome: Welcome,
    inbound: Streaming<NodeMessage>,
    down: mpsc::Sender<Result<ManagerMessage, Status>>,
) {
    let Greeted { node, description, held, patience, expires } = greeted;
    let id = dispatcher.next_session.fetch_add(1, Ordering::Relaxed);
    let (view, views) = watch::channel(Arc::default());
    let (outlet, orders) = mpsc::channel(ORDERS_MAX);
    let described = Arc::new(description.clone());
    let outlet = Outlet { session: id, orders: outlet, view: views.clone(), description: described };
    if lock(&dispatcher.outlets).insert(node.clone(), outlet).is_some() {
        // What was subscribed and asked in the session before ended with it.
        dispatcher.logs.node_left(&node);
        dispatcher.questions.node_left(&node);
    }
    let opened = Event::Opened { node: node.clone(), id, description, held: held.clone(), view };
    if dispatcher.events.send(opened).await.is_err() {
        return;
    }
    let requests = Requests::new(&dispatcher, &node);
    let stop = dispatcher.shared.stop.clone();
    let surroundings = dispatcher.surroundings.clone();
    let mut outgoing =
        Outgoing { down: down.clone(), sent: Sent::holding(held), views, orders, surroundings };
    let mut ended = tokio::select! {
        ended = receive(&dispatcher, &node, id, inbound, &requests, patience.down) => ended,
        _ = outgoing.send(welcome, &requests) => Some(replaced(&dispatcher, &node)),
        () = until(expires) => Some(Status::unauthenticated("the node's certificate has expired")),
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

/// What a node says of itself. A node looks at what its user says of networks; one that does not is not to
/// have us stumble.
fn described(payload: &[u8]) -> Result<NodeDescription, Status> {
    let mut description: NodeDescription = decode(payload).map_err(malformed)?;
    let makes_sense = |pools: &Vec<AddressPool>| pools.iter().all(|pool| check_pool(pool).is_ok());
    description.configurations.retain(|_, pools| makes_sense(pools));
    Ok(description)
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

/// What is on its way to a node.
struct Outgoing {
    down: mpsc::Sender<Result<ManagerMessage, Status>>,
    sent: Sent,
    views: watch::Receiver<Arc<NodeView>>,
    orders: mpsc::Receiver<ManagerMessage>,
    surroundings: watch::Receiver<Surroundings>,
}

impl Outgoing {
    /// `None`: the node is not reading any more.
    async fn say(&self, message: Down) -> Option<()> {
        self.down.send(Ok(ManagerMessage { message: Some(message) })).await.ok()
    }

    /// Sends what the node is to know. Ends when the hub lets go of the view: the node opened a newer
    /// session, or is no member any more.
    async fn send(&mut self, welcome: Welcome, requests: &Requests<'_>) -> Option<()> {
        self.say(Down::Welcome(welcome)).await?;
        self.surroundings.mark_changed();
        // The first view comes from the hub once it knows of the session.
        self.views.changed().await.ok()?;
        loop {
            if self.surroundings.has_changed().unwrap_or_default() {
                let surroundings = self.surroundings.borrow_and_update().clone();
                self.say(Down::Surroundings(surroundings)).await?;
            }
            let view = self.views.borrow_and_update().clone();
            let asked = std::mem::take(&mut *lock(&requests.networks));
            for network in asked {
                if view.tables.contains_key(&network) {
                    self.sent.forget_table(&network);
                } else {
                    self.say(requests.refuse(&network)).await?;
                }
            }
            let key = &requests.dispatcher.key;
            for frame in self.sent.frames(&view, &|deposit| open(deposit, key)) {
                self.down.send(Ok(frame)).await.ok()?;
            }
            tokio::select! {
                changed = self.views.changed() => changed.ok()?,
                changed = self.surroundings.changed() => {
                    changed.ok()?;
                    self.surroundings.mark_changed();
                }
                order = self.orders.recv() => self.down.send(Ok(order?)).await.ok()?,
                () = requests.asked.notified() => {}
            }
        }
    }
}

/// A deposit's value, on its way to a node that is to have it.
fn open(deposit: &Deposit, key: &ClusterKey) -> Option<Bytes> {
    let opened = open_deposit(deposit, key);
    opened
        .map(Bytes::from)
        .inspect_err(|error| tracing::error!(deposit = %deposit.id, %error, "kept back"))
        .ok()
}

/// Takes in what the node says, until it ends or is silent for too long.
async fn receive(
    dispatcher: &Dispatcher,
    node: &NodeId,
    id: u64,
    mut inbound: Streaming<NodeMessage>,
    requests: &Requests<'_>,
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
    requests: &Requests<'_>,
) -> Result<(), Status> {
    let stopping = |_| Status::unavailable("the manager is stopping");
    let heard = match message {
        Up::Ack(ack) => {
            let (network, version) = ack.parts();
            Event::Acked { node: node.clone(), id, network, version }
        }
        Up::Description(payload) => {
            let description = described(&payload)?;
            if let Some(outlet) =
                lock(&dispatcher.outlets).get_mut(node).filter(|outlet| outlet.session == id)
            {
                outlet.description = Arc::new(description.clone());
            }
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
                    requests.add(NetworkId::new(&request.network_id))?;
                }
                Up::LogData(data) => dispatcher.logs.take(node, data),
                Up::Guests(statement) => {
                    let wanted = statement.wanted.iter().map(|wanted| decode(wanted));
                    let statement = Statement {
                        node: node.clone(),
                        session: id,
                        generation: statement.generation,
                        wanted: wanted.collect::<Result<_, _>>().map_err(malformed)?,
                    };
                    dispatcher
                        .statements
                        .send(statement)
                        .await
                        .map_err(|_| Status::unavailable("the manager is stopping"))?;
                }
                Up::VerifyReport(report) => dispatcher.questions.take(node, report),
                Up::Heartbeat(_) | Up::Ack(_) | Up::Description(_) => {}
            }
            Event::Heard { node: node.clone(), id }
        }
    };
    dispatcher.events.send(heard).await.map_err(stopping)
}
