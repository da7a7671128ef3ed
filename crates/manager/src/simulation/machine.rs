//! A simulated machine: what it has on disk, what runs on it, what its kernel sends where. All of
//! that outlives its daemon; the disk outlives the machine.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_model::{Attachment, ContainerId, NetworkId, NetworkTable, NodeId, Task, TaskId, TaskStatus};

use super::daemon::Daemon;
use super::link::End;
use super::plain::Plain;
use super::world::{DaemonEvent, Event, World, note};

pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) powered: bool,
    pub(super) daemon: Option<Daemon>,
    /// How many daemons there have been.
    pub(super) life: u64,
    pub(super) disk: Disk,
    pub(super) containers: BTreeMap<TaskId, Container>,
    /// Containers of no task.
    pub(super) plains: BTreeMap<ContainerId, Plain>,
    /// The tables that connections go by.
    pub(super) kernel: Kernel,
    /// Tables come into force late.
    pub(super) slow: bool,
    /// When it was last not as it should be: without daemon, session, or being slow.
    pub(super) disturbed: Duration,
}

/// What a node's connections go by.
pub(super) type Kernel = BTreeMap<NetworkId, NetworkTable>;

/// `node.redb`.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) records: BTreeMap<TaskId, Record>,
    /// As the manager sent them.
    pub(super) tables: BTreeMap<NetworkId, NetworkTable>,
}

/// One task as the node has it.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) task: Task,
    /// `false` once the manager has taken the assignment back.
    pub(super) assigned: bool,
    pub(super) status: TaskStatus,
    /// A stop that began on this node, and when it is due without the manager's word.
    pub(super) stop: Option<Duration>,
}

/// A container with the sandbox around it.
pub(super) struct Container {
    /// Tells it from a former container of the same task.
    pub(super) instance: u64,
    pub(super) state: ContainerState,
    /// It takes connections.
    pub(super) serves: bool,
    pub(super) healthy_at: Duration,
    pub(super) unhealthy: bool,
    /// The life of the daemon that made it: another one does not start it.
    pub(super) made_by: u64,
    pub(super) attachments: Vec<Attachment>,
    /// When it ceased to serve, and whether somebody wanted that.
    pub(super) ended: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    Created,
    Running,
    Exited(i32),
}

impl Machine {
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            powered: true,
            daemon: None,
            life: 0,
            disk: Disk::default(),
            containers: BTreeMap::new(),
            plains: BTreeMap::new(),
            kernel: BTreeMap::new(),
            slow: false,
            disturbed: Duration::ZERO,
        }
    }
}

impl Container {
    /// Something may answer on its addresses.
    pub(super) fn runs(&self) -> bool {
        self.state == ContainerState::Running
    }
}

impl World {
    pub(super) fn daemon_later(&mut self, node: usize, wait: Duration, what: DaemonEvent) {
        let life = self.machines[node].life;
        self.queue.after(wait, Event::Daemon { node, life, what });
    }

    /// The node is not as it should be, until then.
    pub(super) fn disturb(&mut self, node: usize, until: Duration) {
        let machine = &mut self.machines[node];
        machine.disturbed = machine.disturbed.max(until);
    }

    pub(super) fn power_on(&mut self, node: usize) {
        if !std::mem::replace(&mut self.machines[node].powered, true) {
            note!(self, "node {node} is switched on");
            self.start_daemon(node);
        }
    }

    /// The machine is gone, with everything that ran on it.
    pub(super) fn power_off(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if !std::mem::replace(&mut machine.powered, false) {
            return;
        }
        machine.daemon = None;
        machine.kernel.clear();
        machine.plains.clear();
        for container in machine.containers.values_mut() {
            if container.state == ContainerState::Running {
                // What is left of it never ran, as far as anybody can see.
                container.state = ContainerState::Created;
                container.serves = false;
                container.ended = Some(self.queue.now());
                container.instance = 0;
            }
            container.attachments.clear();
        }
        note!(self, "node {node} is lost");
        self.disturb(node, self.now());
        for link in self.links_of(node) {
            self.silence_link(link, End::Node);
        }
    }

    /// The daemon dies; containers and kernel go on.
    pub(super) fn crash_daemon(&mut self, node: usize) {
        let Some(daemon) = self.machines[node].daemon.take() else { return };
        note!(self, "daemon of node {node} dies");
        self.disturb(node, self.now());
        // What it had begun is done, or not.
        for (task, work) in daemon.at_work() {
            if self.chance(0.5) {
                self.finish_unseen(node, &task, work);
            }
        }
        for link in self.links_of(node) {
            self.close(link, End::Node);
        }
    }

    pub(super) fn start_daemon(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if !machine.powered || machine.daemon.is_some() {
            return;
        }
        machine.life += 1;
        machine.keep_running_plains();
        // What nobody claims is swept.
        machine.kernel.retain(|network, _| machine.disk.tables.contains_key(network));
        let tasks: Vec<TaskId> = machine.disk.records.keys().cloned().collect();
        machine.daemon = Some(Daemon::new(machine.disk.tables.clone(), &tasks));
        note!(self, "daemon of node {node} starts");
        for task in tasks {
            self.wake_soon(node, &task);
        }
        self.pass_soon(node);
        self.begin_to_connect(node);
    }
}
