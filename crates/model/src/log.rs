//! What is said about log lines between API, manager, agent and runtime.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which of a container's two output streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    Stdout,
    Stderr,
}

/// One line a container wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    pub time: Timestamp,
    pub source: LogSource,
    /// The line as written, with its line feed unless the container ended without one.
    pub line: Vec<u8>,
}

/// Which lines a reader wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSelector {
    pub stdout: bool,
    pub stderr: bool,
    /// Go on with new lines as they are written.
    pub follow: bool,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Only lines written before this time.
    pub until: Option<Timestamp>,
    /// Only the last so many of the lines already written; `None` is all of them.
    pub tail: Option<u64>,
}

impl Default for LogSelector {
    /// Everything written so far, both streams.
    fn default() -> Self {
        Self { stdout: true, stderr: true, follow: false, since: None, until: None, tail: None }
    }
}
