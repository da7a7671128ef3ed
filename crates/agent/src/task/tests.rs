use proptest::prelude::*;
use shoal_model::ContainerId;

use super::*;
use crate::testing;

fn record() -> TaskRecord {
    let task = testing::task("t1");
    TaskRecord { progress: Progress::of(&task), task, assigned: true, container: ContainerId::new("c1") }
}

fn nothing() -> Observed {
    Observed {
        container: Container::Absent,
        sandbox: false,
        networks_ready: true,
        obstacle: None,
        values_known: true,
        values: false,
        health: None,
        stop_request: None,
    }
}

/// Does what `next` says to a pretended node until it waits; returns what was done.
struct Pretended {
    record: TaskRecord,
    seen: Observed,
    now: Timestamp,
    exit_code: i32,
    forgotten: bool,
    done: Vec<Action>,
}

impl Pretended {
    fn new(record: TaskRecord, seen: Observed) -> Self {
        Self { record, seen, now: Timestamp::UNIX_EPOCH, exit_code: 137, forgotten: false, done: Vec::new() }
    }

    fn settle(&mut self) -> Vec<Action> {
        self.done.clear();
        for _ in 0..40 {
            let action = next(&self.record, &self.seen, self.now);
            self.done.push(action.clone());
            match action {
                Action::Wait(_) => return self.done.clone(),
                Action::Forget => {
                    self.forgotten = true;
                    return self.done.clone();
                }
                other => self.perform(other),
            }
        }
        panic!("does not come to rest: {:?}", self.done);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Report(status) => self.report(status),
            Action::Drain(stop, status) => {
                self.record.progress.stop = Some(stop);
                self.report(status);
            }
            Action::Prepare => {
                assert!(self.seen.networks_ready, "prepared before the tables are in force");
                assert!(self.seen.values_known, "prepared before its secrets and configs are known");
                self.seen.values = true;
                self.seen.sandbox = true;
                self.seen.container = Container::Created;
            }
            Action::Start => {
                assert_eq!(self.seen.container, Container::Created);
                assert!(self.seen.sandbox);
                self.seen.container = Container::Running { pid: 77 };
            }
            Action::Stop { .. } => {
                assert!(matches!(self.seen.container, Container::Running { .. }));
                self.seen.container = Container::Exited { code: self.exit_code };
            }
            Action::FreeSandbox => self.seen.sandbox = false,
            Action::FreeValues => self.seen.values = false,
            Action::RemoveContainer => self.seen.container = Container::Absent,
            Action::Forget | Action::Wait(_) => unreachable!(),
        }
    }

    fn report(&mut self, status: TaskStatus) {
        let before = self.record.progress.status.clone();
        assert!(status.state >= before.state, "went back from {before:?} to {status:?}");
        assert_ne!(status, before, "reported nothing new");
        assert!(status.draining || !before.draining);
        self.record.progress.status = status;
    }

    fn states(&self) -> Vec<TaskState> {
        self.done
            .iter()
            .filter_map(|action| match action {
                Action::Report(status) | Action::Drain(_, status) => Some(status.state),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn a_task_goes_through_all_states_to_running() {
    let mut node = Pretended::new(record(), nothing());
    node.settle();
    use TaskState::*;
    assert_eq!(node.states(), [Accepted, Preparing, Ready, Starting, Running]);
    assert_eq!(node.record.progress.status.container.as_ref().unwrap().pid, 77);
    assert_eq!(node.record.progress.status.message, "started");
}

#[test]
fn nothing_is_made_before_the_networks_are_in_force() {
    let mut node = Pretended::new(record(), Observed { networks_ready: false, ..nothing() });
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Preparing);
    node.seen.networks_ready = true;
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Running);
}

#[test]
fn a_task_whose_network_cannot_be_built_here_is_another_nodes() {
    let obstacle = Some("no interface eth9 on this node".to_owned());
    let seen = Observed { networks_ready: false, obstacle, ..nothing() };
    let mut node = Pretended::new(record(), seen.clone());
    node.settle();
    let status = &node.record.progress.status;
    assert_eq!(
        (status.state, status.error.as_str()),
        (TaskState::Rejected, "no interface eth9 on this node")
    );
    // Whatever runs goes on.
    let container = Container::Running { pid: 7 };
    let mut node = Pretended::new(record(), Observed { container, ..seen });
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Running);
}

#[test]
fn nothing_is_made_before_the_values_of_secrets_and_configs_are_known() {
    let mut node = Pretended::new(record(), Observed { values_known: false, ..nothing() });
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Preparing);
    node.seen.values_known = true;
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Running);
    node.seen.values_known = false;
    assert_eq!(node.settle(), [Action::Wait(None)], "what runs has its own");
}

#[test]
fn ready_waits_for_the_desired_state_and_for_the_restart_delay() {
    let mut node = Pretended::new(record(), nothing());
    node.record.task.desired = TaskState::Ready;
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Ready);
    node.record.task.desired = TaskState::Running;
    let later = node.now + Duration::from_secs(5);
    node.record.task.start_after = Some(later);
    assert_eq!(node.settle(), [Action::Wait(Some(later))]);
    node.now = later;
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Running);
}

#[test]
fn with_a_health_check_running_waits_for_the_first_success() {
    let mut node = Pretended::new(record(), Observed { health: Some(HealthStatus::Starting), ..nothing() });
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Starting);
    assert_eq!(node.record.progress.status.container.as_ref().unwrap().pid, 77, "its pid is known");
    node.seen.health = Some(HealthStatus::Healthy);
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Running);
}

#[test]
fn an_ordered_stop_waits_for_connections_then_ends_in_shutdown() {
    let mut node = Pretended::new(record(), nothing());
    node.record.task.attachments = vec![testing::attachment("n1", "10.0.1.5/24")];
    node.settle();
    node.record.task.desired = TaskState::Shutdown;
    let done = node.settle();
    assert_eq!(
        done[0],
        Action::Stop { connections: Duration::from_secs(2), grace: DEFAULT_STOP_GRACE_PERIOD }
    );
    assert_eq!(node.record.progress.status.state, TaskState::Shutdown);
    assert_eq!(node.record.progress.status.container.as_ref().unwrap().exit_code, 137);
    assert!(!node.seen.sandbox, "the sandbox is freed at once");
    assert_eq!(
        node.seen.container,
        Container::Exited { code: 137 },
        "the container stays for `docker ps -a`"
    );
}

#[test]
fn an_unhealthy_task_drains_until_the_order_or_the_bound() {
    for ordered in [true, false] {
        let mut node =
            Pretended::new(record(), Observed { health: Some(HealthStatus::Healthy), ..nothing() });
        node.settle();
        node.seen.health = Some(HealthStatus::Unhealthy);
        node.settle();
        assert!(node.record.progress.status.draining);
        assert_eq!(node.record.progress.status.state, TaskState::Running);
        assert!(is_withdrawn(&node.record, &node.seen) && !is_dead(&node.record, &node.seen));
        if ordered {
            node.record.task.desired = TaskState::Shutdown;
        } else {
            node.now += DRAIN_ORDER_BOUND;
        }
        node.settle();
        let status = &node.record.progress.status;
        assert_eq!(status.state, TaskState::Failed, "ordered: {ordered}");
        assert_eq!(status.error, "task: non-zero exit (137): dockerexec: unhealthy container");
        assert!(is_dead(&node.record, &node.seen));
    }
}

#[test]
fn a_task_unhealthy_while_starting_is_stopped_at_once() {
    let mut node = Pretended::new(record(), Observed { health: Some(HealthStatus::Starting), ..nothing() });
    node.settle();
    node.seen.health = Some(HealthStatus::Unhealthy);
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Failed);
}

#[test]
fn docker_stop_uses_its_own_grace_period_and_reports_the_exit_code() {
    let mut node = Pretended::new(record(), nothing());
    node.settle();
    node.seen.stop_request = Some(StopCause::Requested { grace: Some(Duration::from_secs(1)) });
    node.settle();
    node.now += DRAIN_ORDER_BOUND;
    let done = node.settle();
    assert_eq!(done[0], Action::Stop { connections: Duration::ZERO, grace: Duration::from_secs(1) });
    assert_eq!(node.record.progress.status.error, "task: non-zero exit (137)");
}

#[test]
fn a_container_that_dies_by_itself_is_dead_before_anything_is_reported() {
    for (code, state, error) in
        [(0, TaskState::Complete, ""), (3, TaskState::Failed, "task: non-zero exit (3)")]
    {
        let mut node = Pretended::new(record(), nothing());
        node.settle();
        node.seen.container = Container::Exited { code };
        assert!(is_withdrawn(&node.record, &node.seen) && is_dead(&node.record, &node.seen));
        node.settle();
        assert_eq!(node.record.progress.status.state, state);
        assert_eq!(node.record.progress.status.error, error);
    }
}

#[test]
fn a_task_whose_container_vanished_has_failed() {
    let mut node = Pretended::new(record(), nothing());
    node.settle();
    node.seen.container = Container::Absent;
    node.seen.sandbox = false;
    node.settle();
    assert_eq!(node.record.progress.status.state, TaskState::Failed);
}

#[test]
fn an_assignment_taken_back_leaves_nothing() {
    let mut node = Pretended::new(record(), nothing());
    node.settle();
    node.record.assigned = false;
    node.settle();
    assert!(node.forgotten && !node.seen.sandbox && node.seen.container == Container::Absent);
}

#[test]
fn an_error_before_the_start_rejects_and_after_it_fails() {
    let mut node = Pretended::new(record(), Observed { networks_ready: false, ..nothing() });
    node.settle();
    let rejected = failed(&node.record, "No such image: x".to_owned(), node.now);
    assert_eq!((rejected.state, rejected.message.as_str()), (TaskState::Rejected, "preparing"));
    node.record.progress.status.state = TaskState::Starting;
    assert_eq!(failed(&node.record, String::new(), node.now).state, TaskState::Failed);
}

#[test]
fn the_drain_label_replaces_the_bound() {
    for (text, expected) in [("0", 0), ("3", 3000), ("3s", 3000), ("250ms", 250)] {
        assert_eq!(parse_duration(text), Some(Duration::from_millis(expected)));
    }
    assert_eq!(parse_duration("soon"), None);
}

/// Something that happens to a task from outside.
#[derive(Debug, Clone)]
enum Event {
    Desire(usize),
    Unassign,
    Exit(i32),
    Vanish,
    Reboot,
    Health(bool),
    StopRequest,
    Tick,
    Tables(bool),
    Values(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0usize..4).prop_map(Event::Desire),
        Just(Event::Unassign),
        (0i32..3).prop_map(Event::Exit),
        Just(Event::Vanish),
        Just(Event::Reboot),
        any::<bool>().prop_map(Event::Health),
        Just(Event::StopRequest),
        Just(Event::Tick),
        any::<bool>().prop_map(Event::Tables),
        any::<bool>().prop_map(Event::Values),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the task always comes to rest, never goes back, and once
    /// its assignment is gone nothing of it is left.
    #[test]
    fn always_comes_to_rest_and_leaves_nothing(events in proptest::collection::vec(event(), 0..25), checked: bool) {
        let health = checked.then_some(HealthStatus::Starting);
        let mut node = Pretended::new(record(), Observed { health, ..nothing() });
        node.settle();
        for event in events {
            let running = matches!(node.seen.container, Container::Running { .. });
            match event {
                Event::Desire(n) => {
                    let states = [TaskState::Ready, TaskState::Running, TaskState::Shutdown, TaskState::Remove];
                    node.record.task.desired = node.record.task.desired.max(states[n]);
                }
                Event::Unassign => node.record.assigned = false,
                Event::Exit(code) if running => node.seen.container = Container::Exited { code },
                Event::Vanish => (node.seen.container, node.seen.sandbox) = (Container::Absent, false),
                Event::Reboot if running => {
                    (node.seen.container, node.seen.sandbox) = (Container::Created, false);
                }
                Event::Health(well) if checked => {
                    node.seen.health = Some(if well { HealthStatus::Healthy } else { HealthStatus::Unhealthy });
                }
                Event::StopRequest => node.seen.stop_request = Some(StopCause::Requested { grace: None }),
                Event::Tick => node.now += DRAIN_ORDER_BOUND,
                Event::Tables(ready) => node.seen.networks_ready = ready,
                Event::Values(known) => node.seen.values_known = known,
                Event::Exit(_) | Event::Reboot | Event::Health(_) => {}
            }
            node.settle();
            if node.record.progress.status.state.is_terminal() {
                prop_assert!(!node.seen.sandbox && !node.seen.values);
            }
        }
        node.record.assigned = false;
        node.settle();
        prop_assert!(node.forgotten);
        prop_assert_eq!((node.seen.container, node.seen.sandbox), (Container::Absent, false));
    }
}

#[test]
fn a_restarted_daemon_calls_nothing_healthy_before_it_has_taken_it_over() {
    let container = Container::Running { pid: 77 };
    let at = |state| {
        let mut record = record();
        record.progress.status.state = state;
        record.progress.status.container =
            Some(ContainerStatus { id: record.container.clone(), pid: 77, exit_code: 0 });
        let mut node = Pretended::new(record, Observed { container, ..nothing() });
        node.seen.health = health(container, false, None);
        node
    };
    let mut starting = at(TaskState::Starting);
    assert_eq!(starting.settle(), [Action::Wait(None)]);
    starting.seen.health = health(container, true, Some(HealthStatus::Starting));
    assert_eq!(starting.settle(), [Action::Wait(None)]);
    starting.seen.health = health(container, true, None);
    starting.settle();
    assert_eq!(starting.states(), [TaskState::Running]);

    assert_eq!(at(TaskState::Running).settle(), [Action::Wait(None)], "what ran runs on");
}

#[test]
fn a_container_that_was_never_started_is_made_anew() {
    let mut record = record();
    record.progress.status.state = TaskState::Starting;
    let found =
        Observed { container: Container::Unfinished, sandbox: true, networks_ready: false, ..nothing() };
    let mut node = Pretended::new(record, found);
    assert_eq!(node.settle(), [Action::Wait(None)]);
    node.seen.networks_ready = true;
    assert_eq!(node.settle()[..2], [Action::Prepare, Action::Start]);
    assert_eq!(node.states(), [TaskState::Running]);
}
