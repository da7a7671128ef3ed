//! The conversation with the manager. It may break at any time; nothing that runs depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use shoal_model::{
    LogEntry, LogSelector, NetworkId, NetworkTable, NodeDescription, TableDelta, TableVersion, Task, TaskId,
    TaskStatus,
};
use shoal_protocol::session::dispatcher_client::DispatcherClient;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{
    Assignments, Heartbeat, Hello, NodeMessage, TableAck, TableRequest, TaskStatusReport, TaskStatuses,
};
use shoal_protocol::{MAX_FRAME_BYTES, PROTOCOL_MAX, PROTOCOL_MIN, decode, encode};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Membership;
use crate::logs::Subscriptions;
use crate::tables::{InForce, Tables};

const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(8);
/// For connecting, and for the manager's first answer.
const OPEN_BOUND: Duration = Duration::from_secs(5);
/// Statuses that come within this time travel together.
const BATCH: Duration = Duration::from_millis(5);
/// Frames that may wait to be sent; whoever adds another waits.
const OUTBOX: usize = 64;
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);

/// What the manager says this node is to run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Assigned {
    /// `put` is everything.
    pub complete: bool,
    pub put: Vec<Task>,
    pub remove: Vec<TaskId>,
}

/// The node, as far as a session knows it.
pub(crate) trait Host: Send + Sync + 'static {
    fn description(&self) -> NodeDescription;
    /// The part of the description that changes while the node runs.
    fn routes(&self) -> watch::Receiver<BTreeSet<IpNet>>;
    fn tables(&self) -> &Tables;
    fn obey(self: &Arc<Self>, assigned: Assigned);
    /// Everything is to be reported anew.
    fn report_all(&self);
    /// Returns when there is something to report.
    fn news(&self) -> impl Future<Output = ()> + Send;
    /// The newest status of every task the manager has not been told of.
    fn take_unreported(&self) -> Vec<(TaskId, TaskStatus)>;
    /// A task's log lines in chunks; empty when it has no container and will not get one.
    fn lines(self: &Arc<Self>, task: TaskId, selector: LogSelector) -> BoxStream<'static, Vec<LogEntry>>;
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{} ({:?})", .0.message(), .0.code())]
    Refused(#[from] tonic::Status),
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager does not answer")]
    Silent,
    #[error(transparent)]
    Malformed(#[from] shoal_protocol::MalformedPayload),
}

/// Keeps a session with the manager of this membership until cancelled.
pub(crate) async fn keep<H: Host>(node: Arc<H>, member: Membership, closing: CancellationToken) {
    let mut back_off = BACK_OFF_FIRST;
    loop {
        let mut welcomed = false;
        let session = hold(&node, &member, &mut welcomed);
        let Some(ended) = closing.run_until_cancelled(session).await else { return };
        if welcomed {
            back_off = BACK_OFF_FIRST;
        }
        tracing::warn!(error = %ended, retry_ms = back_off.as_millis() as u64, "no session with the manager");
        if closing.run_until_cancelled(tokio::time::sleep(back_off)).await.is_none() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// One session, to its end.
async fn hold<H: Host>(node: &Arc<H>, member: &Membership, welcomed: &mut bool) -> Ended {
    match open(node, member).await {
        Ok(mut session) => {
            *welcomed = true;
            tracing::info!(node = %member.node, "session with the manager is open");
            match session.converse().await {
                Ok(()) => Ended::Closed,
                Err(ended) => ended,
            }
        }
        Err(ended) => ended,
    }
}

struct Session<H> {
    node: Arc<H>,
    outbox: mpsc::Sender<NodeMessage>,
    inbox: tonic::Streaming<shoal_protocol::session::ManagerMessage>,
    heartbeat: Duration,
    logs: Subscriptions<H>,
    /// Changes when the description is to be told anew.
    routes: watch::Receiver<BTreeSet<IpNet>>,
    /// The versions the manager has been told to be in force.
    told: BTreeMap<NetworkId, TableVersion>,
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    // The address is not used: the connector knows the socket.
    Endpoint::from_static("http://manager")
        .connect_timeout(OPEN_BOUND)
        .http2_keep_alive_interval(HEARTBEAT_DEFAULT)
        .keep_alive_timeout(HEARTBEAT_DEFAULT * 2)
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
}

/// Says hello and waits for the welcome.
async fn open<H: Host>(node: &Arc<H>, member: &Membership) -> Result<Session<H>, Ended> {
    let channel = connect(&member.manager).await?;
    let mut client = DispatcherClient::new(channel)
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES);
    let (outbox, frames) = mpsc::channel(OUTBOX);
    let held = node.tables().in_force().borrow().clone();
    // Before the description is made, so that no change is missed.
    let mut routes = node.routes();
    routes.mark_unchanged();
    let hello = Hello {
        node_id: member.node.to_string(),
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        description: encode(&node.description()),
        held: held.values().map(|table| TableAck::new(&table.network, table.version)).collect(),
    };
    let told = held.iter().map(|(network, table)| (network.clone(), table.version)).collect();
    // There is room: nothing has been sent yet.
    let _ = outbox.try_send(NodeMessage { message: Some(Up::Hello(hello)) });
    let opening = async {
        let mut inbox = client.session(ReceiverStream::new(frames)).await?.into_inner();
        match inbox.message().await?.and_then(|frame| frame.message) {
            Some(Down::Welcome(welcome)) => Ok((inbox, welcome)),
            _ => Err(Ended::Closed),
        }
    };
    let (inbox, welcome) = tokio::time::timeout(OPEN_BOUND, opening).await.map_err(|_| Ended::Silent)??;
    let heartbeat = match welcome.heartbeat_period_ms {
        0 => HEARTBEAT_DEFAULT,
        period => Duration::from_millis(period),
    };
    // The manager may be a new one, and have missed anything.
    node.report_all();
    let logs = Subscriptions::new(node.clone(), outbox.clone());
    Ok(Session { node: node.clone(), outbox, inbox, heartbeat, logs, routes, told })
}

impl<H: Host> Session<H> {
    /// Until the manager ends it.
    async fn converse(&mut self) -> Result<(), Ended> {
        let node = self.node.clone();
        let mut in_force = node.tables().in_force();
        // What came into force since the hello.
        in_force.mark_changed();
        let mut routes = self.routes.clone();
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = self.inbox.message() => match frame?.map(|frame| frame.message) {
                    Some(Some(message)) => self.take(message).await?,
                    // Of a newer manager: not for us.
                    Some(None) => {}
                    None => return Ok(()),
                },
                () = node.news() => {
                    tokio::time::sleep(BATCH).await;
                    self.send_statuses().await?;
                }
                changed = in_force.changed() => {
                    changed.map_err(|_| Ended::Closed)?;
                    let tables = in_force.borrow_and_update().clone();
                    self.acknowledge(&tables).await?;
                }
                changed = routes.changed() => {
                    changed.map_err(|_| Ended::Closed)?;
                    self.send(Up::Description(encode(&node.description()))).await?;
                }
                _ = beat.tick() => self.send(Up::Heartbeat(Heartbeat {})).await?,
            }
        }
    }

    async fn take(&mut self, message: Down) -> Result<(), Ended> {
        match message {
            Down::Welcome(_) => {}
            Down::Assignments(assignments) => self.assign(assignments)?,
            Down::Table(payload) => self.node.tables().put(decode::<NetworkTable>(&payload)?),
            Down::TableDelta(payload) => {
                if let Err(mismatch) = self.node.tables().apply(&decode::<TableDelta>(&payload)?) {
                    tracing::debug!(%mismatch, "asking for a snapshot");
                    let network_id = mismatch.network.to_string();
                    self.send(Up::TableRequest(TableRequest { network_id })).await?;
                }
            }
            Down::TableGone(network) => self.node.tables().remove(&NetworkId::new(network)),
            Down::LogSubscribe(subscribe) => self.logs.begin(&subscribe)?,
            Down::LogGrant(grant) => self.logs.grant(grant),
            Down::LogUnsubscribe(subscription) => self.logs.end(subscription),
        }
        Ok(())
    }

    fn assign(&self, assignments: Assignments) -> Result<(), Ended> {
        let tasks = assignments.put.iter().map(|payload| decode::<Task>(payload));
        let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
        let remove = assignments.remove.iter().map(TaskId::new).collect();
        self.node.obey(Assigned { complete: assignments.complete, put: tasks, remove });
        Ok(())
    }

    async fn send_statuses(&mut self) -> Result<(), Ended> {
        let reports: Vec<TaskStatusReport> = self
            .node
            .take_unreported()
            .into_iter()
            .map(|(id, status)| TaskStatusReport { task_id: id.to_string(), status: encode(&status) })
            .collect();
        if reports.is_empty() {
            return Ok(());
        }
        self.send(Up::Statuses(TaskStatuses { reports })).await
    }

    async fn acknowledge(&mut self, tables: &InForce) -> Result<(), Ended> {
        self.told.retain(|network, _| tables.contains_key(network));
        for (network, table) in tables.iter() {
            if self.told.insert(network.clone(), table.version) != Some(table.version) {
                self.send(Up::Ack(TableAck::new(network, table.version))).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, message: Up) -> Result<(), Ended> {
        let frame = NodeMessage { message: Some(message) };
        self.outbox.send(frame).await.map_err(|_| Ended::Closed)
    }
}

#[cfg(test)]
mod tests;
