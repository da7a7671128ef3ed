//! The default backend: one redb file in the data directory, one manager.
//!
//! A thread of its own owns the file. It takes all commits that are waiting, applies them in one
//! transaction and answers them after one fsync, so that many small commits cost little.
//!
//! After a transaction that failed (a full disk), the file is opened again for the next request: nothing has to be
//! started anew once there is room.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use crate::compare::{Revisions, first_unmet};
use crate::history::History;
use crate::{CommitError, Conflict, Error, Expect, Fence, Record, Store, Watch, Write};

/// The newest layout of the file that this build reads and writes.
pub const SCHEMA: u64 = 1;

/// Commits that may wait for the thread before committing blocks.
const WAITING_MAX: usize = 256;
/// redb's page cache, in bytes. Readers go through the typed cache, so a small one does.
const CACHE_BYTES: usize = 8 << 20;
/// Between two attempts to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// key → (revision, value)
const RECORDS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("records");
/// `schema` and `revision`
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// What the thread is asked to do.
enum Request {
    List { prefix: String, reply: oneshot::Sender<Result<(u64, Vec<Record>), Error>> },
    Commit(Commit),
    Close { reply: oneshot::Sender<()> },
}

struct Commit {
    expect: Vec<Expect>,
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<u64, CommitError>>,
}

/// A store in one local file.
pub struct Embedded {
    requests: mpsc::Sender<Request>,
    history: Arc<History>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What only the thread touches.
struct Keeper {
    path: PathBuf,
    /// Or why there is none.
    database: Result<Database, Failure>,
    /// Of the last durable commit.
    revision: u64,
    history: Arc<History>,
}

/// A transaction that failed: what is on disk is known only after opening the file again.
struct Failure {
    reason: String,
    tried: Instant,
    /// What may be on disk all the same, by revision.
    group: Vec<(u64, Vec<Write>)>,
}

impl Embedded {
    /// Opens the store, or makes an empty one. The file is locked: a second opening is refused.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let own = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&own)).await;
        let (database, revision) = opened.map_err(|error| Error::Failed(error.to_string()))??;
        let history = History::new(revision);
        let path = path.to_owned();
        let keeper = Keeper { path, database: Ok(database), revision, history: history.clone() };
        let (requests, inbox) = mpsc::channel(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || keeper.run(inbox))
            .map_err(|error| Error::Failed(error.to_string()))?;
        Ok(Self { requests, history, thread: Mutex::new(Some(thread)) })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Record>), Error> {
        self.ask(|reply| Request::List { prefix: prefix.to_owned(), reply }).await?
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.history.clone().watch(prefix, after)
    }

    async fn commit(&self, expect: Vec<Expect>, writes: Vec<Write>) -> Result<u64, CommitError> {
        self.ask(|reply| Request::Commit(Commit { expect, writes, reply })).await?
    }

    /// The file lock keeps other processes out, so every campaign wins at once; `ttl` is not needed.
    async fn campaign(&self, name: &str, _ttl: Duration) -> Result<Fence, Error> {
        let key = format!("leader/{name}");
        let write = Write::Put { key: key.clone(), value: Bytes::new() };
        match self.commit(Vec::new(), vec![write]).await {
            Ok(revision) => Ok(Fence { key, revision }),
            Err(CommitError::Store(error)) => Err(error),
            Err(CommitError::Conflict(conflict)) => Err(Error::Failed(conflict.to_string())),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        let closed = self.ask(|reply| Request::Close { reply }).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread has answered or is gone: this does not wait for work.
            thread.join().map_err(|_| Error::Failed("the store's thread panicked".into()))?;
        }
        match closed {
            Ok(()) | Err(Error::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn open(path: &Path) -> Result<(Database, u64), Error> {
    let failed = |source: redb::Error| Error::Open { path: path.to_owned(), source: Box::new(source) };
    let database =
        Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
            error => failed(error.into()),
        })?;
    let revision = prepare(&database).map_err(|error| match error {
        PrepareError::NewerSchema(found) => {
            Error::NewerSchema { path: PathBuf::from(path), found, supported: SCHEMA }
        }
        PrepareError::Database(error) => failed(error),
    })?;
    Ok((database, revision))
}

enum PrepareError {
    NewerSchema(u64),
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for PrepareError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// Refuses what a newer build wrote, and makes the tables of an empty file; the store's revision.
fn prepare(database: &Database) -> Result<u64, PrepareError> {
    let transaction = database.begin_write()?;
    let revision = {
        let mut meta = transaction.open_table(META)?;
        let schema = meta.get("schema")?.map(|value| value.value());
        match schema {
            Some(found) if found > SCHEMA => return Err(PrepareError::NewerSchema(found)),
            Some(_) => {}
            None => {
                meta.insert("schema", SCHEMA)?;
            }
        }
        transaction.open_table(RECORDS)?;
        meta.get("revision")?.map_or(0, |value| value.value())
    };
    transaction.commit()?;
    Ok(revision)
}

impl Keeper {
    fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(request) = inbox.blocking_recv() else { break };
            let mut commits = Vec::new();
            let mut next = Some(request);
            while let Some(request) = next.take() {
                match request {
                    Request::Commit(commit) => commits.push(commit),
                    Request::List { prefix, reply } => {
                        // A list must see the commits that came before it.
                        self.commit_group(std::mem::take(&mut commits));
                        let listed = self.list(&prefix).map_err(Error::Failed);
                        // The asker may have gone away.
                        let _ = reply.send(listed);
                    }
                    Request::Close { reply } => {
                        closing = Some(reply);
                        break;
                    }
                }
                next = if commits.len() < WAITING_MAX { inbox.try_recv().ok() } else { None };
            }
            self.commit_group(commits);
        }
        self.history.close();
        drop(inbox);
        // Closing before answering: whoever waits may open the file again at once.
        if let Err(error) = self.database.map_or(Ok(()), |database| database.close()) {
            tracing::warn!(%error, "the store did not close cleanly");
        }
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    /// The file and its revision; opened again if a transaction failed, or why it cannot be.
    fn usable(&mut self) -> Result<(&Database, u64), String> {
        if let Err(failure) = &mut self.database {
            if failure.tried.elapsed() < REOPEN_PAUSE {
                return Err(failure.reason.clone());
            }
            failure.tried = Instant::now();
            let (database, revision) = open(&self.path).map_err(|error| {
                tracing::debug!(%error, "the store cannot be opened again");
                failure.reason.clone()
            })?;
            let group = std::mem::take(&mut failure.group);
            // All of the last group is there, or nothing of it.
            if group.last().is_some_and(|(last, _)| *last == revision) {
                self.revision = revision;
                group.into_iter().for_each(|(revision, writes)| self.history.push(revision, writes));
            }
            if revision != self.revision {
                let changed = format!("the store is at revision {revision} and was at {}", self.revision);
                tracing::error!("{changed}");
                return Err(changed);
            }
            tracing::info!(revision, "the store is open again");
            self.database = Ok(database);
        }
        let database = self.database.as_ref().map_err(|failure| failure.reason.clone())?;
        Ok((database, self.revision))
    }

    fn fail(&mut self, error: &redb::Error, group: Vec<(u64, Vec<Write>)>) {
        tracing::error!(%error, "the store cannot be written");
        // The file's lock goes with this, so that it can be opened again.
        self.database = Err(Failure { reason: error.to_string(), tried: Instant::now(), group });
    }

    fn list(&mut self, prefix: &str) -> Result<(u64, Vec<Record>), String> {
        let (database, revision) = self.usable()?;
        Ok((revision, read_all(database, prefix).map_err(|error| error.to_string())?))
    }

    /// Applies commits in their order, makes them durable together, then answers them.
    fn commit_group(&mut self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        let mut outcomes = Vec::new();
        let written = match self.usable() {
            Ok((database, before)) => write_group(database, before, &commits, &mut outcomes),
            Err(reason) => return refuse(commits, &reason),
        };
        match written {
            Ok(()) => {
                for (commit, outcome) in commits.into_iter().zip(outcomes) {
                    if let Ok(revision) = outcome {
                        self.revision = revision;
                        self.history.push(revision, commit.writes);
                    }
                    let _ = commit.reply.send(outcome.map_err(CommitError::from));
                }
            }
            Err(error) => {
                let group = commits.iter().zip(outcomes);
                let group =
                    group.filter_map(|(commit, outcome)| Some((outcome.ok()?, commit.writes.clone())));
                self.fail(&error, group.collect());
                refuse(commits, &error.to_string());
            }
        }
    }
}

fn refuse(commits: Vec<Commit>, reason: &str) {
    for commit in commits {
        let _ = commit.reply.send(Err(Error::Failed(reason.to_owned()).into()));
    }
}

/// All records whose key has this prefix.
fn read_all(database: &Database, prefix: &str) -> Result<Vec<Record>, redb::Error> {
    let transaction = database.begin_read()?;
    let records = transaction.open_table(RECORDS)?;
    let mut listed = Vec::new();
    for entry in records.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        let (revision, value) = value.value();
        let value = Bytes::copy_from_slice(value);
        listed.push(Record { key: key.value().to_owned(), value, revision });
    }
    Ok(listed)
}

/// One transaction on top of this revision; what each of the commits comes to.
fn write_group(
    database: &Database,
    before: u64,
    commits: &[Commit],
    outcomes: &mut Vec<Result<u64, Conflict>>,
) -> Result<(), redb::Error> {
    let transaction: WriteTransaction = database.begin_write()?;
    let mut revision = before;
    {
        let mut records = transaction.open_table(RECORDS)?;
        for commit in commits {
            outcomes.push(match first_unmet(&records, &commit.expect)? {
                Some(expected) => Err(Conflict { expected }),
                None => {
                    revision += 1;
                    write(&mut records, &commit.writes, revision)?;
                    Ok(revision)
                }
            });
        }
        transaction.open_table(META)?.insert("revision", revision)?;
    }
    if revision == before {
        transaction.abort()?
    } else {
        transaction.commit()?
    }
    Ok(())
}

type Records<'a> = Table<'a, &'static str, (u64, &'static [u8])>;

fn write(records: &mut Records<'_>, writes: &[Write], revision: u64) -> Result<(), redb::Error> {
    for write in writes {
        match write {
            Write::Put { key, value } => {
                records.insert(key.as_str(), (revision, value.as_ref()))?;
            }
            Write::Delete { key } => {
                records.remove(key.as_str())?;
            }
        }
    }
    Ok(())
}

impl Revisions for Records<'_> {
    type Error = redb::Error;

    fn of(&self, key: &str) -> Result<Option<u64>, redb::Error> {
        Ok(self.get(key)?.map(|value| value.value().0))
    }

    fn any_newer(&self, prefix: &str, after: u64) -> Result<bool, redb::Error> {
        for entry in self.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if value.value().0 > after {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
