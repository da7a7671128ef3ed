//! Virtual time: events in the order of their time, those of one time in the order they were made.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::Event;

/// What is still to happen, and how late it is.
#[derive(Default)]
pub(super) struct Queue {
    now: Duration,
    made: u64,
    waiting: BTreeMap<(Duration, u64), Event>,
}

impl Queue {
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn at(&mut self, time: Duration, event: Event) {
        self.made += 1;
        self.waiting.insert((time.max(self.now), self.made), event);
    }

    pub(super) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// The next event; it is then as late as that.
    pub(super) fn next(&mut self) -> Option<Event> {
        let ((time, _), event) = self.waiting.pop_first()?;
        self.now = time;
        Some(event)
    }
}
