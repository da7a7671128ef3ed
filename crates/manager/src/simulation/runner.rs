//! The life of a task on a simulated node: what the real agent decides, with effects that take time
//! and may fail.

use std::time::Duration;

use shoal_model::{ContainerId, ContainerStatus, EndpointId, TaskId, TaskState, TaskStatus};

use super::machine::{Container, ContainerState, Record};
use super::world::{DaemonEvent, Event, World, note};

/// How long a stop that begins on the node waits for the manager's order.
const ORDER_BOUND: Duration = Duration::from_secs(5);
/// How long a task that is to stop keeps its open connections.
const CONNECTIONS_MS: (f64, f64) = (0.0, 2_000.0);
/// How long a container takes to end when it is told.
const EXIT_MS: (f64, f64) = (0.0, 800.0);
/// How long the work of a job takes.
const WORK_MS: (f64, f64) = (1.0, 4_000.0);
/// How often it fails.
const WORK_FAILS: f64 = 0.2;
const CLEAN_UP_MS: (f64, f64) = (1.0, 60.0);

/// What a daemon does with one task at the moment.
#[derive(Default)]
pub(super) struct Runner {
    work: Option<Work>,
    wake_due: bool,
    /// The container was made or taken over by this very daemon.
    attached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Prepare,
    Start,
    /// Its connections end first, then it is signalled.
    Drain,
    /// It has been signalled.
    Stop,
    FreeSandbox,
    Remove,
}

/// The one next thing to do.
enum Action {
    Report(TaskStatus),
    Drain(Duration, TaskStatus),
    Work(Work),
    Forget,
    Wait(Option<Duration>),
}

/// What a runner sees of its task.
struct Seen<'a> {
    record: &'a Record,
    container: Option<&'a Container>,
    networks_ready: bool,
    attached: bool,
    life: u64,
    now: Duration,
    wall: jiff::Timestamp,
}

impl Runner {
    pub(super) fn work(&self) -> Option<Work> {
        self.work
    }
}

impl World {
    pub(super) fn wake_soon(&mut self, node: usize, id: &TaskId) {
        let runner = self.machines[node].daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        if let Some(runner) = runner
            && runner.work.is_none()
            && !std::mem::replace(&mut runner.wake_due, true)
        {
            let wait = self.millis((0.01, 0.5));
            self.daemon_later(node, wait, DaemonEvent::Wake(id.clone()));
        }
    }

    pub(super) fn wake_all(&mut self, node: usize) {
        let Some(daemon) = &self.machines[node].daemon else { return };
        let tasks: Vec<TaskId> = daemon.runners.keys().cloned().collect();
        tasks.iter().for_each(|task| self.wake_soon(node, task));
    }

    /// Does what is to be done next, until that takes time.
    pub(super) fn run_task(&mut self, node: usize, id: &TaskId) {
        let runner = self.machines[node].daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        let Some(runner) = runner else { return };
        runner.wake_due = false;
        if runner.work.is_some() {
            return;
        }
        loop {
            let Some(action) = self.look_at(node, id) else { return };
            match action {
                Action::Report(status) => self.set_status(node, id, status),
                Action::Drain(deadline, status) => {
                    if let Some(record) = self.machines[node].disk.records.get_mut(id) {
                        record.stop = Some(deadline);
                    }
                    self.set_status(node, id, status);
                }
                Action::Work(work) => return self.begin_work(node, id, work),
                Action::Forget => {
                    let machine = &mut self.machines[node];
                    machine.disk.records.remove(id);
                    if let Some(daemon) = &mut machine.daemon {
                        daemon.runners.remove(id);
                    }
                    return self.mark(node, id, Some(true));
                }
                Action::Wait(until) => {
                    if let Some(until) = until {
                        let wait = until.saturating_sub(self.now());
                        self.daemon_later(node, wait, DaemonEvent::Wake(id.clone()));
                    }
                    return;
                }
            }
        }
    }

    /// Brings what is seen up to date; the next thing to do.
    fn look_at(&mut self, node: usize, id: &TaskId) -> Option<Action> {
        let (now, wall) = (self.now(), self.wall());
        let machine = &mut self.machines[node];
        let daemon = machine.daemon.as_mut()?;
        let record = machine.disk.records.get(id)?;
        let endpoint = EndpointId::from(id);
        let mut networks = record.task.attachments.iter().map(|attachment| &attachment.network);
        let ready = networks.all(|network| daemon.is_ready(&machine.kernel, network, &endpoint));
        let runner = daemon.runners.get_mut(id)?;
        if let Some(container) = machine.containers.get_mut(id)
            && container.state == ContainerState::Running
            && !runner.attached
            && ready
        {
            runner.attached = true;
            // One that was healthy is taken to be so; any other has to show it again.
            if record.status.state < TaskState::Running {
                container.healthy_at = now + Duration::from_millis(300);
            }
        }
        let attached = runner.attached;
        let container = machine.containers.get(id);
        let seen = Seen { record, container, networks_ready: ready, attached, life: machine.life, now, wall };
        let mark = seen.is_withdrawn().then_some(false);
        let action = seen.next();
        self.mark(node, id, mark);
        Some(action)
    }

    fn begin_work(&mut self, node: usize, id: &TaskId, work: Work) {
        let bound = match work {
            Work::Prepare => self.weather.prepare_ms,
            Work::Start => self.weather.start_ms,
            Work::Drain => CONNECTIONS_MS,
            Work::Stop => return,
            Work::FreeSandbox | Work::Remove => CLEAN_UP_MS,
        };
        let wait = self.millis(bound);
        let machine = &mut self.machines[node];
        let runner = machine.daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        if let Some(runner) = runner {
            runner.work = Some(work);
            self.daemon_later(node, wait, DaemonEvent::Done(id.clone()));
        }
    }

    pub(super) fn work_done(&mut self, node: usize, id: &TaskId) {
        let runner = self.machines[node].daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        let Some(work) = runner.and_then(|runner| runner.work.take()) else { return };
        match work {
            Work::Prepare | Work::Start => {
                if self.chance(self.weather.failing_starts) {
                    self.fail(node, id, "it does not start");
                } else {
                    self.finish(node, id, work);
                }
            }
            Work::Drain => return self.signal(node, id),
            Work::Stop => return self.set_work(node, id, Work::Stop),
            Work::FreeSandbox | Work::Remove => self.finish(node, id, work),
        }
        self.wake_soon(node, id);
    }

    fn set_work(&mut self, node: usize, id: &TaskId, work: Work) {
        let runner = self.machines[node].daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        if let Some(runner) = runner {
            runner.work = Some(work);
        }
    }

    fn finish(&mut self, node: usize, id: &TaskId, work: Work) {
        let (now, life, instance) = (self.now(), self.machines[node].life, self.number());
        let warm_up = self.millis(self.weather.healthy_ms);
        let machine = &mut self.machines[node];
        match work {
            Work::Prepare => {
                let Some(record) = machine.disk.records.get(id) else { return };
                let container = Container {
                    instance,
                    state: ContainerState::Created,
                    serves: false,
                    healthy_at: Duration::MAX,
                    unhealthy: false,
                    made_by: life,
                    attachments: record.task.attachments.clone(),
                    ended: None,
                };
                machine.containers.insert(id.clone(), container);
                let runner = machine.daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
                if let Some(runner) = runner {
                    runner.attached = true;
                }
            }
            Work::Start => {
                if let Some(container) = machine.containers.get_mut(id) {
                    container.state = ContainerState::Running;
                    container.serves = true;
                    container.healthy_at = now + warm_up;
                    note!(self, "node {node}: the container of {id} runs");
                    self.work_ends_some_time(node, id);
                }
            }
            Work::FreeSandbox => {
                if let Some(container) = machine.containers.get_mut(id) {
                    container.attachments.clear();
                }
            }
            Work::Remove => drop(machine.containers.remove(id)),
            Work::Drain | Work::Stop => {}
        }
        self.check_containers();
    }

    /// The container of a job ends by itself.
    fn work_ends_some_time(&mut self, node: usize, id: &TaskId) {
        let machine = &self.machines[node];
        let is_job = machine.disk.records.get(id).is_some_and(|record| record.task.iteration.is_some());
        let Some(instance) = machine.containers.get(id).map(|it| it.instance).filter(|_| is_job) else {
            return;
        };
        let (wait, code) = (self.millis(WORK_MS), i32::from(self.chance(WORK_FAILS)));
        self.queue.after(wait, Event::ContainerEnds { node, task: id.clone(), instance, code });
    }

    /// What a daemon had begun when it died came to its end all the same.
    pub(super) fn finish_unseen(&mut self, node: usize, id: &TaskId, work: Work) {
        match work {
            Work::Drain => self.signal_container(node, id),
            Work::Stop => {}
            work => self.finish(node, id, work),
        }
    }

    fn signal(&mut self, node: usize, id: &TaskId) {
        self.set_work(node, id, Work::Stop);
        self.signal_container(node, id);
    }

    /// From now on it takes no connection; it ends soon.
    fn signal_container(&mut self, node: usize, id: &TaskId) {
        self.check_signal(node, id);
        let (wait, now) = (self.millis(EXIT_MS), self.now());
        let Some(container) = self.machines[node].containers.get_mut(id) else { return };
        if container.state != ContainerState::Running {
            return self.stopped(node, id);
        }
        container.serves = false;
        container.ended.get_or_insert(now);
        let instance = container.instance;
        note!(self, "node {node}: the container of {id} is told to end");
        self.queue.after(wait, Event::ContainerEnds { node, task: id.clone(), instance, code: 0 });
    }

    pub(super) fn container_ends(&mut self, node: usize, id: &TaskId, instance: u64, code: i32) {
        let now = self.now();
        let container = self.machines[node].containers.get_mut(id);
        let running = |container: &&mut Container| {
            container.instance == instance && container.state == ContainerState::Running
        };
        let Some(container) = container.filter(running) else { return };
        container.state = ContainerState::Exited(code);
        container.serves = false;
        container.ended.get_or_insert(now);
        note!(self, "node {node}: the container of {id} ends with {code}");
        self.stopped(node, id);
    }

    fn stopped(&mut self, node: usize, id: &TaskId) {
        let runner = self.machines[node].daemon.as_mut().and_then(|daemon| daemon.runners.get_mut(id));
        if let Some(runner) = runner {
            runner.work.take_if(|work| matches!(work, Work::Drain | Work::Stop));
        }
        self.wake_soon(node, id);
    }

    fn fail(&mut self, node: usize, id: &TaskId, error: &str) {
        let wall = self.wall();
        let Some(record) = self.machines[node].disk.records.get(id) else { return };
        let status = record.failed(error, wall);
        self.set_status(node, id, status);
    }
}

impl Record {
    fn advance(&self, state: TaskState, message: &str, wall: jiff::Timestamp) -> TaskStatus {
        let mut status = TaskStatus::new(state, wall, message);
        status.container.clone_from(&self.status.container);
        status.draining = self.status.draining;
        status
    }

    fn failed(&self, error: &str, wall: jiff::Timestamp) -> TaskStatus {
        let started = self.status.state >= TaskState::Starting;
        let state = if started { TaskState::Failed } else { TaskState::Rejected };
        TaskStatus { error: error.to_owned(), ..self.advance(state, &self.status.message, wall) }
    }
}

impl Seen<'_> {
    fn state(&self) -> Option<ContainerState> {
        self.container.map(|container| container.state)
    }

    fn is_withdrawn(&self) -> bool {
        let status = &self.record.status;
        let over = status.state.is_terminal() || status.state == TaskState::Running;
        status.draining || (self.state() != Some(ContainerState::Running) && over)
    }

    fn report(&self, state: TaskState, message: &str) -> Action {
        Action::Report(self.record.advance(state, message, self.wall))
    }

    fn next(&self) -> Action {
        let record = self.record;
        if record.status.state.is_terminal() {
            return self.settle();
        }
        let unwanted = !record.assigned || record.task.desired > TaskState::Running;
        match self.state() {
            Some(ContainerState::Exited(code)) => self.ended(code),
            Some(ContainerState::Running) if unwanted => Action::Work(Work::Drain),
            Some(ContainerState::Running) => self.running(),
            None | Some(ContainerState::Created) if unwanted => self.report(TaskState::Shutdown, "shutdown"),
            None | Some(ContainerState::Created) => self.prepare(),
        }
    }

    fn settle(&self) -> Action {
        match self.container {
            Some(container) if container.state == ContainerState::Running => Action::Work(Work::Drain),
            Some(container) if !container.attachments.is_empty() => Action::Work(Work::FreeSandbox),
            _ if self.record.assigned => Action::Wait(None),
            None => Action::Forget,
            Some(_) => Action::Work(Work::Remove),
        }
    }

    fn ended(&self, code: i32) -> Action {
        let record = self.record;
        let ordered = !record.assigned || record.task.desired > TaskState::Running;
        let (state, message) = match code {
            _ if record.stop.is_some() => (TaskState::Failed, "unhealthy"),
            _ if ordered => (TaskState::Shutdown, "shutdown"),
            0 => (TaskState::Complete, "finished"),
            _ => (TaskState::Failed, "failed"),
        };
        self.report(state, message)
    }

    fn prepare(&self) -> Action {
        let record = self.record;
        let prepared = self.container.is_some_and(|container| container.made_by == self.life);
        let make = || if self.networks_ready { Action::Work(Work::Prepare) } else { Action::Wait(None) };
        match record.status.state {
            TaskState::New | TaskState::Pending | TaskState::Assigned => {
                self.report(TaskState::Accepted, "accepted")
            }
            TaskState::Accepted => self.report(TaskState::Preparing, "preparing"),
            TaskState::Preparing if prepared => self.report(TaskState::Ready, "prepared"),
            TaskState::Preparing | TaskState::Ready if !prepared => make(),
            TaskState::Ready if record.task.desired < TaskState::Running => Action::Wait(None),
            TaskState::Ready => match record.task.start_after.filter(|at| *at > self.wall) {
                Some(at) => {
                    let left = Duration::try_from(at.duration_since(self.wall)).unwrap_or_default();
                    Action::Wait(Some(self.now + left))
                }
                None => self.report(TaskState::Starting, "starting"),
            },
            TaskState::Starting if prepared => Action::Work(Work::Start),
            TaskState::Starting if self.container.is_some() => make(),
            _ => Action::Report(record.failed("the container is gone", self.wall)),
        }
    }

    fn running(&self) -> Action {
        let record = self.record;
        let Some(container) = self.container else { return Action::Wait(None) };
        if let Some(deadline) = record.stop {
            let due = deadline <= self.now;
            return if due { Action::Work(Work::Drain) } else { Action::Wait(Some(deadline)) };
        }
        if container.unhealthy && self.attached {
            let serves = record.status.state >= TaskState::Running;
            let bound = if serves { ORDER_BOUND } else { Duration::ZERO };
            let mut status = record.advance(record.status.state, &record.status.message, self.wall);
            status.draining = true;
            return Action::Drain(self.now + bound, status);
        }
        let state = if record.status.state < TaskState::Running
            && (!self.attached || self.now < container.healthy_at)
        {
            TaskState::Starting
        } else {
            TaskState::Running
        };
        let waits = (self.attached && self.now < container.healthy_at).then_some(container.healthy_at);
        if record.status.state >= state && record.status.container.is_some() {
            return Action::Wait(waits);
        }
        let mut status = record.advance(state.max(record.status.state), "started", self.wall);
        status.container =
            Some(ContainerStatus { id: ContainerId::new(record.task.id.as_str()), pid: 1, exit_code: 0 });
        Action::Report(status)
    }
}
