//! Counting what becomes of questions.

use std::sync::atomic::{AtomicU64, Ordering};

use shoal_model::NameCounts;

/// Counters that many may raise at once; each sandbox has its own, so that they do not meet.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) local: Counter,
    pub(crate) cached: Counter,
    pub(crate) forwarded: Counter,
    pub(crate) failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) ignored: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tally {
    pub(crate) fn counts(&self) -> NameCounts {
        NameCounts {
            local: self.local.get(),
            cached: self.cached.get(),
            forwarded: self.forwarded.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            ignored: self.ignored.get(),
        }
    }
}
