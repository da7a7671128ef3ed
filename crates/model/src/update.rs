//! What is replaced in a service, and how far a rolling update has come.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Where in its service a task belongs: what replaces it belongs there, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Slot(u64),
    /// Of a global service.
    Node(NodeId),
}

/// SwarmKit's states of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// The last update of a service, or the return from it. Its single writer is the updater, but for the
/// user who begins another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started: Timestamp,
    #[serde(default)]
    pub completed: Option<Timestamp>,
    #[serde(default)]
    pub message: String,
    /// How many tasks had to be replaced when it began.
    #[serde(default)]
    pub total: u64,
    /// Where the new task failed, or ended, while it was watched.
    #[serde(default)]
    pub failed: BTreeSet<Place>,
}

impl UpdateStatus {
    pub fn begin(state: UpdateState, now: Timestamp, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { state, started: now, completed: None, message, total: 0, failed: BTreeSet::new() }
    }
}

impl UpdateState {
    /// As Docker writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }

    /// Nothing is replaced until the user says more.
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Paused | Self::RollbackPaused)
    }

    /// The service goes back to what it was.
    pub fn is_rollback(self) -> bool {
        matches!(self, Self::RollbackStarted | Self::RollbackPaused | Self::RollbackCompleted)
    }

    pub fn is_underway(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }
}
