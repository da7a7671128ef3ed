//! The life cycle of a task (SwarmKit's, `design/task_model.md`).

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ContainerId, PortConfig};

/// How far a task has come. The order is the order of life: an observed state never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created by the orchestrator.
    New,
    /// Addresses are allocated; waits for a node.
    Pending,
    /// The scheduler chose a node.
    Assigned,
    /// The node's agent took it over.
    Accepted,
    /// Networks, image and container are being made.
    Preparing,
    /// Prepared; waits until its desired state is `Running`.
    Ready,
    /// The container runs; its health check has not passed yet.
    Starting,
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Stopped on request.
    Shutdown,
    /// Ended by itself with another exit code, or unhealthy.
    Failed,
    /// Could not be started.
    Rejected,
    /// Only as desired state: stop it and forget it.
    Remove,
    /// Its node has been gone for so long that the task is given up.
    Orphaned,
}

impl TaskState {
    /// The task will never run again.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// The word Docker's API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was last observed of a task. Its single writer is the manager until the task is assigned,
/// the node's agent from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    pub timestamp: Timestamp,
    /// What happened, in SwarmKit's words: `created`, `started`, `preparing`, …
    pub message: String,
    /// Why the task is stuck or has failed; empty when nothing is wrong.
    #[serde(default)]
    pub error: String,
    #[serde(default)]
    pub container: Option<ContainerStatus>,
    /// Ports of its node that lead to it alone, with the numbers the node gave them.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// The node wants this running task out of service (unhealthy, being stopped there): it must
    /// leave the tables, and be stopped once the drain barrier has passed.
    #[serde(default)]
    pub draining: bool,
}

/// The container behind a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: ContainerId,
    /// Process id on the node, 0 when it does not run.
    pub pid: u32,
    pub exit_code: i32,
}

impl TaskStatus {
    pub fn new(state: TaskState, timestamp: Timestamp, message: &str) -> Self {
        Self {
            state,
            timestamp,
            message: message.to_owned(),
            error: String::new(),
            container: None,
            ports: Vec::new(),
            draining: false,
        }
    }

    /// Takes over a newer observation; `false` (and no change) when it would go back in life or says
    /// nothing new.
    pub fn advance(&mut self, next: &TaskStatus) -> bool {
        if next.state < self.state || self == next {
            return false;
        }
        let draining = self.draining || next.draining;
        *self = next.clone();
        self.draining = draining;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [TaskState; 14] = [
        TaskState::New,
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Accepted,
        TaskState::Preparing,
        TaskState::Ready,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Rejected,
        TaskState::Remove,
        TaskState::Orphaned,
    ];

    proptest! {
        #[test]
        fn observed_state_never_goes_back(steps in proptest::collection::vec((0usize..14, any::<bool>()), 1..40)) {
            let mut status = TaskStatus::new(TaskState::New, Timestamp::UNIX_EPOCH, "created");
            for (step, draining) in steps {
                let before = status.clone();
                let mut next = TaskStatus::new(STATES[step], Timestamp::UNIX_EPOCH, "step");
                next.draining = draining;
                status.advance(&next);
                prop_assert!(status.state >= before.state);
                prop_assert!(status.draining || !before.draining);
            }
        }
    }
}
