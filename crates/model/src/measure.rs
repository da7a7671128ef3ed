//! What a node counts, for those who watch it.

use serde::{Deserialize, Serialize};

/// Questions that containers of a node asked for names, by what became of them, since its resolver process
/// began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameCounts {
    /// Answered from the tables.
    pub local: u64,
    /// Answered with what another server said before.
    pub cached: u64,
    /// Other servers were asked.
    pub forwarded: u64,
    /// Of these, and of those that nobody could be asked for: no server had an answer.
    pub failed: u64,
    /// Not asked on, since too many were waiting for an answer.
    pub refused: u64,
    /// No questions.
    pub ignored: u64,
}

impl std::ops::AddAssign for NameCounts {
    fn add_assign(&mut self, other: Self) {
        let Self { local, cached, forwarded, failed, refused, ignored } = other;
        self.local += local;
        self.cached += cached;
        self.forwarded += forwarded;
        self.failed += failed;
        self.refused += refused;
        self.ignored += ignored;
    }
}
