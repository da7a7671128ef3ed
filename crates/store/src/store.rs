//! What every backend offers.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// One stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    pub value: Bytes,
    /// Revision of the commit that last wrote it.
    pub revision: u64,
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

/// What must hold for a commit to happen; all of them are compared before anything is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    At(String, u64),
    /// The key exists.
    Exists(String),
    /// No key with this prefix was written after this revision. (Deletions are not seen.)
    NoneNewer(String, u64),
}

/// What a commit did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(Record),
    Delete { key: String },
}

/// One step of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// What one commit did to the watched keys. Commits that did not touch them are left out.
    Changes { revision: u64, events: Vec<Event> },
    /// The history does not reach back to where the watch stands: list again. The watch ends.
    Gap,
}

/// The steps of a watch. It ends after a gap and when the store closes.
pub type Watch = BoxStream<'static, Watched>;

/// Proof of leadership: every commit of a leader expects it, so that an old leader cannot write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub key: String,
    pub revision: u64,
}

impl Fence {
    pub fn expect(&self) -> Expect {
        Expect::At(self.key.clone(), self.revision)
    }
}

/// A store that cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("the store {path} has schema {found}, this build reads up to {supported}: use a newer build")]
    NewerSchema { path: PathBuf, found: u64, supported: u64 },
    #[error("cannot open the store {path}")]
    Open { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the store failed: {0}")]
    Failed(String),
    #[error("the store is closed")]
    Closed,
}

/// The first expectation that did not hold. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("commit refused: expected {expected:?}")]
pub struct Conflict {
    pub expected: Expect,
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Store(#[from] Error),
}

/// A revisioned key–value store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// All records whose key has this prefix, in key order, and the revision they were read at.
    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Record>), Error>;

    /// The commits after revision `after`, in order.
    fn watch(&self, prefix: &str, after: u64) -> Watch;

    /// Compares, then writes, atomically and durably; the revision of the commit.
    async fn commit(&self, expect: Vec<Expect>, writes: Vec<Write>) -> Result<u64, CommitError>;

    /// Becomes the leader called `name`, and makes every older fence of that name invalid. `ttl` is
    /// how long a leader that went away silently keeps others out.
    async fn campaign(&self, name: &str, ttl: Duration) -> Result<Fence, Error>;

    /// Lets go of everything (files, locks, connections) and returns when that is done.
    async fn close(&self) -> Result<(), Error>;
}
