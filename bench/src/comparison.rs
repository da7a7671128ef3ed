//! Several ways to do the same, side by side in one run.

use std::fmt;

use serde_json::{Value, json};

use crate::median::Median;
use crate::report::Machine;

/// Every item in every round; each round begins with another one, so that none always follows the same.
pub(crate) fn turns<T>(rounds: usize, items: &[T]) -> impl Iterator<Item = (usize, &T)> {
    (0..rounds)
        .flat_map(move |round| (0..items.len()).map(move |at| (round, &items[(at + round) % items.len()])))
}

/// What is measured of every way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) digits: usize,
}

impl Measure {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, digits: 0 }
    }
}

/// Where a figure belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// Services, names: what there is much or little of.
    pub(crate) size: u32,
    pub(crate) measure: Measure,
    pub(crate) way: &'static str,
}

/// The figures of one way, one of each round.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) key: Key,
    figures: Vec<f64>,
    /// What was not done, or wrongly.
    errors: u64,
}

impl Row {
    pub(crate) fn median(&self) -> Option<Median> {
        Median::of(self.figures.iter().copied())
    }
}

/// A hope, and what came of it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) told: String,
    pub(crate) met: bool,
}

#[derive(Debug)]
pub(crate) struct Comparison {
    /// What sizes count.
    pub(crate) things: &'static str,
    /// The way that all others are compared with.
    baseline: &'static str,
    machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) targets: Vec<Target>,
    /// What a reader has to know of this run.
    pub(crate) notes: Vec<String>,
}

impl Comparison {
    pub(crate) fn begin(things: &'static str, baseline: &'static str) -> Self {
        let machine = Machine::begin();
        Self { things, baseline, machine, rows: Vec::new(), targets: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn add(&mut self, key: Key, figure: f64, errors: u64) {
        let at = self.rows.iter().position(|row| row.key == key).unwrap_or_else(|| {
            self.rows.push(Row { key, figures: Vec::new(), errors: 0 });
            self.rows.len() - 1
        });
        self.rows[at].figures.push(figure);
        self.rows[at].errors += errors;
    }

    /// Puts the ways of one measure beside each other.
    pub(crate) fn end(&mut self) {
        self.machine.end();
        let (sizes, measures) = (self.each(|key| key.size), self.each(|key| key.measure));
        let place = |key: Key| {
            let size = sizes.iter().position(|size| *size == key.size);
            (size, measures.iter().position(|measure| *measure == key.measure))
        };
        self.rows.sort_by_key(|row| place(row.key));
    }

    fn row(&self, key: Key) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }

    pub(crate) fn median(&self, key: Key) -> Option<Median> {
        self.row(key)?.median()
    }

    /// The median of what each round says: of two ways that were measured shortly after each other.
    pub(crate) fn ratio(&self, key: Key, to: &'static str) -> Option<Median> {
        let (own, other) = (self.row(key)?, self.row(Key { way: to, ..key })?);
        Median::of(own.figures.iter().zip(&other.figures).map(|(own, other)| own / other))
    }

    /// All sizes, or measures, or ways, in the order in which they came.
    pub(crate) fn each<T: PartialEq>(&self, of: impl Fn(&Key) -> T) -> Vec<T> {
        let mut found = Vec::new();
        for thing in self.rows.iter().map(|row| of(&row.key)) {
            if !found.contains(&thing) {
                found.push(thing);
            }
        }
        found
    }

    pub(crate) fn to_json(&self) -> Value {
        let median = |median: Option<Median>| {
            median.map(
                |m| json!({ "median": m.value, "low": m.low, "high": m.high, "confidence": m.confidence }),
            )
        };
        let rows = self.rows.iter().map(|row| {
            let mut told = json!({
                "what": row.key.measure.name,
                "way": row.key.way,
                "n": row.figures.len(),
                "result": median(row.median()),
                "figures": row.figures,
                "errors": row.errors,
                "simulated": false,
            });
            told[self.things] = row.key.size.into();
            told[format!("of_{}", self.baseline)] = json!(median(self.ratio(row.key, self.baseline)));
            told
        });
        let targets = self.targets.iter().map(|target| json!({ "target": target.told, "met": target.met }));
        let mut told = self.machine.to_json();
        told["rows"] = rows.collect();
        told["targets"] = targets.collect();
        told["notes"] = json!(self.notes);
        told
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}\n"))?;
        let confidence = self.rows.iter().filter_map(Row::median).map(|median| median.confidence);
        let confidence = confidence.fold(1.0, f64::min) * 100.0;
        writeln!(f, "Medians; in brackets the interval that holds the true one, {confidence:.0} % sure.\n")?;
        writeln!(f, "| {} | what | way | n | median | of {} | errors |", self.things, self.baseline)?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let Key { size, measure, way } = row.key;
            let (Some(median), Some(ratio)) = (row.median(), self.ratio(row.key, self.baseline)) else {
                continue;
            };
            writeln!(
                f,
                "| {size} | {} | {way} | {} | {} | {} | {} |",
                measure.name,
                row.figures.len(),
                shown(median, measure.digits),
                shown(ratio, 3),
                row.errors
            )?;
        }
        writeln!(f)?;
        for target in &self.targets {
            writeln!(f, "{} {}", if target.met { "met:   " } else { "missed:" }, target.told)?;
        }
        Ok(())
    }
}

/// `12 (11–13)`.
pub(crate) fn shown(median: Median, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", median.value, median.low, median.high)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const RATE: Measure = Measure::new("answers a second");

    pub(crate) fn sample() -> Comparison {
        let mut comparison = Comparison::begin("names", "echo");
        for (way, figures) in [("echo", [100.0, 400.0, 200.0]), ("ours", [90.0, 300.0, 200.0])] {
            for (figure, errors) in figures.into_iter().zip([0, 0, 2]) {
                comparison.add(Key { size: 10, measure: RATE, way }, figure, errors);
            }
        }
        comparison
    }

    #[test]
    fn every_round_has_every_item_and_begins_with_another() {
        let seen: Vec<(usize, char)> =
            turns(2, &['a', 'b', 'c']).map(|(round, item)| (round, *item)).collect();
        assert_eq!(seen, [(0, 'a'), (0, 'b'), (0, 'c'), (1, 'b'), (1, 'c'), (1, 'a')]);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let comparison = sample();
        let key = Key { size: 10, measure: RATE, way: "ours" };
        assert_eq!(comparison.median(key).unwrap().value, 200.0);
        let ratio = comparison.ratio(key, "echo").unwrap();
        assert_eq!((ratio.low, ratio.value, ratio.high), (0.75, 0.9, 1.0));
        assert_eq!(comparison.median(Key { size: 11, ..key }), None);
    }

    #[test]
    fn a_table_has_a_line_for_each_way() {
        let mut comparison = sample();
        comparison.targets.push(Target { told: "as quick as echo".to_owned(), met: false });
        let text = comparison.to_string();
        let line = "| 10 | answers a second | ours | 3 | 200 (90–300) | 0.900 (0.750–1.000) | 2 |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("missed: as quick as echo"), "{text}");
        let told = comparison.to_json();
        assert_eq!(told["rows"][1]["names"], 10);
        assert_eq!(told["rows"][1]["of_echo"]["median"], 0.9);
    }
}
