//! Docker's JSON (API 1.41), as types of our own.
//!
//! What is served has Docker's zero values, `null` and `[]` in Docker's places: clients rely on them.
//! Fields that this engine cannot honour are read as [`Unsupported`], so that they can be refused
//! instead of being dropped.

pub(crate) mod container;
pub(crate) mod create;
pub(crate) mod deposit;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod service;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod task;
pub(crate) mod volume;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ApiError, Result};

/// A field the engine cannot honour: any JSON, accepted only when it asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Unsupported(Value);

impl Unsupported {
    /// Refuses the field when it asks for something. `what` is a plural or singular phrase that
    /// `… not supported by shoal yet` can follow.
    pub(crate) fn refuse(&self, what: &str) -> Result<()> {
        if is_zero(&self.0) { Ok(()) } else { Err(ApiError::unsupported(what)) }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.iter().all(is_zero),
        Value::Object(values) => values.values().all(is_zero),
    }
}

/// `{"Index": 12}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    #[serde(rename = "Index")]
    pub(crate) index: u64,
}

/// Go's zero time, where Docker shows it.
pub(crate) const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_asks_for_something_is_refused() {
        for nothing in ["null", "false", "0", "\"\"", "[]", "{}", "{\"a\":null,\"b\":[{}]}"] {
            assert!(
                serde_json::from_str::<Unsupported>(nothing).unwrap().refuse("x is").is_ok(),
                "{nothing}"
            );
        }
        let error =
            serde_json::from_str::<Unsupported>("[{\"a\":1}]").unwrap().refuse("secrets are").unwrap_err();
        assert_eq!(error.message, "secrets are not supported by shoal yet");
    }
}
