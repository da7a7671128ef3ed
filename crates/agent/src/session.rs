//! The conversation with the manager. It may break at any time; nothing that runs depends on it.

mod described;
mod renewal;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use shoal_model::{
    DepositId, GuestAnswer, IdGenerator, LogEntry, LogSelector, Network, NetworkId, NetworkTable,
    NodeDescription, NodeId, NodeReport, TableDelta, TableVersion, Task, TaskId, TaskStatus,
};
use shoal_network::OwnNetwork;
use shoal_protocol::identity::{BadCredentials, Credentials, NodeCertificate};
use shoal_protocol::session::dispatcher_client::DispatcherClient;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{
    Assignments, GuestStatement, Heartbeat, Hello, NodeMessage, Standing, Surroundings, TableAck,
    TableRefusal, TableRequest, TaskStatusReport, TaskStatuses, VerifyReport, VerifyRequest,
};
use shoal_protocol::{MAX_FRAME_BYTES, PROTOCOL_MAX, PROTOCOL_MIN, decode, encode, tls};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::deposits::{Value, Values};
use crate::guests::{Guests, Statement};
use crate::link;
use crate::local::Configurations;
use crate::logs::Subscriptions;
use crate::tables::{InForce, Tables};
use crate::{Managers, Membership, RemoteManager};
use described::Described;
use renewal::Renewal;

const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
/// A node that can reach its manager again is a member again within this time. A thousand nodes that have
/// lost theirs are so 700 attempts in a second.
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
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
    /// With `complete` these are all.
    pub values: Values,
}

/// The node, as far as a session knows it.
pub(crate) trait Host: Send + Sync + 'static {
    fn description(&self) -> NodeDescription;
    /// A part of the description that changes while the node runs.
    fn own_network(&self) -> watch::Receiver<OwnNetwork>;
    /// Another one.
    fn configurations(&self) -> watch::Receiver<Configurations>;
    fn tables(&self) -> &Tables;
    fn guests(&self) -> &Guests;
    fn obey(self: &Arc<Self>, assigned: Assigned);
    /// Everything is to be reported anew.
    fn report_all(&self);
    /// Returns when there is something to report.
    fn news(&self) -> impl Future<Output = ()> + Send;
    /// The newest status of every task the manager has not been told of.
    fn take_unreported(&self) -> Vec<(TaskId, TaskStatus)>;
    /// The membership to go on with, also after a restart.
    fn keep_membership(&self, member: &Membership) -> impl Future<Output = crate::Result<()>> + Send;
    fn show_session(&self, state: SessionState);
    /// What it really holds, or why it cannot tell.
    fn verify(self: &Arc<Self>) -> BoxFuture<'static, Result<NodeReport, String>>;
    /// A task's log lines in chunks; empty when it has no container and will not get one.
    fn lines(self: &Arc<Self>, task: TaskId, selector: LogSelector) -> BoxStream<'static, Vec<LogEntry>>;
}

/// How it stands between a node and its managers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SessionState {
    /// None yet, or lost; tried again and again.
    #[default]
    Closed,
    Open,
    /// Managers do not take this node for a member any more, and say why.
    Refused(String),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("cannot connect to {address}: {}", link::reasons(source))]
    Connect { address: String, source: std::io::Error },
    #[error("no manager is known")]
    NoManager,
    #[error(transparent)]
    Credentials(#[from] BadCredentials),
    #[error("the membership could not be stored: {0}")]
    Store(#[from] crate::Error),
    #[error("{} ({:?})", link::reasons(.0), .0.code())]
    Refused(#[from] tonic::Status),
    #[error("the node has a new certificate and begins anew with it")]
    Renewed,
    #[error(
        "this node was away for too long: its certificate expired at {0}. Leave the cluster and join it again: \
             docker swarm leave, then docker swarm join"
    )]
    Expired(Timestamp),
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager does not answer")]
    Silent,
    #[error(transparent)]
    Malformed(#[from] shoal_protocol::MalformedPayload),
}

/// Keeps a session with a manager of this cluster until cancelled.
pub(crate) async fn keep<H: Host>(node: Arc<H>, mut member: Membership, closing: CancellationToken) {
    let mut back_off = BACK_OFF_FIRST;
    let mut chance = IdGenerator::from_os();
    for attempt in 0.. {
        let mut welcomed = false;
        let session = hold(&node, &mut member, attempt, &mut welcomed);
        let Some(ended) = closing.run_until_cancelled(session).await else { return };
        if welcomed {
            back_off = BACK_OFF_FIRST;
        }
        if matches!(ended, Ended::Renewed) {
            tracing::info!(node = %member.node, "the node has a new certificate");
            continue;
        }
        node.show_session(ended.state());
        if ended.is_removal() {
            // Its tasks run elsewhere now, and their addresses are given to others.
            node.obey(Assigned { complete: true, ..Assigned::default() });
        }
        let wait = scattered(back_off, chance.bytes());
        tracing::warn!(error = %ended, retry_ms = wait.as_millis() as u64, "no session with the manager");
        if closing.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// Between half of it and all of it, so that nodes which lost their manager together come back one after
/// the other.
fn scattered(back_off: Duration, [chance]: [u8; 1]) -> Duration {
    back_off.mul_f64(0.5 + f64::from(chance) / 510.0)
}

impl Ended {
    fn state(&self) -> SessionState {
        match self {
            Self::Refused(status) if self.is_removal() => SessionState::Refused(format!(
                "{}: it was removed. Leave the cluster and join it again: docker swarm leave, then docker swarm join",
                status.message()
            )),
            Self::Expired(_) => SessionState::Refused(self.to_string()),
            _ => SessionState::Closed,
        }
    }

    /// A manager says that the node is no member any more.
    fn is_removal(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == tonic::Code::PermissionDenied)
    }
}

/// One session, to its end.
async fn hold<H: Host>(node: &Arc<H>, member: &mut Membership, attempt: usize, welcomed: &mut bool) -> Ended {
    match open(node, member, attempt).await {
        Ok(mut session) => {
            *welcomed = true;
            node.show_session(SessionState::Open);
            tracing::info!(node = %member.node, "session with the manager is open");
            match session.converse(member).await {
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
    described: Described,
    renewal: Renewal,
    /// The root, PEM, that the node's certificate is to be of.
    issuer: String,
    /// The versions the manager has been told to be in force.
    told: BTreeMap<NetworkId, TableVersion>,
}

/// A connection to one of the managers, another one with each attempt.
async fn connect(managers: &Managers, attempt: usize) -> Result<Channel, Ended> {
    let (address, connected) = match managers {
        Managers::Here(socket) => (socket.display().to_string(), link::local(socket).await),
        Managers::Remote { managers, credentials } => {
            let certificate = NodeCertificate::from_pem(&credentials.certificate)?;
            if certificate.expires < Timestamp::now() {
                return Err(Ended::Expired(certificate.expires));
            }
            let config = tls::node(credentials)?;
            let count = managers.len().max(1);
            let manager = managers.get(attempt % count).ok_or(Ended::NoManager)?;
            (manager.address.clone(), link::remote(&manager.address, config).await)
        }
    };
    connected.map_err(|source| Ended::Connect { address, source })
}

/// Says hello and waits for the welcome.
async fn open<H: Host>(node: &Arc<H>, member: &Membership, attempt: usize) -> Result<Session<H>, Ended> {
    let channel = connect(&member.managers, attempt).await?;
    let renewal = Renewal::new(channel.clone());
    let mut client = DispatcherClient::new(channel)
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES);
    let (outbox, frames) = mpsc::channel(OUTBOX);
    let held = of_cluster(&node.tables().in_force().borrow());
    let described = Described::now(&**node);
    // A table on its way into force counts for nothing, but who does not want it any more has to say so.
    let underway = node.tables().of_cluster().into_iter().filter(|network| !held.contains_key(network));
    let underway = underway.map(|network| TableAck::new(&network, TableVersion::default()));
    let in_force = held.values().map(|table| TableAck::new(&table.network, table.version));
    let hello = Hello {
        node_id: member.node.to_string(),
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        description: encode(&node.description()),
        held: in_force.chain(underway).collect(),
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
    let issuer = String::new();
    let node = node.clone();
    Ok(Session { node, outbox, inbox, heartbeat, logs, described, renewal, issuer, told })
}

/// The tables that a manager knows of.
fn of_cluster(in_force: &InForce) -> BTreeMap<NetworkId, Arc<NetworkTable>> {
    let known = in_force.iter().filter(|(_, table)| !table.config.is_local());
    known.map(|(network, table)| (network.clone(), table.clone())).collect()
}

impl<H: Host> Session<H> {
    /// Until the manager ends it.
    async fn converse(&mut self, member: &mut Membership) -> Result<(), Ended> {
        let node = self.node.clone();
        let mut in_force = node.tables().in_force();
        // What came into force since the hello.
        in_force.mark_changed();
        let mut described = self.described.clone();
        let mut statement = node.guests().statement();
        // In each session anew: the manager may have missed anything.
        statement.mark_changed();
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = self.inbox.message() => match frame?.map(|frame| frame.message) {
                    Some(Some(Down::Surroundings(news))) => self.look_around(member, news).await?,
                    Some(Some(Down::Standing(standing))) => self.stand(member, standing).await?,
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
                    let tables = of_cluster(&in_force.borrow_and_update());
                    self.acknowledge(&tables).await?;
                }
                changed = described.changed() => {
                    changed?;
                    self.send(Up::Description(encode(&node.description()))).await?;
                }
                changed = statement.changed() => {
                    changed.map_err(|_| Ended::Closed)?;
                    // What the statement counts on comes first.
                    if described.has_changed()? {
                        described = Described::now(&*node);
                        self.send(Up::Description(encode(&node.description()))).await?;
                    }
                    let statement = statement.borrow_and_update().clone();
                    self.state_guests(&statement).await?;
                }
                credentials = self.renewal.done() => {
                    renewed(&node, member, credentials).await?;
                    return Err(Ended::Renewed);
                }
                _ = beat.tick() => {
                    if let Managers::Remote { credentials, .. } = &member.managers {
                        self.renewal.look(credentials, &self.issuer);
                    }
                    self.send(Up::Heartbeat(Heartbeat {})).await?;
                }
            }
        }
    }

    async fn take(&mut self, message: Down) -> Result<(), Ended> {
        match message {
            Down::Welcome(_) | Down::Surroundings(_) | Down::Standing(_) => {}
            Down::Assignments(assignments) => self.assign(assignments)?,
            Down::Table(payload) => self.node.tables().put(decode::<NetworkTable>(&payload)?),
            Down::TableDelta(payload) => {
                if let Err(mismatch) = self.node.tables().apply(&decode::<TableDelta>(&payload)?) {
                    tracing::debug!(%mismatch, "asking for a snapshot");
                    let network_id = mismatch.network.to_string();
                    self.send(Up::TableRequest(TableRequest { network_id })).await?;
                }
            }
            Down::TableRefused(TableRefusal { network_id, reason }) => {
                tracing::warn!(network = network_id, reason, "the manager refused a table");
            }
            Down::Verify(VerifyRequest { id }) => self.verify(id),
            Down::TableGone(network) => self.node.tables().remove(&NetworkId::new(network)),
            Down::LogSubscribe(subscribe) => self.logs.begin(&subscribe)?,
            Down::LogGrant(grant) => self.logs.grant(grant),
            Down::LogUnsubscribe(subscription) => self.logs.end(subscription),
            Down::GuestAnswers(answers) => {
                let decoded = answers.answers.iter().map(|answer| decode::<GuestAnswer>(answer));
                let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
                self.node.guests().take_answers(answers.generation, decoded);
            }
            Down::Catalogue(catalogue) => {
                let networks = catalogue.networks.iter().map(|network| decode::<Network>(network));
                self.node.guests().take_catalogue(networks.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(())
    }

    /// Where the managers are and whom to trust, for this session's successors.
    async fn look_around(&mut self, member: &mut Membership, news: Surroundings) -> Result<(), Ended> {
        let Managers::Remote { managers, credentials } = &mut member.managers else { return Ok(()) };
        let told = news.managers.into_iter().map(|manager| RemoteManager {
            node: Some(NodeId::new(manager.node_id)),
            address: manager.address,
        });
        let told: Vec<RemoteManager> = told.collect();
        self.issuer = news.issuer;
        if told.is_empty() || (*managers == told && credentials.roots == news.roots) {
            return Ok(());
        }
        *managers = told;
        credentials.roots = news.roots;
        Ok(self.node.keep_membership(member).await?)
    }

    /// Remembered, so that a node which starts without its manager stands as it did.
    async fn stand(&mut self, member: &mut Membership, standing: Standing) -> Result<(), Ended> {
        if member.drained == standing.drained {
            return Ok(());
        }
        member.drained = standing.drained;
        Ok(self.node.keep_membership(member).await?)
    }

    fn assign(&self, assignments: Assignments) -> Result<(), Ended> {
        let tasks = assignments.put.iter().map(|payload| decode::<Task>(payload));
        let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
        let remove = assignments.remove.iter().map(TaskId::new).collect();
        let values = assignments.values.into_iter().map(told).collect();
        self.node.obey(Assigned { complete: assignments.complete, put: tasks, remove, values });
        Ok(())
    }

    /// Looks, and answers when that is done: the session goes on meanwhile.
    fn verify(&self, id: u64) {
        let (looking, outbox) = (self.node.verify(), self.outbox.clone());
        tokio::spawn(async move {
            let report = match looking.await {
                Ok(report) => VerifyReport { id, report: encode(&report), error: String::new() },
                Err(error) => VerifyReport { id, error, ..VerifyReport::default() },
            };
            // The session may have ended; the manager knows then.
            let _ = outbox.send(NodeMessage { message: Some(Up::VerifyReport(report)) }).await;
        });
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

    async fn state_guests(&mut self, statement: &Statement) -> Result<(), Ended> {
        let wanted = statement.wanted.values().map(encode).collect();
        self.send(Up::Guests(GuestStatement { generation: statement.generation, wanted })).await
    }

    async fn acknowledge(&mut self, tables: &BTreeMap<NetworkId, Arc<NetworkTable>>) -> Result<(), Ended> {
        self.told.retain(|network, _| tables.contains_key(network));
        for (network, table) in tables.iter() {
            if self.told.insert(network.clone(), table.version) != Some(table.version) {
                self.send(Up::Ack(TableAck::new(network, table.version))).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, message: Up) -> Result<(), Ended> {
        let frame = NodeMessage { message: Some(message) };
        self.outbox.send(frame).await.map_err(|_| Ended::Closed)
    }
}

fn told(value: shoal_protocol::session::Value) -> (DepositId, Value) {
    let id = DepositId::new(&value.deposit_id);
    match value.gone {
        true => (id, Value::Gone),
        false => (id, Value::Known { bytes: value.value, templated: value.templated }),
    }
}

/// The new certificate is stored before it is shown: from then on the manager counts on it.
async fn renewed<H: Host>(node: &Arc<H>, member: &mut Membership, new: Credentials) -> Result<(), Ended> {
    let expires = NodeCertificate::from_pem(&new.certificate)?.expires;
    tracing::info!(%expires, "the certificate was renewed");
    if let Managers::Remote { credentials, .. } = &mut member.managers {
        *credentials = new;
    }
    Ok(node.keep_membership(member).await?)
}

#[cfg(test)]
mod tests;
