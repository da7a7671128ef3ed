//! The crate against what a real engine was seen to answer (`tests/golden`), and the router without
//! a node behind it.

mod cluster;
mod conversion;
mod router;
mod shape;
mod socket;
mod worker;

use serde_json::Value;

/// A body of `tests/golden`.
macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $name))
    };
}
pub(crate) use golden;

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}
