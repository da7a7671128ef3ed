//! Figures, what they were measured on, and what was hoped for.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// One event's effect, measured several times.
#[derive(Debug)]
pub(crate) struct Row {
    pub nodes: u8,
    pub what: &'static str,
    /// What design promises of the greatest figures: the 99th percentile.
    pub target: Duration,
    sorted: Vec<Duration>,
}

impl Row {
    pub(crate) fn new(nodes: u8, what: &'static str, target: Duration, mut measured: Vec<Duration>) -> Self {
        measured.sort();
        Self { nodes, what, target, sorted: measured }
    }

    pub(crate) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest figure that this share of all does not exceed (nearest rank).
    fn percentile(&self, share: f64) -> Duration {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.clamp(1, self.sorted.len().max(1)) - 1).copied().unwrap_or_default()
    }

    fn is_met(&self) -> bool {
        self.percentile(0.99) < self.target
    }
}

/// What the figures are of, and what else it did.
#[derive(Debug)]
pub(crate) struct Machine {
    load_before: String,
    load_after: String,
}

impl Machine {
    pub(crate) fn begin() -> Self {
        Self { load_before: load(), load_after: String::new() }
    }

    pub(crate) fn end(&mut self) {
        self.load_after = load();
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "processors": processors(),
            "kernel": kernel(),
            "load_before": self.load_before,
            "load_after": self.load_after,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processors for all nodes together, Linux {}; load average {} before, {} after; nothing simulated",
            processors(),
            kernel(),
            self.load_before,
            self.load_after
        )
    }
}

#[derive(Debug)]
pub(crate) struct Report {
    pub rows: Vec<Row>,
    machine: Machine,
}

impl Report {
    pub(crate) fn begin() -> Self {
        Self { rows: Vec::new(), machine: Machine::begin() }
    }

    pub(crate) fn end(&mut self) {
        self.machine.end();
    }

    pub(crate) fn to_json(&self) -> Value {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let rows = self.rows.iter().map(|row| {
            json!({
                "nodes": row.nodes,
                "what": row.what,
                "n": row.count(),
                "p50_ms": milliseconds(row.percentile(0.5)),
                "p90_ms": milliseconds(row.percentile(0.9)),
                "p99_ms": milliseconds(row.percentile(0.99)),
                "max_ms": milliseconds(row.percentile(1.0)),
                "target_p99_ms": milliseconds(row.target),
                "target_is_met": row.is_met(),
                "simulated": false,
            })
        });
        let mut told = self.machine.to_json();
        told["rows"] = rows.collect();
        told
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(f, "| nodes | what | n | p50 | p90 | p99 | max | target (p99) | met |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let shown = |share| show(row.percentile(share));
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.nodes,
                row.what,
                row.count(),
                shown(0.5),
                shown(0.9),
                shown(0.99),
                shown(1.0),
                show(row.target),
                if row.is_met() { "yes" } else { "no" }
            )?;
        }
        Ok(())
    }
}

fn show(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

/// How many tasks wanted to run, on average over the last one, five and fifteen minutes.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned()
}

fn processors() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_figures_that_were_measured() {
        let measured = (1..=200).rev().map(Duration::from_millis).collect();
        let row = Row::new(3, "x", Duration::from_millis(199), measured);
        let figures = [0.5, 0.9, 0.99, 1.0].map(|share| row.percentile(share).as_millis());
        assert_eq!(figures, [100, 180, 198, 200]);
        assert!(row.is_met());
        let one = Row::new(3, "x", Duration::from_millis(7), vec![Duration::from_millis(7)]);
        assert_eq!(one.percentile(0.5), Duration::from_millis(7));
        assert!(!one.is_met(), "the target is a bound that is not reached");
    }
}
