//! The rooms' arrows point one way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The layers, outermost first. A crate may know crates of layers further in, and none beside it.
const LAYERS: [&[&str]; 5] = [
    &["shoal"],
    &["shoal-api", "shoal-cli"],
    &["shoal-manager", "shoal-agent"],
    &["shoal-protocol", "shoal-runtime", "shoal-network", "shoal-balancer", "shoal-resolver", "shoal-store"],
    &["shoal-model"],
];

/// What tests and measures the product and is no part of it.
const BESIDE: [&str; 2] = ["shoal-e2e", "shoal-bench"];

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What each crate of the product needs of the others to be built; not what its tests need.
pub(crate) fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = |name: &str| name == "shoal" || name.starts_with("shoal-");
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| (package["name"].as_str().unwrap().to_owned(), package))
        .filter(|(name, _)| ours(name) && !BESIDE.contains(&name.as_str()))
        .map(|(name, package)| {
            let needs = package["dependencies"].as_array().unwrap().iter();
            let needs = needs.filter(|dependency| dependency["kind"] != "dev");
            let needs = needs.filter_map(|dependency| dependency["name"].as_str());
            (name, needs.filter(|name| ours(name)).map(str::to_owned).collect())
        })
        .collect()
}

fn layer(name: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&name))
        .unwrap_or_else(|| panic!("{name} is in no layer: give it a place in ARCHITECTURE.md and here"))
}

#[test]
fn no_crate_knows_one_beside_or_above_it() {
    for (name, needs) in crates() {
        for needed in needs {
            assert!(layer(&name) < layer(&needed), "{name} must not depend on {needed}");
        }
    }
}

#[test]
fn every_crate_of_the_layers_exists() {
    let existing = crates();
    for name in LAYERS.iter().flat_map(|layer| layer.iter()) {
        assert!(existing.contains_key(*name), "{name}");
    }
}
