//! A session against a scripted manager, over a real unix socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use shoal_model::{LogSource, NodeId, ServiceId, TaskState};
use shoal_protocol::session::dispatcher_server::{Dispatcher, DispatcherServer};
use shoal_protocol::session::{LogData, LogGrant, LogSubscribe, ManagerMessage, Welcome};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{lock, testing};

const BOUND: Duration = Duration::from_secs(20);

/// A node that only notes what it is told.
struct FakeNode {
    tables: Tables,
    guests: Guests,
    obeyed: Mutex<Vec<Assigned>>,
    unreported: Mutex<Vec<(TaskId, TaskStatus)>>,
    news: Notify,
    own_network: watch::Sender<OwnNetwork>,
    configurations: watch::Sender<Configurations>,
    /// Whether the membership it is to keep is a drained node's, each time.
    kept: Mutex<Vec<bool>>,
}

impl FakeNode {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tables: Tables::new(Vec::new()),
            guests: Guests::default(),
            obeyed: Mutex::default(),
            unreported: Mutex::default(),
            news: Notify::new(),
            own_network: watch::Sender::default(),
            configurations: watch::Sender::default(),
            kept: Mutex::default(),
        })
    }

    fn status() -> (TaskId, TaskStatus) {
        (TaskId::new("t1"), TaskStatus::new(TaskState::Running, Timestamp::UNIX_EPOCH, "started"))
    }

    fn in_force(&self, table: &NetworkTable) {
        self.tables.publish(table.network.clone(), Some(Arc::new(table.clone())));
    }
}

impl Host for FakeNode {
    fn description(&self) -> NodeDescription {
        let OwnNetwork { routes, addresses, .. } = self.own_network.borrow().clone();
        NodeDescription { hostname: "fake".to_owned(), routes, addresses, ..NodeDescription::default() }
    }

    fn own_network(&self) -> watch::Receiver<OwnNetwork> {
        self.own_network.subscribe()
    }

    fn configurations(&self) -> watch::Receiver<Configurations> {
        self.configurations.subscribe()
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn guests(&self) -> &Guests {
        &self.guests
    }

    fn obey(self: &Arc<Self>, assigned: Assigned) {
        lock(&self.obeyed).push(assigned);
    }

    fn report_all(&self) {
        *lock(&self.unreported) = vec![Self::status()];
        self.news.notify_one();
    }

    async fn news(&self) {
        self.news.notified().await;
    }

    fn take_unreported(&self) -> Vec<(TaskId, TaskStatus)> {
        std::mem::take(&mut lock(&self.unreported))
    }

    async fn keep_membership(&self, member: &Membership) -> crate::Result<()> {
        lock(&self.kept).push(member.drained);
        Ok(())
    }

    fn show_session(&self, _: SessionState) {}

    fn verify(self: &Arc<Self>) -> BoxFuture<'static, Result<NodeReport, String>> {
        let node = Some(NodeId::new("node1"));
        Box::pin(async { Ok(NodeReport { node, ..NodeReport::default() }) })
    }

    fn lines(self: &Arc<Self>, _: TaskId, _: LogSelector) -> BoxStream<'static, Vec<LogEntry>> {
        let entry = |line: &str| LogEntry {
            time: Timestamp::UNIX_EPOCH,
            source: LogSource::Stdout,
            line: line.as_bytes().to_vec(),
        };
        stream::iter([vec![entry("one\n"), entry("two\n")], vec![entry("three\n")]]).boxed()
    }
}

/// One accepted session, from the manager's side.
struct Accepted {
    up: Streaming<NodeMessage>,
    down: mpsc::Sender<Result<ManagerMessage, Status>>,
}

impl Accepted {
    async fn next(&mut self) -> Up {
        loop {
            let frame = tokio::time::timeout(BOUND, self.up.message()).await.expect("a frame in time");
            match frame.unwrap().expect("the session is open").message.unwrap() {
                Up::Heartbeat(_) => {}
                Up::Guests(statement) if statement.wanted.is_empty() => {}
                message => return message,
            }
        }
    }

    async fn send(&self, message: Down) {
        self.down.send(Ok(ManagerMessage { message: Some(message) })).await.unwrap();
    }

    async fn welcome(&mut self) -> Hello {
        let Up::Hello(hello) = self.next().await else { panic!("hello comes first") };
        self.send(Down::Welcome(Welcome { protocol: 1, heartbeat_period_ms: 50 })).await;
        hello
    }
}

struct FakeManager {
    sessions: mpsc::Sender<Accepted>,
}

#[tonic::async_trait]
impl Dispatcher for FakeManager {
    type SessionStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, frames) = mpsc::channel(64);
        let accepted = Accepted { up: request.into_inner(), down };
        self.sessions.send(accepted).await.map_err(|_| Status::unavailable("test is over"))?;
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

/// A node with a session to a scripted manager.
struct Stage {
    node: Arc<FakeNode>,
    sessions: mpsc::Receiver<Accepted>,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("manager.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, sessions) = mpsc::channel(8);
        let server = tonic::transport::Server::builder()
            .add_service(DispatcherServer::new(FakeManager { sessions: sender }))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let closing = CancellationToken::new();
        let serving = closing.clone();
        tokio::spawn(async move { serving.run_until_cancelled(server).await });
        let node = FakeNode::new();
        let member = Membership { managers: Managers::Here(socket), ..testing::membership() };
        tokio::spawn(keep(node.clone(), member, closing.clone()));
        Self { node, sessions, _stop: closing.drop_guard(), _dir: dir }
    }

    async fn accept(&mut self) -> Accepted {
        tokio::time::timeout(BOUND, self.sessions.recv()).await.expect("a session in time").unwrap()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, holds).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn hello_names_the_node_and_what_it_holds_and_every_status_follows() {
    let stage = Stage::set();
    stage.node.in_force(&testing::table("n1", 7));
    let mut stage = stage;
    let mut session = stage.accept().await;
    let hello = session.welcome().await;
    assert_eq!(hello.node_id, "node1");
    assert_eq!(decode::<NodeDescription>(&hello.description).unwrap().hostname, "fake");
    let Up::Statuses(statuses) = session.next().await else { panic!("statuses first") };
    assert_eq!(statuses.reports[0].task_id, "t1");
    let status: TaskStatus = decode(&statuses.reports[0].status).unwrap();
    assert_eq!(status, FakeNode::status().1);
}

#[tokio::test]
async fn new_routes_and_addresses_of_the_node_are_told_at_once() {
    let mut stage = Stage::set();
    let mut session = stage.accept().await;
    session.welcome().await;
    assert!(matches!(session.next().await, Up::Statuses(_)));
    let routes = BTreeSet::from(["172.30.0.0/16".parse().unwrap()]);
    let addresses = BTreeSet::from(["192.0.2.7".parse().unwrap()]);
    let (told, others) = ((routes.clone(), addresses.clone()), BTreeMap::new());
    stage.node.own_network.send_replace(OwnNetwork { routes: told.0, addresses: told.1, links: others });
    let Up::Description(payload) = session.next().await else { panic!("the description") };
    let told = decode::<NodeDescription>(&payload).unwrap();
    assert_eq!((told.routes, told.addresses), (routes, addresses));
    stage.node.configurations.send_replace([("part".to_owned(), Vec::new())].into());
    assert!(matches!(session.next().await, Up::Description(_)));
}

#[tokio::test]
async fn assignments_reach_the_node_and_a_new_session_repeats_everything() {
    let mut stage = Stage::set();
    let mut first = stage.accept().await;
    first.welcome().await;
    let task = testing::task("t9");
    let put = vec![encode(&task)];
    first
        .send(Down::Assignments(Assignments {
            complete: true,
            put,
            remove: vec!["t3".to_owned()],
            ..Assignments::default()
        }))
        .await;
    until("the assignment is obeyed", || !lock(&stage.node.obeyed).is_empty()).await;
    let obeyed = lock(&stage.node.obeyed).remove(0);
    assert_eq!(
        obeyed,
        Assigned { complete: true, put: vec![task], remove: vec![TaskId::new("t3")], ..Assigned::default() }
    );

    // The manager goes away; the node comes back by itself and says everything again.
    drop(first);
    stage.node.in_force(&testing::table("n1", 4));
    let mut second = stage.accept().await;
    let hello = second.welcome().await;
    assert_eq!(hello.held.len(), 1);
    assert_eq!(hello.held[0].parts().1.revision, 4);
    assert!(matches!(second.next().await, Up::Statuses(_)));
}

#[tokio::test]
async fn a_table_is_acknowledged_when_it_is_in_force_and_not_before() {
    let mut stage = Stage::set();
    let mut session = stage.accept().await;
    session.welcome().await;
    assert!(matches!(session.next().await, Up::Statuses(_)));
    let table = testing::table("n1", 5);
    session.send(Down::Table(encode(&table))).await;
    until("the table is taken", || stage.node.tables.sent(&table.network).is_some()).await;

    let mut next = table.clone();
    next.version.revision = 6;
    next.services.insert(ServiceId::new("s"), testing::service("web", None, &[]));
    session.send(Down::TableDelta(encode(&table.delta_to(&next)))).await;
    until("the delta is taken", || stage.node.tables.sent(&table.network).is_some_and(|held| *held == next))
        .await;

    stage.node.in_force(&next);
    let Up::Ack(ack) = session.next().await else { panic!("an acknowledgement") };
    assert_eq!(ack.parts(), (NetworkId::new("n1"), next.version));

    session.send(Down::TableGone("n1".to_owned())).await;
    until("the network is let go", || stage.node.tables.sent(&table.network).is_none()).await;
}

#[tokio::test]
async fn a_table_that_is_not_in_force_yet_is_named_without_a_version() {
    let mut stage = Stage::set();
    let mut first = stage.accept().await;
    first.welcome().await;
    let table = testing::table("n1", 5);
    first.send(Down::Table(encode(&table))).await;
    until("the table is taken", || stage.node.tables.sent(&table.network).is_some()).await;
    drop(first);
    let hello = stage.accept().await.welcome().await;
    let held: Vec<_> = hello.held.iter().map(TableAck::parts).collect();
    assert_eq!(held, [(table.network, TableVersion::default())]);
}

#[tokio::test]
async fn a_delta_that_does_not_fit_is_answered_with_a_request() {
    let mut stage = Stage::set();
    let mut session = stage.accept().await;
    session.welcome().await;
    assert!(matches!(session.next().await, Up::Statuses(_)));
    let (old, new) = (testing::table("n1", 5), testing::table("n1", 6));
    session.send(Down::TableDelta(encode(&old.delta_to(&new)))).await;
    let Up::TableRequest(request) = session.next().await else { panic!("a request") };
    assert_eq!(request.network_id, "n1");
    let held: BTreeSet<NetworkId> = stage.node.tables.wanted().into_iter().collect();
    assert!(held.is_empty(), "nothing was taken over");
}

#[tokio::test]
async fn log_lines_come_as_far_as_there_is_room_and_hold_nothing_else_up() {
    let mut stage = Stage::set();
    let mut session = stage.accept().await;
    session.welcome().await;
    assert!(matches!(session.next().await, Up::Statuses(_)));
    let subscribe = LogSubscribe {
        subscription: 3,
        task_ids: vec!["t1".to_owned()],
        selector: encode(&LogSelector::default()),
        window: 1,
    };
    session.send(Down::LogSubscribe(subscribe)).await;
    let lines = |data: &LogData| -> Vec<Vec<u8>> {
        data.entries.iter().map(|entry| decode::<LogEntry>(entry).unwrap().line).collect()
    };
    let Up::LogData(data) = session.next().await else { panic!("lines") };
    assert_eq!((data.subscription, data.end), (3, false));
    assert_eq!(lines(&data), [b"one\n", b"two\n"]);

    // The window is used up: what comes next is anything but a line.
    stage.node.report_all();
    assert!(matches!(session.next().await, Up::Statuses(_)));
    session.send(Down::LogGrant(LogGrant { subscription: 3, frames: 1 })).await;
    let Up::LogData(data) = session.next().await else { panic!("more lines") };
    assert_eq!(lines(&data), [b"three\n"]);
    let Up::LogData(data) = session.next().await else { panic!("an end") };
    assert!(data.end && data.entries.is_empty());
}

#[tokio::test]
async fn what_guests_want_is_stated_in_every_session() {
    let mut stage = Stage::set();
    let request = shoal_model::GuestRequest { id: "c1".into(), name: "box".into(), places: Vec::new() };
    stage.node.guests.restate(request.clone());
    for _ in 0..2 {
        let mut session = stage.accept().await;
        session.welcome().await;
        let statement = loop {
            if let Up::Guests(statement) = session.next().await {
                break statement;
            }
        };
        assert_eq!(decode::<shoal_model::GuestRequest>(&statement.wanted[0]).unwrap(), request);
        let answers = vec![encode(&GuestAnswer { id: "c1".into(), places: Vec::new() })];
        let generation = statement.generation;
        session.send(Down::GuestAnswers(shoal_protocol::session::GuestAnswers { generation, answers })).await;
        let node = stage.node.clone();
        until("the answer arrives", || node.guests.answers().borrow().generation == generation).await;
        node.guests.take_answers(0, Vec::new());
    }
}

#[tokio::test]
async fn a_node_that_is_asked_tells_what_it_holds_and_a_refusal_ends_nothing() {
    let mut stage = Stage::set();
    let mut manager = stage.accept().await;
    manager.welcome().await;
    let reason = "node node1 has nothing on network n9".to_owned();
    manager.send(Down::TableRefused(TableRefusal { network_id: "n9".to_owned(), reason })).await;
    manager.send(Down::Verify(VerifyRequest { id: 7 })).await;
    loop {
        if let Up::VerifyReport(answer) = manager.next().await {
            let report: NodeReport = decode(&answer.report).unwrap();
            assert_eq!((answer.id, answer.error.as_str()), (7, ""));
            assert_eq!(report.node, Some(NodeId::new("node1")));
            break;
        }
    }
}

#[tokio::test]
async fn what_the_manager_decides_about_the_node_is_remembered() {
    let mut stage = Stage::set();
    let mut manager = stage.accept().await;
    manager.welcome().await;
    for drained in [false, true, true, false] {
        manager.send(Down::Standing(Standing { drained })).await;
    }
    until("both changes are kept", || *lock(&stage.node.kept) == [true, false]).await;
}
