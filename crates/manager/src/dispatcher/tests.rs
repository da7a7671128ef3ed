//! A manager with a real store and a real socket, and a node that follows a script.

mod several;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use shoal_model::*;
use shoal_protocol::session::dispatcher_client::DispatcherClient;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::*;
use shoal_protocol::{decode, encode};
use shoal_store::{CommitError, Embedded, Error as StoreError, Expect, Fence, Record, Store, Watch, Write};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Report, write_statuses};
use crate::leader::{Shared, follow, load};
use crate::plan::tests::spec;
use crate::{InitOptions, Manager, ManagerConfig};

/// Nothing here takes longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    _dir: tempfile::TempDir,
    config: ManagerConfig,
    manager: Manager,
    node: NodeId,
}

async fn host() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let config = ManagerConfig {
        store: dir.path().join("cluster.redb"),
        socket: dir.path().join("manager.sock"),
        key: dir.path().join("cluster.key"),
    };
    let options = InitOptions {
        node_name: "n".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: ([192, 0, 2, 1], 2377).into(),
        data_path_address: [192, 0, 2, 1].into(),
        spec: ClusterSpec::default(),
        availability: Availability::Active,
        description: NodeDescription::default(),
    };
    let (manager, node) = Manager::init(config.clone(), options).await.unwrap();
    Host { _dir: dir, config, manager, node }
}

async fn create_network(manager: &Manager) -> NetworkId {
    let ingress = || manager.state().ingress_network().and_then(|network| network.state.clone());
    until(manager, || ingress().is_some()).await;
    let mut spec = manager.state().ingress_network().unwrap().spec.clone();
    (spec.name, spec.ingress) = ("mynet".into(), false);
    manager.create_network(spec).await.unwrap()
}

async fn until(manager: &Manager, condition: impl Fn() -> bool) {
    let mut changes = manager.changes();
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            changes.changed().await.unwrap();
        }
    })
    .await
    .expect("the condition holds in time");
}

/// A node that does as it is told, and acknowledges only when asked to.
struct FakeNode {
    up: mpsc::Sender<NodeMessage>,
    down: Streaming<ManagerMessage>,
    tables: BTreeMap<NetworkId, NetworkTable>,
    tasks: BTreeMap<TaskId, Task>,
    snapshots: usize,
    deltas: usize,
    /// Networks whose tables arrived before the first task did.
    before_tasks: BTreeSet<NetworkId>,
    complete: bool,
    subscriptions: Vec<LogSubscribe>,
    /// Frames of log lines it was granted after the window it began with.
    granted: usize,
    /// The answers to the newest statement on guests.
    answers: (u64, Vec<GuestAnswer>),
    catalogue: Option<Vec<Network>>,
    /// Ids of the requests to verify.
    questions: Vec<u64>,
    refused: Vec<NetworkId>,
}

impl FakeNode {
    async fn connect(socket: PathBuf, node: &NodeId, held: Vec<TableAck>) -> Result<Self, tonic::Status> {
        Self::connect_with(socket, node, held, None).await
    }

    /// With a window, so much only is under way to a node that does not read.
    async fn connect_with(
        socket: PathBuf,
        node: &NodeId,
        held: Vec<TableAck>,
        window: Option<u32>,
    ) -> Result<Self, tonic::Status> {
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://manager")
            .initial_stream_window_size(window)
            .initial_connection_window_size(window);
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let (up, outbound) = mpsc::channel(64);
        let hello = Hello {
            node_id: node.to_string(),
            protocol_min: 1,
            protocol_max: 1,
            description: encode(&NodeDescription { hostname: "host".into(), ..Default::default() }),
            held,
        };
        up.send(NodeMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = DispatcherClient::new(channel).session(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Self {
            up,
            down,
            tables: BTreeMap::new(),
            tasks: BTreeMap::new(),
            snapshots: 0,
            deltas: 0,
            before_tasks: BTreeSet::new(),
            complete: false,
            subscriptions: Vec::new(),
            granted: 0,
            answers: (0, Vec::new()),
            catalogue: None,
            questions: Vec::new(),
            refused: Vec::new(),
        })
    }

    async fn say(&self, message: Up) {
        self.up.send(NodeMessage { message: Some(message) }).await.unwrap();
    }

    /// Takes frames until the condition holds, and sends heartbeats meanwhile.
    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut beat = tokio::time::interval(Duration::from_millis(500));
        while !condition(self) {
            let frame = tokio::select! {
                frame = tokio::time::timeout_at(deadline, self.down.message()) => frame,
                _ = beat.tick() => {
                    self.say(Up::Heartbeat(Heartbeat {})).await;
                    continue;
                }
            };
            self.take(frame.expect("told in time").unwrap().expect("still connected"));
        }
    }

    fn take(&mut self, frame: ManagerMessage) {
        match frame.message.unwrap() {
            Down::Welcome(welcome) => assert_eq!((welcome.protocol, welcome.heartbeat_period_ms), (1, 1000)),
            Down::Table(table) => {
                let table: NetworkTable = decode(&table).unwrap();
                self.snapshots += 1;
                self.tables.insert(table.network.clone(), table);
            }
            Down::TableDelta(delta) => {
                let delta: TableDelta = decode(&delta).unwrap();
                self.deltas += 1;
                self.tables.get_mut(&delta.network).unwrap().apply(&delta).unwrap();
            }
            Down::TableGone(network) => drop(self.tables.remove(&NetworkId::new(network))),
            Down::Assignments(assignments) => {
                assert_eq!(assignments.complete, !self.complete, "complete first, then what changed");
                self.complete = true;
                if self.tasks.is_empty() && !assignments.put.is_empty() {
                    self.before_tasks = self.tables.keys().cloned().collect();
                }
                for task in &assignments.put {
                    let task: Task = decode(task).unwrap();
                    self.tasks.insert(task.id.clone(), task);
                }
                for task in assignments.remove {
                    self.tasks.remove(&TaskId::new(task));
                }
            }
            Down::LogSubscribe(subscription) => self.subscriptions.push(subscription),
            Down::LogUnsubscribe(_) | Down::Surroundings(_) | Down::Standing(_) => {}
            Down::LogGrant(grant) => self.granted += grant.frames as usize,
            Down::GuestAnswers(answers) => {
                let decoded = answers.answers.iter().map(|answer| decode(answer).unwrap()).collect();
                self.answers = (answers.generation, decoded);
            }
            Down::Catalogue(catalogue) => {
                self.catalogue =
                    Some(catalogue.networks.iter().map(|network| decode(network).unwrap()).collect());
            }
            Down::Verify(request) => self.questions.push(request.id),
            Down::TableRefused(refusal) => self.refused.push(NetworkId::new(refusal.network_id)),
        }
    }

    async fn report(&self, task: &TaskId, state: TaskState) {
        let mut status = TaskStatus::new(state, Timestamp::now(), "step");
        status.container =
            Some(ContainerStatus { id: ContainerId::new("c".repeat(64)), pid: 1, exit_code: 0 });
        let report = TaskStatusReport { task_id: task.to_string(), status: encode(&status) };
        self.say(Up::Statuses(TaskStatuses { reports: vec![report] })).await;
    }

    async fn ack_all(&self) {
        for table in self.tables.values() {
            self.say(Up::Ack(TableAck::new(&table.network, table.version))).await;
        }
    }

    fn backends(&self, network: &NetworkId) -> usize {
        let services = self.tables.get(network).map(|table| table.services.values());
        services.into_iter().flatten().map(|service| service.backends.len()).sum()
    }
}

#[tokio::test]
async fn a_task_lives_drains_and_is_forgotten_through_the_session() {
    let host = host().await;
    let manager = &host.manager;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    let ingress = || manager.state().ingress_network().unwrap().id.clone();
    node.until(|node| node.complete && node.tables.len() == 1).await;
    assert!(node.tables.contains_key(&ingress()), "every node has the ingress table");
    until(manager, || manager.state().nodes().all(|node| !node.is_silent())).await;

    let net = create_network(manager).await;
    let web = manager.create_service(spec("web", 2, &[&net]), None).await.unwrap().id;
    node.until(|node| node.tasks.len() == 2).await;
    assert_eq!(node.before_tasks, BTreeSet::from([ingress(), net.clone()]), "tables come before tasks");
    assert!(node.tables[&net].services[&web].vip.is_some());
    assert_eq!((node.tables[&net].endpoints.len(), node.backends(&net)), (2, 0));

    let ids: Vec<TaskId> = node.tasks.keys().cloned().collect();
    let snapshots = node.snapshots;
    for id in &ids {
        node.report(id, TaskState::Running).await;
    }
    node.until(|node| node.backends(&net) == 2).await;
    assert_eq!(node.snapshots, snapshots, "what changed came as deltas");
    assert!(node.deltas > 0);
    let names = &node.tables[&net].endpoints[&EndpointId::from(&ids[0])].names;
    assert_eq!(names[1..], ["c".repeat(12)]);

    // Scaling down: out of the table first, told to stop only once that is acknowledged.
    let service = manager.find_service("web").unwrap();
    let mut fewer = service.spec.clone();
    fewer.mode = ServiceMode::Replicated { replicas: 1 };
    manager.update_service(&web, service.meta.version, fewer, None).await.unwrap();
    node.until(|node| node.backends(&net) == 1).await;
    let stops =
        |node: &FakeNode| node.tasks.values().filter(|task| task.desired > TaskState::Running).count();
    assert_eq!(stops(&node), 0, "withheld until acknowledged");
    let asked = tokio::time::Instant::now();
    node.ack_all().await;
    node.until(|node| stops(node) == 1).await;
    assert!(asked.elapsed() < crate::barrier::BOUND, "by the acknowledgement, not by the bound");

    // The end: addresses are let go of only when the endpoint's removal is acknowledged too.
    let stopped = node.tasks.values().find(|task| task.desired > TaskState::Running).unwrap().id.clone();
    node.report(&stopped, TaskState::Shutdown).await;
    node.until(|node| node.tables[&net].endpoints.len() == 1).await;
    assert!(!manager.state().task(&stopped).unwrap().released);
    node.ack_all().await;
    node.until(|node| !node.tasks.contains_key(&stopped)).await;
    assert!(manager.state().task(&stopped).is_none());

    // A lost table is sent whole.
    let snapshots = node.snapshots;
    node.say(Up::TableRequest(TableRequest { network_id: net.to_string() })).await;
    node.until(|node| node.snapshots == snapshots + 1).await;
    manager.shutdown().await;
}

#[tokio::test]
async fn what_a_node_says_of_itself_later_counts_as_its_hello() {
    let host = host().await;
    let manager = &host.manager;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    node.until(|node| node.complete).await;
    let routes = BTreeSet::from(["10.0.0.0/16".parse().unwrap()]);
    let described = NodeDescription { hostname: "host".into(), routes, ..Default::default() };
    node.say(Up::Description(encode(&described))).await;
    until(manager, || manager.state().nodes().all(|node| node.description == described)).await;
    let net = create_network(manager).await;
    let subnet = manager.state().network(&net).unwrap().state.clone().unwrap().pools[0].subnet;
    assert_eq!(subnet.to_string(), "10.1.0.0/24");
    manager.shutdown().await;
}

#[tokio::test]
async fn a_table_stays_until_the_end_of_the_nodes_last_task_is_acknowledged() {
    let host = host().await;
    let manager = &host.manager;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    let net = create_network(manager).await;
    let mut declared = spec("once", 1, &[&net]);
    declared.task.restart.condition = RestartCondition::None;
    manager.create_service(declared, None).await.unwrap();
    node.until(|node| node.tasks.len() == 1).await;
    node.ack_all().await;
    let id = node.tasks.keys().next().unwrap().clone();
    node.report(&id, TaskState::Failed).await;
    node.until(|node| node.tables[&net].endpoints.is_empty()).await;
    assert!(!manager.state().task(&id).unwrap().released);
    node.ack_all().await;
    node.until(|node| !node.tables.contains_key(&net)).await;
    assert!(manager.state().task(&id).unwrap().released);
    manager.shutdown().await;
}

/// A store whose next commits fail.
struct Faulty {
    store: Embedded,
    failures: AtomicUsize,
}

#[tonic::async_trait]
impl Store for Faulty {
    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Record>), StoreError> {
        self.store.list(prefix).await
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.store.watch(prefix, after)
    }

    async fn commit(&self, expect: Vec<Expect>, writes: Vec<Write>) -> Result<u64, CommitError> {
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(CommitError::Store(StoreError::Failed("no space left on device".into()))),
            Err(_) => self.store.commit(expect, writes).await,
        }
    }

    async fn campaign(&self, name: &str, ttl: Duration) -> Result<Fence, StoreError> {
        self.store.campaign(name, ttl).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

#[tokio::test]
async fn statuses_that_could_not_be_stored_are_stored_later() {
    let host = host().await;
    let _node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    host.manager.create_service(spec("web", 1, &[]), None).await.unwrap();
    let task = || host.manager.state().tasks().find(|task| task.node.is_some()).cloned();
    until(&host.manager, || task().is_some()).await;
    let id = task().unwrap().id.clone();
    host.manager.shutdown().await;

    let store = Embedded::open(&host.config.store).await.unwrap();
    let store = Arc::new(Faulty { store, failures: AtomicUsize::new(1) });
    let fence = store.campaign("manager", PATIENCE).await.unwrap();
    let state = load(&*store).await.unwrap();
    let shared = Shared::new(store.clone(), fence, state);
    let (statuses, reports) = mpsc::channel(4);
    let following = tokio::spawn(follow(shared.clone()));
    let writing = tokio::spawn(write_statuses(shared.clone(), reports));
    for state in [TaskState::Starting, TaskState::Running] {
        let status = TaskStatus::new(state, Timestamp::now(), "step");
        let report = Report { node: host.node.clone(), task: id.clone(), status };
        assert!(statuses.send(report).await.is_ok());
    }
    let mut states = shared.states();
    let stored = states.wait_for(|state| state.task(&id).is_some_and(|task| task.is_serving()));
    tokio::time::timeout(PATIENCE, stored).await.expect("stored in time").unwrap();
    assert_eq!(store.failures.load(Ordering::SeqCst), 0, "the first commit failed");
    shared.stop.cancel();
    writing.await.unwrap();
    following.await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_stop_without_acknowledgement_comes_after_the_bound() {
    let host = host().await;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    let net = create_network(&host.manager).await;
    let web = host.manager.create_service(spec("web", 1, &[&net]), None).await.unwrap().id;
    node.until(|node| node.tasks.len() == 1).await;
    let id = node.tasks.keys().next().unwrap().clone();
    node.report(&id, TaskState::Running).await;
    node.until(|node| node.backends(&net) == 1).await;
    let asked = tokio::time::Instant::now();
    host.manager.remove_service(&web).await.unwrap();
    assert!(host.manager.find_service("web").is_err(), "out of sight at once");
    node.until(|node| node.tasks.values().all(|task| task.desired == TaskState::Remove)).await;
    assert!(asked.elapsed() >= crate::barrier::BOUND);
    host.manager.shutdown().await;
}

#[tokio::test]
async fn a_manager_reopened_in_process_goes_on_with_what_nodes_hold() {
    let host = host().await;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    let net = create_network(&host.manager).await;
    host.manager.create_service(spec("web", 1, &[&net]), None).await.unwrap();
    node.until(|node| node.tasks.len() == 1).await;
    let held: Vec<_> =
        node.tables.values().map(|table| TableAck::new(&table.network, table.version)).collect();
    let tasks: Vec<TaskId> = node.tasks.keys().cloned().collect();
    host.manager.shutdown().await;

    let manager = Manager::open(host.config.clone()).await.unwrap();
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, held).await.unwrap();
    node.until(|node| node.complete && node.tables.len() == 2).await;
    assert_eq!(node.tasks.keys().cloned().collect::<Vec<_>>(), tasks);
    assert_eq!(manager.find_service("web").unwrap().spec.name, "web");
    manager.shutdown().await;
}

#[tokio::test]
async fn a_node_is_told_the_pace_of_heartbeats_anew_when_it_changes() {
    let host = host().await;
    let manager = &host.manager;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    node.until(|node| node.complete).await;
    let cluster = manager.state().cluster().unwrap().clone();
    let faster = ClusterSpec { heartbeat_period: Duration::from_secs(2), ..cluster.spec.clone() };
    manager.update_cluster(cluster.meta.version, faster, crate::Rotate::default()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(status) = node.down.message().await {
                return status;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), tonic::Code::Aborted);
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    let welcome = node.down.message().await.unwrap().unwrap().message.unwrap();
    let Down::Welcome(welcome) = welcome else { panic!("{welcome:?}") };
    assert_eq!(welcome.heartbeat_period_ms, 400);
    manager.shutdown().await;
}

#[tokio::test]
async fn strangers_are_turned_away_and_nodes_speak_for_their_own_tasks_only() {
    let host = host().await;
    let refused = FakeNode::connect(host.config.socket.clone(), &"stranger".into(), vec![]).await;
    assert_eq!(refused.err().unwrap().code(), tonic::Code::PermissionDenied);
    let node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    host.manager.create_service(spec("web", 1, &[]), None).await.unwrap();
    let manager = &host.manager;
    let task = || manager.state().tasks().next().cloned();
    until(manager, || task().is_some_and(|task| task.node.is_some())).await;
    node.report(&"nobody".into(), TaskState::Running).await;
    node.report(&task().unwrap().id, TaskState::Running).await;
    until(manager, || task().is_some_and(|task| task.is_serving())).await;
    manager.shutdown().await;
}

#[tokio::test]
async fn log_lines_come_through_the_session_and_a_lost_node_is_said() {
    let host = host().await;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    host.manager.create_service(spec("web", 1, &[]), None).await.unwrap();
    node.until(|node| node.tasks.len() == 1).await;
    let task = node.tasks.keys().next().unwrap().clone();
    let entry = LogEntry { time: Timestamp::now(), source: LogSource::Stdout, line: b"hello\n".to_vec() };
    for lost in [false, true] {
        let mut lines = Box::pin(host.manager.logs(vec![task.clone()], LogSelector::default()));
        let wanted = if lost { 2 } else { 1 };
        node.until(|node| node.subscriptions.len() == wanted).await;
        let subscription = node.subscriptions.last().unwrap().subscription;
        let entries = vec![encode(&entry)];
        let data = LogData { subscription, task_id: task.to_string(), entries, end: !lost };
        node.say(Up::LogData(data)).await;
        assert_eq!(lines.next().await.unwrap().unwrap(), (task.clone(), entry.clone()));
        if lost {
            let (up, _) = mpsc::channel(1);
            node.up = up;
            let error = lines.next().await.unwrap().unwrap_err();
            assert!(error.message.contains("is not available"), "{error}");
        }
        assert!(lines.next().await.is_none());
    }
    host.manager.shutdown().await;
}

#[tokio::test]
async fn a_slow_reader_of_logs_holds_back_the_node_and_misses_nothing() {
    const FRAMES: usize = 100;
    let host = host().await;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    host.manager.create_service(spec("web", 1, &[]), None).await.unwrap();
    node.until(|node| node.tasks.len() == 1).await;
    let task = node.tasks.keys().next().unwrap().clone();
    let lines = host.manager.logs(vec![task.clone()], LogSelector::default());
    node.until(|node| node.subscriptions.len() == 1).await;
    let LogSubscribe { subscription, window, .. } = node.subscriptions[0].clone();
    let entry = |number: usize| LogEntry {
        time: Timestamp::UNIX_EPOCH,
        source: LogSource::Stdout,
        line: number.to_string().into_bytes(),
    };
    let frame = |number: usize, end| {
        let entries = if end { vec![] } else { vec![encode(&entry(number))] };
        Up::LogData(LogData { subscription, task_id: task.to_string(), entries, end })
    };
    let window = window as usize;
    for number in 0..window {
        node.say(frame(number, false)).await;
    }
    // Nobody has read a line, and the session goes on.
    node.report(&task, TaskState::Running).await;
    let serving = || host.manager.state().task(&task).is_some_and(|task| task.is_serving());
    until(&host.manager, serving).await;
    assert_eq!(node.granted, 0);

    let reading = tokio::spawn(lines.collect::<Vec<_>>());
    for number in window..FRAMES {
        node.until(|node| node.granted + window > number).await;
        node.say(frame(number, false)).await;
    }
    node.say(frame(0, true)).await;
    let read = tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    let read: Vec<_> = read.into_iter().map(Result::unwrap).collect();
    assert_eq!(read, (0..FRAMES).map(|number| (task.clone(), entry(number))).collect::<Vec<_>>());
    host.manager.shutdown().await;
}

#[tokio::test]
async fn plain_containers_are_answered_and_their_networks_listed() {
    let host = host().await;
    let manager = &host.manager;
    let mut node = FakeNode::connect(host.config.socket.clone(), &host.node, vec![]).await.unwrap();
    node.until(|node| node.catalogue.is_some()).await;
    assert_eq!(node.catalogue, Some(Vec::new()));
    let net = create_network(manager).await;
    let mut spec = manager.state().network(&net).unwrap().spec.clone();
    (spec.name, spec.attachable) = ("open".into(), true);
    spec.pools.clear();
    let open = manager.create_network(spec).await.unwrap();
    node.until(|node| node.catalogue.iter().flatten().any(|network| network.id == open)).await;

    let place = PlaceRequest { network: "open".into(), ..PlaceRequest::default() };
    let request = GuestRequest { id: "c1".into(), name: "box".into(), places: vec![place] };
    node.say(Up::Guests(GuestStatement { generation: 7, wanted: vec![encode(&request)] })).await;
    node.until(|node| node.answers.0 == 7 && node.tables.contains_key(&open)).await;
    let PlaceAnswer::Attached(given) = &node.answers.1[0].places[0] else { panic!("{:?}", node.answers) };
    let endpoint = node.tables[&open].endpoints.values().next().unwrap().clone();
    assert_eq!((endpoint.address, &endpoint.names[0]), (given.address, &"box".to_owned()));

    node.say(Up::Guests(GuestStatement { generation: 8, wanted: vec![] })).await;
    node.until(|node| node.answers.0 == 8 && node.tables[&open].endpoints.is_empty()).await;
    assert!(manager.state().guest(&"c1".into()).is_some(), "its address rests until it is acknowledged");
    node.ack_all().await;
    node.until(|node| !node.tables.contains_key(&open)).await;
    until(manager, || manager.state().guests().next().is_none()).await;
    manager.remove_network(&open).await.unwrap();
}
