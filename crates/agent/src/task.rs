//! The life of one task on this node, as a pure function: from what is assigned and what is seen to
//! the one next thing to do. `runner` does it and looks again.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerStatus, DEFAULT_STOP_GRACE_PERIOD, Task, TaskState, TaskStatus};

use crate::health::HealthStatus;
use crate::store::TaskRecord;

/// How long a stop that begins on the node waits for the manager's order, which comes when the drain
/// barrier has passed.
pub(crate) const DRAIN_ORDER_BOUND: Duration = Duration::from_secs(5);
/// How long a task that is to stop may keep its open connections before it is told.
const DRAIN_CONNECTIONS_BOUND: Duration = Duration::from_secs(2);
/// Container label that replaces [`DRAIN_CONNECTIONS_BOUND`].
const DRAIN_LABEL: &str = "shoal.drain";

/// How far a task has come. Its single writer is the task's runner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// What was last reported.
    pub status: TaskStatus,
    /// A stop that began on this node.
    #[serde(default)]
    pub stop: Option<LocalStop>,
}

/// A stop that began on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LocalStop {
    pub cause: StopCause,
    /// When to stop even without the manager's order.
    pub deadline: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopCause {
    Unhealthy,
    /// `docker stop`, with its own grace period.
    Requested {
        grace: Option<Duration>,
    },
}

/// What the runtime shows of the task's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    Absent,
    /// Made by a process that did not live to start it: it never ran, and is made anew.
    Unfinished,
    Created,
    Running {
        pid: u32,
    },
    Exited {
        code: i32,
    },
}

/// Everything seen of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    pub container: Container,
    /// Its network namespace is there.
    pub sandbox: bool,
    /// The tables of all its networks are in force on this node.
    pub networks_ready: bool,
    /// Why one of them cannot be built here.
    pub obstacle: Option<String>,
    /// What its secrets and configs say is known.
    pub values_known: bool,
    /// They are on the node, as files for its container.
    pub values: bool,
    /// `None` without a health check.
    pub health: Option<HealthStatus>,
    /// `docker stop` asks for it.
    pub stop_request: Option<StopCause>,
}

/// The one next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Take this over as the task's status, keep it, tell the manager.
    Report(TaskStatus),
    /// The same, and remember why the task is being stopped.
    Drain(LocalStop, TaskStatus),
    /// Make sandbox and container, away with what is left of an earlier try.
    Prepare,
    Start,
    /// Wait for open connections, signal, wait, kill.
    Stop {
        connections: Duration,
        grace: Duration,
    },
    FreeSandbox,
    /// Take the files of its secrets and configs away.
    FreeValues,
    RemoveContainer,
    /// Nothing is left of it: drop the record.
    Forget,
    /// Until something changes, or until then.
    Wait(Option<Timestamp>),
}

impl Progress {
    /// Of a task that was just assigned.
    pub(crate) fn of(task: &Task) -> Self {
        Self { status: task.status.clone(), stop: None }
    }
}

/// What to do next. Doing it must change what is seen, or the record, unless it is `Wait`.
pub(crate) fn next(record: &TaskRecord, seen: &Observed, now: Timestamp) -> Action {
    let status = &record.progress.status;
    if status.state.is_terminal() {
        return settle(record, seen);
    }
    let unwanted = is_unwanted(record);
    match seen.container {
        Container::Exited { code } => Action::Report(ended(record, code, now)),
        Container::Running { .. } if unwanted => stop(record),
        Container::Running { pid } => running(record, seen, pid, now),
        Container::Absent | Container::Unfinished | Container::Created if unwanted => {
            Action::Report(advance(record, TaskState::Shutdown, "shutdown", now))
        }
        Container::Absent | Container::Unfinished | Container::Created => prepare(record, seen, now),
    }
}

/// The manager wants it ended, or not at all.
pub(crate) fn is_unwanted(record: &TaskRecord) -> bool {
    !record.assigned || record.task.desired > TaskState::Running
}

/// The health to go by. Whether a running container has a check at all is known only once it is
/// taken over from a former process: until then nobody may call it healthy.
pub(crate) fn health(
    container: Container,
    taken_over: bool,
    checked: Option<HealthStatus>,
) -> Option<HealthStatus> {
    match container {
        Container::Running { .. } if !taken_over => Some(HealthStatus::Starting),
        _ => checked,
    }
}

/// New connections may be led to the task.
pub(crate) fn takes_connections(record: &TaskRecord, seen: &Observed) -> bool {
    let (status, wanted) = (&record.progress.status, record.task.desired <= TaskState::Running);
    let serves = status.state == TaskState::Running && !status.draining && record.progress.stop.is_none();
    serves && record.assigned && wanted && matches!(seen.container, Container::Running { .. })
}

/// The node knows the task's endpoint to be out of service, whatever the tables still say.
pub(crate) fn is_withdrawn(record: &TaskRecord, seen: &Observed) -> bool {
    let status = &record.progress.status;
    status.draining || is_dead(record, seen)
}

/// Nobody will ever answer on the task's addresses again: clients' sockets may be reset.
pub(crate) fn is_dead(record: &TaskRecord, seen: &Observed) -> bool {
    let running = matches!(seen.container, Container::Running { .. });
    let state = record.progress.status.state;
    !running && (state.is_terminal() || state == TaskState::Running)
}

/// A status that says the task failed with this error: rejected before its container was started.
pub(crate) fn failed(record: &TaskRecord, error: String, now: Timestamp) -> TaskStatus {
    let status = &record.progress.status;
    let state = if status.state < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed };
    TaskStatus { error, ..advance(record, state, &status.message.clone(), now) }
}

fn settle(record: &TaskRecord, seen: &Observed) -> Action {
    if matches!(seen.container, Container::Running { .. }) {
        return Action::Stop { connections: Duration::ZERO, grace: Duration::ZERO };
    }
    if seen.sandbox {
        return Action::FreeSandbox;
    }
    if seen.values {
        return Action::FreeValues;
    }
    match seen.container {
        _ if record.assigned => Action::Wait(None),
        Container::Absent => Action::Forget,
        _ => Action::RemoveContainer,
    }
}

fn prepare(record: &TaskRecord, seen: &Observed, now: Timestamp) -> Action {
    let prepared = seen.sandbox && seen.container == Container::Created;
    let ready = seen.networks_ready && seen.values_known;
    let make = || if ready { Action::Prepare } else { Action::Wait(None) };
    match record.progress.status.state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => {
            Action::Report(advance(record, TaskState::Accepted, "accepted", now))
        }
        TaskState::Accepted => Action::Report(advance(record, TaskState::Preparing, "preparing", now)),
        TaskState::Preparing if prepared => {
            Action::Report(advance(record, TaskState::Ready, "prepared", now))
        }
        TaskState::Preparing | TaskState::Ready if !prepared => match &seen.obstacle {
            // Another node may be able to.
            Some(obstacle) => Action::Report(failed(record, obstacle.clone(), now)),
            None => make(),
        },
        TaskState::Ready if record.task.desired < TaskState::Running => Action::Wait(None),
        TaskState::Ready => match record.task.start_after.filter(|&at| at > now) {
            Some(at) => Action::Wait(Some(at)),
            None => Action::Report(advance(record, TaskState::Starting, "starting", now)),
        },
        TaskState::Starting if prepared => Action::Start,
        TaskState::Starting if seen.container == Container::Unfinished => make(),
        // It has been started, and neither it nor its exit code is there any more: the machine was
        // restarted, or somebody else removed it.
        _ => Action::Report(failed(
            record,
            "the container is gone: its node was restarted or reset".into(),
            now,
        )),
    }
}

fn running(record: &TaskRecord, seen: &Observed, pid: u32, now: Timestamp) -> Action {
    let status = &record.progress.status;
    if let Some(local) = &record.progress.stop {
        return if local.deadline <= now { stop(record) } else { Action::Wait(Some(local.deadline)) };
    }
    let unhealthy = (seen.health == Some(HealthStatus::Unhealthy)).then_some(StopCause::Unhealthy);
    if let Some(cause) = unhealthy.or(seen.stop_request) {
        // A task that never ran is in no table: there is nothing to wait for.
        let bound = if status.state < TaskState::Running { Duration::ZERO } else { DRAIN_ORDER_BOUND };
        let mut next = advance(record, status.state, &status.message.clone(), now);
        next.draining = true;
        return Action::Drain(LocalStop { cause, deadline: now + bound }, next);
    }
    let (state, message) = match seen.health {
        Some(HealthStatus::Starting) if status.state < TaskState::Running => {
            (TaskState::Starting, "starting")
        }
        _ => (TaskState::Running, "started"),
    };
    let known = status.container.as_ref().is_some_and(|container| container.pid == pid);
    if status.state >= state && known {
        return Action::Wait(None);
    }
    let mut next = advance(record, status.state.max(state), message, now);
    next.container = Some(ContainerStatus { id: record.container.clone(), pid, exit_code: 0 });
    Action::Report(next)
}

fn stop(record: &TaskRecord) -> Action {
    let spec = &record.task.spec.container;
    let asked = match record.progress.stop {
        Some(LocalStop { cause: StopCause::Requested { grace }, .. }) => grace,
        _ => None,
    };
    let connections = match spec.labels.get(DRAIN_LABEL).and_then(|text| parse_duration(text)) {
        _ if record.task.attachments.is_empty() && record.progress.status.ports.is_empty() => Duration::ZERO,
        Some(bound) => bound,
        None => DRAIN_CONNECTIONS_BOUND,
    };
    Action::Stop { connections, grace: asked.or(spec.stop_grace_period).unwrap_or(DEFAULT_STOP_GRACE_PERIOD) }
}

/// The final status of a task whose container has exited, in SwarmKit's words.
fn ended(record: &TaskRecord, code: i32, now: Timestamp) -> TaskStatus {
    let local = record.progress.stop.as_ref().map(|stop| stop.cause);
    let ordered = !record.assigned || record.task.desired > TaskState::Running;
    let message = record.progress.status.message.clone();
    let (state, message, error) = match (local, code) {
        (Some(StopCause::Unhealthy), code) => {
            let error = format!("task: non-zero exit ({code}): dockerexec: unhealthy container");
            (TaskState::Failed, message, error)
        }
        (None, _) if ordered => (TaskState::Shutdown, "shutdown".to_owned(), String::new()),
        (_, 0) => (TaskState::Complete, "finished".to_owned(), String::new()),
        (_, code) => (TaskState::Failed, message, format!("task: non-zero exit ({code})")),
    };
    let mut status = advance(record, state, &message, now);
    status.error = error;
    status.container = Some(ContainerStatus { id: record.container.clone(), pid: 0, exit_code: code });
    status
}

fn advance(record: &TaskRecord, state: TaskState, message: &str, now: Timestamp) -> TaskStatus {
    let mut status = TaskStatus::new(state, now, message);
    status.container = record.progress.status.container.clone();
    if !state.is_terminal() {
        status.ports = record.progress.status.ports.clone();
    }
    status.draining = record.progress.status.draining;
    status
}

/// `2s`, `500ms` or a number of seconds.
fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
