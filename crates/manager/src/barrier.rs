//! What waits for the nodes' acknowledgements: a serving task is told to stop only when no node sends it
//! new connections (the drain barrier), and counts as in service only when they all do.
//!
//! Pure; time is passed in. A new leader starts with no memory, and holds back again what its tables
//! do not show as acknowledged: too long rather than too short.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_model::{Task, TaskId, TaskState};

/// How long anything waits for acknowledgements.
pub(crate) const BOUND: Duration = Duration::from_secs(5);

/// What is to be done about one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing stands in the way.
    Pass,
    /// Every node asked has acknowledged. Said once, then it passes.
    Acknowledged,
    /// Leave it as it is; look again at this time.
    Hold { until: Duration },
    /// The bound is over without every acknowledgement. Said once, then it passes.
    Expired,
}

/// The tasks that wait, and those that have passed.
#[derive(Debug, Default)]
struct Waits {
    waiting: BTreeMap<TaskId, Duration>,
    passed: BTreeSet<TaskId>,
}

impl Waits {
    fn judge(&mut self, task: &TaskId, acknowledged: impl FnOnce() -> bool, now: Duration) -> Verdict {
        if self.passed.contains(task) {
            return Verdict::Pass;
        }
        let since = *self.waiting.entry(task.clone()).or_insert(now);
        let until = since + BOUND;
        let verdict = if acknowledged() {
            Verdict::Acknowledged
        } else if now >= until {
            Verdict::Expired
        } else {
            return Verdict::Hold { until };
        };
        self.waiting.remove(task);
        self.passed.insert(task.clone());
        verdict
    }

    fn retain(&mut self, known: impl Fn(&TaskId) -> bool) {
        self.waiting.retain(|task, _| known(task));
        self.passed.retain(known);
    }
}

/// Holds stops back.
#[derive(Debug, Default)]
pub(crate) struct DrainBarrier(Waits);

impl DrainBarrier {
    /// Whether the task may be told what is wanted of it. `acknowledged`: every node that could send
    /// to it has acknowledged tables without it.
    pub(crate) fn judge(
        &mut self,
        task: &Task,
        acknowledged: impl FnOnce() -> bool,
        now: Duration,
    ) -> Verdict {
        let stopping = task.desired > TaskState::Running && !task.status.state.is_terminal();
        // Before RUNNING it was in no table, so nobody sends to it.
        let served = task.status.state == TaskState::Running && !task.attachments.is_empty();
        if !stopping || !served {
            return Verdict::Pass;
        }
        self.0.judge(&task.id, acknowledged, now)
    }

    /// Forgets tasks that are no more.
    pub(crate) fn retain(&mut self, known: impl Fn(&TaskId) -> bool) {
        self.0.retain(known);
    }
}

/// Holds back what is to follow when a task is in service.
#[derive(Debug, Default)]
pub(crate) struct ArrivalBarrier(Waits);

impl ArrivalBarrier {
    /// Whether a serving task is in service. `acknowledged`: every node that could send to it has
    /// acknowledged tables with it.
    pub(crate) fn judge(
        &mut self,
        task: &Task,
        acknowledged: impl FnOnce() -> bool,
        now: Duration,
    ) -> Verdict {
        if task.attachments.is_empty() {
            return Verdict::Pass;
        }
        self.0.judge(&task.id, acknowledged, now)
    }

    /// Forgets tasks that are no more.
    pub(crate) fn retain(&mut self, known: impl Fn(&TaskId) -> bool) {
        self.0.retain(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{World, spec};

    fn stopping(networks: bool) -> Task {
        let mut world = World::new(1);
        let net = world.network("mynet", None).unwrap();
        let mut declared = spec("web", 1, &[&net]);
        if !networks {
            declared.task.networks.clear();
        }
        let web = world.service(declared).unwrap();
        world.run(2);
        let mut task = Task::clone(&world.serving(&web)[0]);
        task.desired = TaskState::Shutdown;
        task
    }

    #[test]
    fn a_stop_waits_for_acknowledgements_at_most_the_bound() {
        let (task, start) = (stopping(true), Duration::from_secs(100));
        let mut barrier = DrainBarrier::default();
        let until = start + BOUND;
        assert_eq!(barrier.judge(&task, || false, start), Verdict::Hold { until });
        let later = start + Duration::from_secs(4);
        assert_eq!(barrier.judge(&task, || false, later), Verdict::Hold { until });
        assert_eq!(barrier.judge(&task, || true, later), Verdict::Acknowledged);
        assert_eq!(barrier.judge(&task, || false, later), Verdict::Pass, "what has passed stays passed");

        let mut barrier = DrainBarrier::default();
        barrier.judge(&task, || false, start);
        assert_eq!(barrier.judge(&task, || false, until), Verdict::Expired);
        assert_eq!(barrier.judge(&task, || false, until), Verdict::Pass, "said once");
    }

    #[test]
    fn what_serves_nobody_stops_at_once() {
        let mut barrier = DrainBarrier::default();
        assert_eq!(barrier.judge(&stopping(false), || false, Duration::ZERO), Verdict::Pass);
        let mut task = stopping(true);
        task.status.state = TaskState::Starting;
        assert_eq!(barrier.judge(&task, || false, Duration::ZERO), Verdict::Pass);
        task.status.state = TaskState::Failed;
        assert_eq!(barrier.judge(&task, || false, Duration::ZERO), Verdict::Pass);
    }
}
