//! The cluster store: a revisioned, watchable key–value store with compare-and-commit, and the typed
//! cache that everything else reads.
//!
//! The model is etcd's: every commit has a revision of its own, every record carries the revision of
//! its last change, a watch replays the commits after a revision or says that there is a gap.
#![forbid(unsafe_code)]

mod compare;
mod embedded;
mod history;
mod state;
mod store;

pub use compare::{Revisions, first_unmet};
pub use embedded::{Embedded, SCHEMA};
pub use state::{State, UnreadableRecord};
pub use store::{CommitError, Conflict, Error, Event, Expect, Fence, Record, Store, Watch, Watched, Write};
