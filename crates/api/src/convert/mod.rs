//! Between Docker's JSON and the model. Pure functions.

pub(crate) mod container;
pub(crate) mod create;
pub(crate) mod deposit;
mod endpoint;
pub(crate) mod identity;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod node;
mod port;
pub(crate) mod service_in;
pub(crate) mod service_out;
pub(crate) mod swarm;
pub(crate) mod task;
pub(crate) mod volume;

use std::time::Duration;

use jiff::Timestamp;

use crate::error::{ApiError, Result};

/// RFC 3339 with as many digits as the time has, as Go writes it.
pub(crate) fn time(time: Timestamp) -> String {
    time.to_string()
}

/// Nanoseconds, as Go's durations are encoded.
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The inverse of [`nanos`]; a negative duration is refused.
pub(crate) fn duration(nanos: i64, what: &str) -> Result<Duration> {
    let nanos = u64::try_from(nanos)
        .map_err(|_| ApiError::bad_request(format!("{what} cannot be negative: {nanos}")))?;
    Ok(Duration::from_nanos(nanos))
}

/// `None` for what Go's `omitempty` leaves out.
pub(crate) fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}
