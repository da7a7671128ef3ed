//! Placement preferences: `spread=node.labels.zone` puts the next task where, by the labels' values, the
//! service has the fewest.

use std::collections::BTreeMap;

use shoal_model::{Labels, Node};

/// Spread evenly over the values of one label. Nodes without it are a group of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Preference {
    NodeLabel(String),
    EngineLabel(String),
}

impl Preference {
    pub(crate) fn parse_all(descriptors: &[String]) -> Result<Vec<Self>, String> {
        descriptors.iter().map(|descriptor| Self::parse(descriptor)).collect()
    }

    fn parse(descriptor: &str) -> Result<Self, String> {
        let label = |prefix: &str| {
            let start = descriptor.get(..prefix.len())?;
            let key = start.eq_ignore_ascii_case(prefix).then(|| &descriptor[prefix.len()..])?;
            (!key.is_empty()).then(|| key.to_owned())
        };
        label("node.labels.")
            .map(Self::NodeLabel)
            .or_else(|| label("engine.labels.").map(Self::EngineLabel))
            .ok_or_else(|| {
                format!(
                    "placement preference '{descriptor}' is invalid: spread over node.labels.KEY or \
                     engine.labels.KEY"
                )
            })
    }

    fn value<'a>(&self, node: &'a Node) -> &'a str {
        let of = |labels: &'a Labels, key: &str| labels.get(key).map_or("", String::as_str);
        match self {
            Self::NodeLabel(key) => of(&node.spec.labels, key),
            Self::EngineLabel(key) => of(&node.description.engine_labels, key),
        }
    }
}

/// How many tasks of a service there are on nodes with the same values, preference by preference.
#[derive(Default)]
pub(super) struct Branches<'a> {
    counts: BTreeMap<Vec<&'a str>, u64>,
}

impl<'a> Branches<'a> {
    pub(super) fn add(&mut self, preferences: &[Preference], node: &'a Node, tasks: u64) {
        for branch in path(preferences, node) {
            *self.counts.entry(branch).or_default() += tasks;
        }
    }

    /// From the first preference to the last: what is less goes first.
    pub(super) fn carried(&self, preferences: &[Preference], node: &'a Node) -> Vec<u64> {
        path(preferences, node).map(|branch| self.counts.get(&branch).copied().unwrap_or_default()).collect()
    }
}

/// The node's branch at each level: its values for the first preference, the first two, …
fn path<'a>(preferences: &[Preference], node: &'a Node) -> impl Iterator<Item = Vec<&'a str>> {
    let values: Vec<&str> = preferences.iter().map(|preference| preference.value(node)).collect();
    (1..=values.len()).map(move |depth| values[..depth].to_vec())
}
