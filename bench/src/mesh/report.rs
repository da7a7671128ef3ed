//! What every way has got done in all rounds, and what was hoped for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Sample, Work};
use super::ways::Way;
use crate::report::Machine;

/// What design asks of connections through the mesh, of those made directly.
const OF_DIRECT: f64 = 0.75;

type Key = (u16, Work, Way);

#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    samples: BTreeMap<Key, Vec<Sample>>,
}

/// The middle one, the least and the greatest of several figures.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |at: usize| sorted.get(at).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Self { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, least: at(0), most: at(last) }
    }
}

impl Report {
    pub(crate) fn begin() -> Self {
        Self { machine: Machine::begin(), samples: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, ports: u16, work: Work, way: Way, sample: Sample) {
        self.samples.entry((ports, work, way)).or_default().push(sample);
    }

    pub(crate) fn end(&mut self) {
        self.machine.end();
    }

    fn rate(&self, key: Key) -> Option<Spread> {
        let samples = self.samples.get(&key)?;
        Some(Spread::of(samples.iter().map(|sample| sample.per_second)))
    }

    /// Microseconds of processors for each.
    fn cpu(&self, key: Key) -> Option<Spread> {
        let samples = self.samples.get(&key)?;
        Some(Spread::of(samples.iter().map(|sample| microseconds(sample.cpu_each))))
    }

    /// The median of what each round says: of two ways that were measured right after each other.
    fn ratio(&self, (ports, work, way): Key, to: Way) -> Option<Spread> {
        let (own, other) = (self.samples.get(&(ports, work, way))?, self.samples.get(&(ports, work, to))?);
        Some(Spread::of(own.iter().zip(other).map(|(own, other)| own.per_second / other.per_second)))
    }

    fn errors(&self, key: Key) -> u64 {
        self.samples.get(&key).into_iter().flatten().map(|sample| sample.errors).sum()
    }

    /// What was hoped for, and whether it came true.
    fn targets(&self) -> Vec<(String, bool)> {
        let mut targets = Vec::new();
        for &(ports, work, way) in self.samples.keys() {
            let (Work::Connections, Way::Mesh(entry)) = (work, way) else { continue };
            let key = |way| (ports, work, way);
            let of_direct = self.ratio(key(way), Way::Direct(entry)).map_or(0.0, |ratio| ratio.median);
            let told = format!("{ports} ports, {}: {of_direct:.2} of direct, {OF_DIRECT} wanted", way.name());
            targets.push((told, of_direct >= OF_DIRECT));
            let proxy = Way::HaProxy(entry);
            let pairs = [
                ("connections a second", self.rate(key(way)), self.rate(key(proxy)), true),
                ("µs of processor each", self.cpu(key(way)), self.cpu(key(proxy)), false),
            ];
            for (what, own, other, more) in pairs {
                let (Some(own), Some(other)) = (own, other) else { continue };
                let (own, other) = (own.median, other.median);
                let told = format!("{ports} ports, {}: {own:.0} {what}, HAProxy {other:.0}", way.name());
                targets.push((told, if more { own > other } else { own < other }));
            }
        }
        targets
    }

    pub(crate) fn to_json(&self) -> Value {
        let spread = |spread: Option<Spread>| {
            spread.map(|s| json!({ "median": s.median, "least": s.least, "most": s.most }))
        };
        let rows = self.samples.iter().map(|(&key, samples)| {
            let (ports, work, way) = key;
            json!({
                "ports": ports,
                "what": work.name(),
                "way": way.name(),
                "n": samples.len(),
                "per_second": spread(self.rate(key)),
                "of_direct": spread(self.ratio(key, Way::Direct(way.entry()))),
                "cpu_us_each": spread(self.cpu(key)),
                "errors": self.errors(key),
                "simulated": false,
            })
        });
        let targets = self.targets();
        let targets = targets.iter().map(|(told, met)| json!({ "target": told, "met": met }));
        let mut told = self.machine.to_json();
        told["rows"] = rows.collect();
        told["targets"] = targets.collect();
        told
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "| ports | what | way | n | a second: median | least–most | of direct | processor each | errors |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for (&key, samples) in &self.samples {
            let (ports, work, way) = key;
            let (Some(rate), Some(cpu)) = (self.rate(key), self.cpu(key)) else { continue };
            let of_direct = self.ratio(key, Way::Direct(way.entry())).map_or(0.0, |ratio| ratio.median);
            writeln!(
                f,
                "| {ports} | {} | {} | {} | {:.0} | {:.0}–{:.0} | {of_direct:.2} | {:.0} µs | {} |",
                work.name(),
                way.name(),
                samples.len(),
                rate.median,
                rate.least,
                rate.most,
                cpu.median,
                self.errors(key),
            )?;
        }
        writeln!(f)?;
        for (told, met) in self.targets() {
            writeln!(f, "{} {told}", if met { "met:   " } else { "missed:" })?;
        }
        Ok(())
    }
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::ways::Entry;

    fn sample(per_second: f64, micros: u64) -> Sample {
        Sample { per_second, cpu_each: Duration::from_micros(micros), errors: 0 }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let of = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn targets_are_told_of_what_was_measured() {
        let mut report = Report::begin();
        let mesh = Way::Mesh(Entry::Its);
        for (way, per_second, micros) in [
            (Way::Direct(Entry::Its), 1000.0, 100),
            (mesh, 700.0, 120),
            (Way::HaProxy(Entry::Its), 500.0, 110),
        ] {
            report.add(1, Work::Connections, way, sample(per_second, micros));
        }
        let met: Vec<bool> = report.targets().into_iter().map(|(_, met)| met).collect();
        assert_eq!(met, [false, true, false], "{:?}", report.targets());
    }
}
