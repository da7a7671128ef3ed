//! The agent under simulation: its conversation with the manager. A faithful small model of the real
//! one, which no code here may depend on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use shoal_model::{EndpointId, NetworkId, NetworkTable, TableDelta, TableVersion, Task, TaskId, TaskStatus};
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{
    Assignments, GuestAnswers, GuestStatement, Heartbeat, Hello, ManagerMessage, NodeMessage, TableAck,
    TableRequest, TaskStatusReport, TaskStatuses,
};
use shoal_protocol::{PROTOCOL_MAX, PROTOCOL_MIN, decode, encode};

use super::link::{Carried, End, LinkId};
use super::machine::{Kernel, Record};
use super::runner::{Runner, Work};
use super::wish::description;
use super::world::{DaemonEvent, World, note};

const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// For connecting, and for the manager's first answer.
const OPEN_BOUND: Duration = Duration::from_secs(5);
/// Statuses that come within this time travel together.
const BATCH: Duration = Duration::from_millis(5);
/// How long the first session waits for the stored tables to be in force.
const SETTLE_BOUND: Duration = Duration::from_secs(3);

/// What is in a daemon's memory.
pub(super) struct Daemon {
    /// As the manager sent them.
    pub(super) wanted: BTreeMap<NetworkId, Arc<NetworkTable>>,
    /// Its own endpoints that it knows to be out of service; `true`: their tasks are forgotten.
    pub(super) withdrawn: BTreeMap<EndpointId, bool>,
    pub(super) dirty: BTreeSet<NetworkId>,
    pub(super) pass_due: bool,
    /// The pass under way, the network at work first.
    pub(super) applying: VecDeque<(NetworkId, Option<Wanted>)>,
    pub(super) in_force: BTreeMap<NetworkId, TableVersion>,
    pub(super) runners: BTreeMap<TaskId, Runner>,
    link: Option<LinkId>,
    welcomed: bool,
    connecting: bool,
    back_off: Duration,
    heartbeat: Duration,
    told: BTreeMap<NetworkId, TableVersion>,
    /// Raised with every change of what its plain containers want.
    pub(super) statement: u64,
    unreported: BTreeSet<TaskId>,
    report_due: bool,
}

/// One network's table as it is to be.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) sent: Arc<NetworkTable>,
    /// Without what the node knows to be out of service.
    pub(super) served: NetworkTable,
}

impl Daemon {
    pub(super) fn new(tables: BTreeMap<NetworkId, NetworkTable>, tasks: &[TaskId]) -> Self {
        Self {
            dirty: tables.keys().cloned().collect(),
            wanted: tables.into_iter().map(|(id, table)| (id, Arc::new(table))).collect(),
            withdrawn: BTreeMap::new(),
            pass_due: false,
            applying: VecDeque::new(),
            in_force: BTreeMap::new(),
            runners: tasks.iter().map(|task| (task.clone(), Runner::default())).collect(),
            link: None,
            welcomed: false,
            connecting: false,
            back_off: BACK_OFF_FIRST,
            heartbeat: Duration::from_secs(5),
            told: BTreeMap::new(),
            statement: 0,
            unreported: BTreeSet::new(),
            report_due: false,
        }
    }

    /// The link of the open session.
    pub(super) fn session(&self) -> Option<LinkId> {
        self.link.filter(|_| self.welcomed)
    }

    /// The network is in force with the endpoint in it, and meant to stay so.
    pub(super) fn is_ready(&self, kernel: &Kernel, network: &NetworkId, endpoint: &EndpointId) -> bool {
        let table = kernel.get(network).filter(|_| self.in_force.contains_key(network));
        self.wanted.contains_key(network) && table.is_some_and(|table| table.endpoints.contains_key(endpoint))
    }

    fn has_session(&self) -> bool {
        self.session().is_some()
    }

    /// What is being done, with which tasks.
    pub(super) fn at_work(&self) -> Vec<(TaskId, Work)> {
        self.runners.iter().filter_map(|(task, runner)| Some((task.clone(), runner.work()?))).collect()
    }
}

impl World {
    pub(super) fn daemon_acts(&mut self, node: usize, life: u64, what: DaemonEvent) {
        if self.machines[node].life != life || self.machines[node].daemon.is_none() {
            return;
        }
        match what {
            DaemonEvent::Connect => self.open(node),
            DaemonEvent::OpenBound(link) => {
                let daemon = self.machines[node].daemon.as_ref();
                if daemon.is_some_and(|daemon| daemon.link == Some(link) && !daemon.welcomed) {
                    self.close(link, End::Node);
                }
            }
            DaemonEvent::Heartbeat(link) => self.beat(node, link),
            DaemonEvent::Report => self.report(node),
            DaemonEvent::Pass => self.begin_pass(node),
            DaemonEvent::Switch => self.switch_kernel(node),
            DaemonEvent::Applied => self.applied(node),
            DaemonEvent::Wake(task) => self.run_task(node, &task),
            DaemonEvent::Done(task) => self.work_done(node, &task),
            DaemonEvent::Plain(id, what) => self.plain_acts(node, &id, what),
        }
    }

    fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.machines[node].daemon.as_mut()
    }

    /// The first session waits for the stored tables, but not for ever.
    pub(super) fn begin_to_connect(&mut self, node: usize) {
        self.daemon_later(node, SETTLE_BOUND, DaemonEvent::Connect);
        self.tables_settled(node);
    }

    pub(super) fn tables_settled(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node) else { return };
        let settled = daemon.wanted.keys().all(|network| daemon.in_force.contains_key(network));
        if settled && daemon.link.is_none() && !daemon.connecting {
            daemon.connecting = true;
            let wait = self.millis((1.0, 20.0));
            self.daemon_later(node, wait, DaemonEvent::Connect);
        }
    }

    /// Opens a session, or tries again later.
    fn open(&mut self, node: usize) {
        let life = self.machines[node].life;
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.link.is_none()) else { return };
        daemon.connecting = true;
        let Some(term) = self.manager.as_ref().map(|manager| manager.life) else { return self.retry(node) };
        if self.cut.contains(&node) {
            self.daemon_later(node, OPEN_BOUND, DaemonEvent::Connect);
            return;
        }
        let link = self.connect(node, life, term);
        let machine = &mut self.machines[node];
        let Some(daemon) = &mut machine.daemon else { return };
        daemon.link = Some(link);
        daemon.welcomed = false;
        daemon.told.clone_from(&daemon.in_force);
        let held = daemon.in_force.iter().map(|(network, version)| TableAck::new(network, *version));
        let underway = daemon.wanted.keys().filter(|network| !daemon.in_force.contains_key(*network));
        let underway = underway.map(|network| TableAck::new(network, TableVersion::default()));
        let hello = Hello {
            node_id: machine.id.to_string(),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            description: encode(&description(&machine.id)),
            held: held.chain(underway).collect(),
        };
        self.daemon_later(node, OPEN_BOUND, DaemonEvent::OpenBound(link));
        self.tell(node, Up::Hello(hello));
    }

    fn retry(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node) else { return };
        let most = daemon.back_off;
        daemon.back_off = (daemon.back_off * 2).min(BACK_OFF_MAX);
        daemon.connecting = true;
        let wait = most.mul_f64(self.rng.random_range(0.5..=1.0));
        self.daemon_later(node, wait, DaemonEvent::Connect);
    }

    /// The daemon's end of its link has closed.
    pub(super) fn daemon_lost_link(&mut self, node: usize, link: LinkId) {
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.link == Some(link)) else { return };
        daemon.link = None;
        if daemon.welcomed {
            daemon.back_off = BACK_OFF_FIRST;
        }
        self.disturb(node, self.now());
        self.retry(node);
    }

    fn tell(&mut self, node: usize, message: Up) {
        let link = self.daemon(node).and_then(|daemon| daemon.link);
        if let Some(link) = link {
            self.send(link, End::Manager, Carried::Up(NodeMessage { message: Some(message) }));
        }
    }

    pub(super) fn tell_if_open(&mut self, node: usize, statement: GuestStatement) {
        if self.daemon(node).is_some_and(|daemon| daemon.has_session()) {
            self.tell(node, Up::Guests(statement));
        }
    }

    /// The manager says that the node is no member any more: its tasks run elsewhere now.
    pub(super) fn daemon_refused(&mut self, link: LinkId) {
        let Some(node) = self.links.get(&link).map(|link| link.node) else { return };
        if self.daemon(node).is_some_and(|daemon| daemon.link == Some(link)) {
            self.obey(node, &Assignments { complete: true, ..Assignments::default() });
        }
    }

    /// A frame from the manager.
    pub(super) fn daemon_hears(&mut self, link: LinkId, message: ManagerMessage) {
        let Some(node) = self.links.get(&link).map(|link| link.node) else { return };
        let life = self.links.get(&link).map(|link| link.daemon_life);
        if Some(self.machines[node].life) != life {
            return;
        }
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.link == Some(link)) else { return };
        match message.message {
            Some(Down::Welcome(welcome)) => {
                daemon.welcomed = true;
                daemon.heartbeat = Duration::from_millis(welcome.heartbeat_period_ms);
                daemon.unreported = daemon.runners.keys().cloned().collect();
                self.disturb(node, self.now());
                self.beat(node, link);
                self.report_soon(node);
                self.acknowledge(node);
                self.state_plains(node);
            }
            Some(Down::GuestAnswers(GuestAnswers { generation, answers })) => {
                let answers = answers.iter().map(|answer| decode(answer).expect("an answer")).collect();
                self.plain_answers(node, generation, answers);
            }
            Some(Down::Assignments(assignments)) => self.obey(node, &assignments),
            Some(Down::Table(payload)) => self.put_table(node, decode(&payload).expect("a table")),
            Some(Down::TableDelta(payload)) => {
                let delta: TableDelta = decode(&payload).expect("a delta");
                if let Some(network) = self.apply_delta(node, &delta) {
                    self.tell(node, Up::TableRequest(TableRequest { network_id: network.to_string() }));
                }
            }
            Some(Down::TableGone(network)) => self.table_gone(node, &NetworkId::new(network)),
            _ => {}
        }
    }

    fn beat(&mut self, node: usize, link: LinkId) {
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.link == Some(link)) else { return };
        let wait = daemon.heartbeat;
        self.tell(node, Up::Heartbeat(Heartbeat {}));
        self.daemon_later(node, wait, DaemonEvent::Heartbeat(link));
    }

    fn obey(&mut self, node: usize, assignments: &Assignments) {
        let put: Vec<Task> = assignments.put.iter().map(|task| decode(task).expect("a task")).collect();
        if assignments.complete {
            let named: BTreeSet<&TaskId> = put.iter().map(|task| &task.id).collect();
            let records = self.machines[node].disk.records.keys();
            let rest: Vec<TaskId> = records.filter(|id| !named.contains(id)).cloned().collect();
            rest.iter().for_each(|id| self.unassign(node, id));
        }
        for id in &assignments.remove {
            self.unassign(node, &TaskId::new(id));
        }
        for task in put {
            self.assign(node, task);
        }
    }

    fn assign(&mut self, node: usize, task: Task) {
        let id = task.id.clone();
        note!(self, "node {node} is to take {} to {}", task.name(), task.desired);
        let machine = &mut self.machines[node];
        match machine.disk.records.get_mut(&id) {
            Some(record) => {
                record.task = task;
                record.assigned = true;
            }
            None => {
                let record = Record { status: task.status.clone(), task, assigned: true, stop: None };
                machine.disk.records.insert(id.clone(), record);
                if let Some(daemon) = &mut machine.daemon {
                    daemon.runners.insert(id.clone(), Runner::default());
                }
            }
        }
        self.wake_soon(node, &id);
    }

    fn unassign(&mut self, node: usize, id: &TaskId) {
        if let Some(record) = self.machines[node].disk.records.get_mut(id) {
            note!(self, "node {node} is to forget {id}");
            record.assigned = false;
            self.wake_soon(node, id);
        }
    }

    // === statuses and acknowledgements ===

    /// The task's status has changed.
    pub(super) fn set_status(&mut self, node: usize, id: &TaskId, status: TaskStatus) {
        let machine = &mut self.machines[node];
        let Some(record) = machine.disk.records.get_mut(id) else { return };
        note!(
            self,
            "node {node}: {} is {}{}",
            record.task.name(),
            status.state,
            if status.draining { ", draining" } else { "" }
        );
        record.status = status;
        if let Some(daemon) = &mut machine.daemon {
            daemon.unreported.insert(id.clone());
        }
        self.report_soon(node);
    }

    fn report_soon(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.has_session()) else { return };
        if !std::mem::replace(&mut daemon.report_due, true) {
            self.daemon_later(node, BATCH, DaemonEvent::Report);
        }
    }

    fn report(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let Some(daemon) = &mut machine.daemon else { return };
        daemon.report_due = false;
        if !daemon.has_session() {
            return;
        }
        let ids = std::mem::take(&mut daemon.unreported);
        let status = |id: TaskId| {
            let record = machine.disk.records.get(&id)?;
            Some(TaskStatusReport { task_id: id.to_string(), status: encode(&record.status) })
        };
        let reports: Vec<_> = ids.into_iter().filter_map(status).collect();
        if !reports.is_empty() {
            self.tell(node, Up::Statuses(TaskStatuses { reports }));
        }
    }

    /// Tells the manager what has come into force.
    pub(super) fn acknowledge(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node).filter(|daemon| daemon.has_session()) else { return };
        let Daemon { told, in_force, .. } = daemon;
        told.retain(|network, _| in_force.contains_key(network));
        let mut acks = Vec::new();
        for (network, version) in in_force.iter() {
            if told.insert(network.clone(), *version) != Some(*version) {
                acks.push(TableAck::new(network, *version));
            }
        }
        for ack in acks {
            self.tell(node, Up::Ack(ack));
        }
    }
}
