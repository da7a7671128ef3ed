//! What happened, line by line: hashed always, kept only on request, since a seed can be run again.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

/// Lines kept of a run that is traced.
const LINES_MAX: usize = 100_000;

#[derive(Default)]
pub(super) struct Trace {
    hasher: DefaultHasher,
    /// `None`: nobody wants to read them.
    lines: Option<VecDeque<String>>,
}

/// Text on its way into a hash.
struct Hashed<'a>(&'a mut DefaultHasher);

impl Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Trace {
    pub(super) fn kept() -> Self {
        Self { lines: Some(VecDeque::new()), ..Self::default() }
    }

    pub(super) fn line(&mut self, now: Duration, what: fmt::Arguments<'_>) {
        self.hasher.write_u128(now.as_nanos());
        // A hasher takes anything.
        let _ = Hashed(&mut self.hasher).write_fmt(what);
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:>10.6} {what}", now.as_secs_f64()));
        }
    }

    /// Two runs with this in common went the same way.
    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines, oldest first.
    pub(super) fn tail(&self, count: usize) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter().flatten();
        let skipped = self.lines.as_ref().map_or(0, |lines| lines.len().saturating_sub(count));
        lines.skip(skipped).map(String::as_str)
    }
}
