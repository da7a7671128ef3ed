//! Runs one task: does what [`task::next`] says, looks at what came of it, and again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{ContainerId, EndpointId, Healthcheck, Port, Task, TaskId, TaskState};
use shoal_runtime::{ContainerState, Exit};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::health::{self, Health, HealthStatus};
use crate::host_ports::Binding;
use crate::node::Node;
use crate::prepare;
use crate::sandbox::{self, Tenant};
use crate::store::TaskRecord;
use crate::tables::{InForce, Mark};
use crate::task::{self, Action, Container, Observed, Progress, StopCause};
use crate::{Result, deposits, host_ports, volumes};

/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// SIGKILL takes effect within this time, or the kernel holds the process.
const KILL_BOUND: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// What a runner is told.
#[derive(Debug)]
pub(crate) enum Order {
    Assign(Box<Task>),
    Unassign,
    Stop(StopCause),
    /// Make what is missing of the sandbox again; told when that has been tried.
    Renew(oneshot::Sender<()>),
}

/// What others see of a task.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub record: TaskRecord,
    pub health: Option<Health>,
    pub healthcheck: Option<Healthcheck>,
}

pub(crate) struct Runner {
    node: Arc<Node>,
    record: TaskRecord,
    seen: Observed,
    orders: mpsc::UnboundedReceiver<Order>,
    tables: watch::Receiver<InForce>,
    /// Changes when there are new values of secrets and configs.
    values: watch::Receiver<()>,
    shown: Arc<watch::Sender<Snapshot>>,
    /// Its resolver, virtual addresses and registration are this agent's own work, not a former one's.
    attached: bool,
    /// Who waits for the sandbox to be made whole again.
    renewals: Vec<oneshot::Sender<()>>,
    exit: Option<JoinHandle<Exit>>,
    check: Option<Healthcheck>,
    health: watch::Sender<Health>,
    monitor: Option<JoinHandle<()>>,
    /// The status others were last told of.
    stored: Option<Progress>,
}

impl Runner {
    pub(crate) fn new(
        node: Arc<Node>,
        record: TaskRecord,
        seen: Observed,
        orders: mpsc::UnboundedReceiver<Order>,
        shown: Arc<watch::Sender<Snapshot>>,
    ) -> Self {
        let (tables, values) = (node.tables.in_force(), node.deposits.changes());
        Self {
            node,
            record,
            seen,
            orders,
            tables,
            values,
            shown,
            attached: false,
            renewals: Vec::new(),
            exit: None,
            check: None,
            health: watch::Sender::default(),
            monitor: None,
            stored: None,
        }
    }

    /// Until the task is forgotten, or the agent closes.
    pub(crate) async fn run(mut self) {
        let closing = self.node.closing.clone();
        loop {
            if closing.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
            let action = task::next(&self.record, &self.seen, Timestamp::now());
            if action == Action::Forget {
                return self.forget().await;
            }
            if closing.run_until_cancelled(self.perform(action)).await.is_none() {
                return;
            }
        }
    }

    /// Brings what is seen up to date, and tells everybody who must know.
    async fn look(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order);
        }
        self.tables.mark_unchanged();
        self.values.mark_unchanged();
        self.seen.values_known = self.node.deposits.are_known(&self.record.task);
        let networks = self.record.task.attachments.iter().map(|attachment| &attachment.network);
        self.seen.obstacle = self.node.tables.obstacle(networks.clone());
        self.seen.networks_ready =
            self.node.tables.are_ready(&EndpointId::from(&self.record.task.id), networks);
        if let Container::Running { .. } = self.seen.container {
            if !self.attached && self.seen.networks_ready {
                self.attach().await;
            }
            self.renew().await;
            self.watch();
        }
        let checked = self.check.is_some().then(|| self.health.borrow().status);
        self.seen.health = task::health(self.seen.container, self.attached, checked);
        self.tell().await;
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Assign(task) => {
                self.record.task = *task;
                self.record.assigned = true;
            }
            Order::Unassign => self.record.assigned = false,
            Order::Stop(cause) => self.seen.stop_request = Some(cause),
            Order::Renew(done) => self.renewals.push(done),
        }
        // Written with the next change of status at the latest: a manager repeats what it wants.
        self.stored = None;
    }

    /// Ports of the node, marks in the tables, the record on disk, the snapshot.
    async fn tell(&mut self) {
        if host_ports::declared(&self.record.task).next().is_some()
            && let Err(error) = self.lead_ports().await
        {
            tracing::warn!(task = %self.record.task.id, %error, "cannot lead the node's ports to the task");
        }
        let withdrawn = task::is_withdrawn(&self.record, &self.seen);
        let dead = task::is_dead(&self.record, &self.seen);
        let mark = (withdrawn || dead).then_some(Mark { dead, orphan: false });
        self.node.tables.mark(EndpointId::from(&self.record.task.id), mark);
        if self.stored.as_ref() != Some(&self.record.progress) {
            if let Err(error) = self.node.store.put_task(&self.record).await {
                tracing::warn!(task = %self.record.task.id, %error, "cannot store the task's status");
            }
            self.stored = Some(self.record.progress.clone());
        }
        self.show();
    }

    /// The node's ports lead to the task while it serves; they are anybody's once it is dead.
    async fn lead_ports(&mut self) -> Result<()> {
        let (node, id) = (self.node.clone(), self.record.task.id.clone());
        if sandbox::uses_host(&self.record.task) {
            return Ok(());
        }
        if task::is_dead(&self.record, &self.seen) {
            return node.host_ports.release(&node, id.as_str()).await;
        }
        let serves = task::takes_connections(&self.record, &self.seen);
        if node.host_ports.is_as_asked(id.as_str(), serves) {
            return Ok(());
        }
        let addresses = match serves {
            true => {
                let sandbox = node.fabric.sandbox(id.as_str()).await?;
                sandbox.map(|made| prepare::way_in(&node, &self.record.task, &made)).unwrap_or_default()
            }
            false => Vec::new(),
        };
        if serves {
            self.reserve_ports()?;
        }
        node.host_ports.lead(&node, id.as_str(), addresses).await
    }

    fn reserve_ports(&mut self) -> Result<()> {
        let published = self.node.tables.published();
        let wanted = host_ports::declared(&self.record.task);
        let wanted = wanted.map(|port| Port { protocol: port.protocol, number: port.published });
        self.node.tables.give_up_ports(wanted);
        let status = &mut self.record.progress.status;
        let former: Vec<Binding> = status.ports.iter().map(Binding::from).collect();
        let wanted = host_ports::declared(&self.record.task).map(Binding::from);
        let owner = self.record.task.id.as_str();
        let taken = self.node.host_ports.reserve(owner, wanted, &former, &published)?;
        status.ports = taken.into_iter().map(|held| held.port).collect();
        Ok(())
    }

    fn show(&self) {
        let health = self.check.is_some().then(|| self.health.borrow().clone());
        let next = Snapshot { record: self.record.clone(), health, healthcheck: self.check.clone() };
        let mut news = false;
        self.shown.send_modify(|shown| {
            news = shown.record.progress.status != next.record.progress.status;
            *shown = next;
        });
        if news {
            self.node.tasks.report(&self.record.task.id);
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Report(status) => self.record.progress.status = status,
            Action::Drain(stop, status) => {
                tracing::info!(task = %self.record.task.id, cause = ?stop.cause, "taking the task out of service");
                self.record.progress.stop = Some(stop);
                self.record.progress.status = status;
            }
            Action::Prepare => self.prepare().await,
            Action::Start => self.start().await,
            Action::Stop { connections, grace } => self.stop(connections, grace).await,
            Action::FreeSandbox => self.free_sandbox().await,
            Action::FreeValues => self.free_values().await,
            Action::RemoveContainer => self.remove_container().await,
            Action::Forget => {}
            Action::Wait(until) => self.wait(until).await,
        }
    }

    /// Until something changes that `look` sees.
    async fn wait(&mut self, until: Option<Timestamp>) {
        let left =
            until.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        let running = matches!(self.seen.container, Container::Running { .. });
        let serves = task::takes_connections(&self.record, &self.seen);
        let led = sandbox::uses_host(&self.record.task)
            || host_ports::declared(&self.record.task).next().is_none()
            || self.node.host_ports.is_as_asked(self.record.task.id.as_str(), serves);
        let unfinished = running && (!led || !self.attached && self.seen.networks_ready);
        let left = left.into_iter().chain(unfinished.then_some(RETRY)).min();
        let timer = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let mut health = self.health.subscribe();
        health.borrow_and_update();
        if self.check.is_some() && self.seen.health != Some(health.borrow().status) {
            return;
        }
        tokio::select! {
            order = self.orders.recv() => match order {
                Some(order) => self.obey(order),
                None => std::future::pending().await,
            },
            exit = exited(&mut self.exit) => self.take_exit(exit),
            _ = health.changed() => {}
            _ = self.tables.changed() => {}
            _ = self.values.changed() => {}
            () = timer => {}
        }
    }

    // === making and starting ===

    async fn prepare(&mut self) {
        // From here on there may be a sandbox, whatever comes of it.
        let uses_host = sandbox::uses_host(&self.record.task);
        if !uses_host && let Err(error) = self.reserve_ports() {
            return self.fail(error.to_string());
        }
        self.seen.sandbox = !uses_host;
        self.seen.values = self.record.task.spec.container.deposits().next().is_some();
        match self.have_image().await {
            Some(Ok(())) => {}
            Some(Err(error)) => return self.fail(error.to_string()),
            None => return,
        }
        match prepare::container(&self.node, &self.record).await {
            Ok(check) => {
                self.seen.container = Container::Created;
                self.seen.sandbox = true;
                self.attached = true;
                self.check = check;
            }
            Err(error) => {
                self.fail(error.to_string());
                if let Err(error) = volumes::release(&self.node, &self.record.container, true).await {
                    tracing::warn!(task = %self.record.task.id, %error, "volumes that nobody uses stay for now");
                }
            }
        }
    }

    /// A transfer may take long: it is given up, with `None`, when the task is not wanted any more.
    async fn have_image(&mut self) -> Option<crate::Result<()>> {
        let (node, task) = (self.node.clone(), self.record.task.clone());
        let mut image = std::pin::pin!(prepare::image(&node, &task));
        loop {
            tokio::select! {
                found = &mut image => return Some(found),
                Some(order) = self.orders.recv() => {
                    self.obey(order);
                    if task::is_unwanted(&self.record) {
                        return None;
                    }
                }
            }
        }
    }

    async fn attach(&mut self) {
        match prepare::adopt(&self.node, &self.record).await {
            Ok(check) => {
                self.attached = true;
                self.seen.sandbox = !sandbox::uses_host(&self.record.task);
                self.check = check;
                if self.record.progress.status.state == TaskState::Running {
                    // It was healthy when the former process left it.
                    self.health.send_modify(|health| health.status = HealthStatus::Healthy);
                }
            }
            Err(error) => {
                tracing::warn!(task = %self.record.task.id, %error, "cannot take over a running task yet");
            }
        }
    }

    /// Makes the sandbox whole again for those who ask for it.
    async fn renew(&mut self) {
        let waiting = std::mem::take(&mut self.renewals);
        if waiting.is_empty() || !self.attached {
            return;
        }
        if let Err(error) = prepare::renew(&self.node, Tenant::from(&self.record.task)).await {
            tracing::warn!(task = %self.record.task.id, %error, "cannot make the task's sandbox whole again");
        }
        for done in waiting {
            // Who gave up waiting sees for himself.
            let _ = done.send(());
        }
    }

    async fn start(&mut self) {
        match self.node.runtime.start(&self.record.container).await {
            Ok(pid) => self.seen.container = Container::Running { pid },
            Err(error) => {
                // It may have been started all the same, and its end is then to be seen.
                self.observe_container().await;
                if !matches!(self.seen.container, Container::Running { .. }) {
                    self.fail(format!("starting container failed: {error}"));
                }
            }
        }
    }

    fn fail(&mut self, error: String) {
        tracing::info!(task = %self.record.task.id, error, "task failed");
        self.record.progress.status = task::failed(&self.record, error, Timestamp::now());
    }

    // === running ===

    /// Waits for the container's end and probes its health, from now on.
    fn watch(&mut self) {
        if self.exit.is_none() {
            let ending = end(self.node.clone(), self.record.container.clone());
            self.exit = Some(tokio::spawn(ending));
        }
        if let (Some(check), None) = (&self.check, &self.monitor) {
            let probing =
                probe(self.node.clone(), self.record.container.clone(), check.clone(), self.health.clone());
            self.monitor = Some(tokio::spawn(probing));
        }
    }

    fn take_exit(&mut self, exit: Exit) {
        self.exit = None;
        if let Some(monitor) = self.monitor.take() {
            monitor.abort();
        }
        self.seen.container = Container::Exited { code: exit.code };
    }

    /// Looks at the container itself.
    async fn observe_container(&mut self) {
        match self.node.runtime.container(&self.record.container).await {
            Ok(container) => self.seen.container = seen(&container.state),
            Err(shoal_runtime::Error::NoSuchContainer(_)) => self.seen.container = Container::Absent,
            Err(error) => {
                tracing::warn!(container = %self.record.container, %error, "cannot look at the container");
            }
        }
    }

    // === stopping ===

    async fn stop(&mut self, connections: Duration, grace: Duration) {
        // Whose the connections of the node's own namespace are is not known.
        if let Container::Running { pid } = self.seen.container
            && !sandbox::uses_host(&self.record.task)
        {
            let drained = crate::connections::drained(pid, connections);
            tokio::select! {
                () = drained => {}
                exit = exited(&mut self.exit) => return self.take_exit(exit),
            }
        }
        let signal = match self.node.runtime.container(&self.record.container).await {
            Ok(container) => container.stop_signal,
            Err(_) => 15,
        };
        for (signal, bound) in [(signal, grace), (SIGKILL, KILL_BOUND)] {
            if let Err(error) = self.node.runtime.kill(&self.record.container, signal).await {
                tracing::debug!(container = %self.record.container, %error, "cannot signal the container");
            }
            self.watch();
            tokio::select! {
                exit = exited(&mut self.exit) => return self.take_exit(exit),
                () = tokio::time::sleep(bound) => {}
            }
        }
        tracing::warn!(container = %self.record.container, "the container does not end");
        self.observe_container().await;
        tokio::time::sleep(RETRY).await;
    }

    async fn free_sandbox(&mut self) {
        match prepare::free_sandbox(&self.node, self.record.task.id.as_str()).await {
            Ok(()) => {
                self.seen.sandbox = false;
                self.attached = false;
            }
            Err(error) => {
                tracing::warn!(task = %self.record.task.id, %error, "cannot remove the sandbox yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn free_values(&mut self) {
        match deposits::free(&self.node, &self.record.container).await {
            Ok(()) => self.seen.values = false,
            Err(error) => {
                tracing::warn!(task = %self.record.task.id, %error, "cannot take its secrets and configs away yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn remove_container(&mut self) {
        let id = &self.record.container;
        let removed = async {
            self.node.runtime.remove(id).await?;
            // A task's own volumes go with it.
            volumes::release(&self.node, id, true).await
        };
        match removed.await {
            Ok(()) => self.seen.container = Container::Absent,
            Err(error) => {
                tracing::warn!(container = %self.record.container, %error, "cannot remove the container yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn forget(self) {
        let id: &TaskId = &self.record.task.id;
        if let Err(error) = self.node.store.remove_task(id).await {
            tracing::warn!(task = %id, %error, "cannot forget the task on disk");
        }
        self.node.tables.mark(EndpointId::from(id), Some(Mark { dead: true, orphan: true }));
        self.node.tasks.forget(id);
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(exit) = &self.exit {
            exit.abort();
        }
        if let Some(monitor) = &self.monitor {
            monitor.abort();
        }
    }
}

/// What the runtime's word for a container's state means here.
fn seen(state: &ContainerState) -> Container {
    match state {
        ContainerState::Created => Container::Created,
        ContainerState::Running { pid, .. } => Container::Running { pid: *pid },
        ContainerState::Exited { exit, .. } => Container::Exited { code: exit.code },
    }
}

/// The same of a container that a former process left.
pub(crate) fn found(state: &ContainerState) -> Container {
    match seen(state) {
        Container::Created => Container::Unfinished,
        container => container,
    }
}

async fn exited(exit: &mut Option<JoinHandle<Exit>>) -> Exit {
    match exit {
        Some(handle) => match handle.await {
            Ok(exit) => exit,
            // Aborted only together with its runner.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// How the container ends, however often the runtime has to be asked.
pub(crate) async fn end(node: Arc<Node>, id: ContainerId) -> Exit {
    loop {
        match node.runtime.wait(&id).await {
            Ok(exit) => return exit,
            // Somebody else removed it.
            Err(shoal_runtime::Error::NoSuchContainer(_)) => {
                return Exit { code: 255, at: Timestamp::now(), oom: false };
            }
            Err(error) => {
                tracing::warn!(container = %id, %error, "cannot wait for the container, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Probes a running container until aborted.
pub(crate) async fn probe(
    node: Arc<Node>,
    container: ContainerId,
    check: Healthcheck,
    health: watch::Sender<Health>,
) {
    let Some(argv) = health::command(&check) else { return };
    let id = &container;
    let started = match node.runtime.container(id).await.map(|container| container.state) {
        Ok(ContainerState::Running { started, .. }) => started,
        _ => Timestamp::now(),
    };
    let age = || Timestamp::now().duration_since(started).try_into().unwrap_or(Duration::ZERO);
    loop {
        let pause = health::wait(&check, &health.borrow(), age());
        tokio::time::sleep(pause).await;
        let begun = age();
        let result = match node.runtime.probe(id, argv.clone(), check.timeout).await {
            Ok(result) => result,
            Err(error) => {
                // Neither well nor ill: the runtime could not be asked, or the container is gone.
                tracing::debug!(container = %id, %error, "cannot probe the container");
                continue;
            }
        };
        health.send_modify(|health| health::observe(&check, health, begun, result));
    }
}
