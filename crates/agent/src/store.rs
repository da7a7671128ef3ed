//! `node.redb`: what a node must know again after a restart, without asking a manager.
//!
//! Everything in it can be rebuilt from containerd and the manager, so a file that cannot be read is
//! set aside and not fatal. After a write that failed (a full disk), the file is opened again for the next one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, NetworkId, NetworkTable, Task, TaskId};

use crate::local::LocalNetwork;
use crate::plain::PlainRecord;
use crate::task::Progress;
use crate::volumes::Volume;
use crate::{Error, Membership, Result, lock};

/// Layout of the file. A newer one is refused, not set aside: its daemon may come back.
const SCHEMA: u64 = 1;

type Rows = TableDefinition<'static, &'static str, &'static [u8]>;
const META: Rows = TableDefinition::new("meta");
const TASKS: Rows = TableDefinition::new("tasks");
const TABLES: Rows = TableDefinition::new("tables");
const CONTAINERS: Rows = TableDefinition::new("containers");
const VOLUMES: Rows = TableDefinition::new("volumes");
const NETWORKS: Rows = TableDefinition::new("networks");

/// One task as this node has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    /// The assignment last received.
    pub task: Task,
    /// `false` once the manager has taken the assignment back: stop it and forget it.
    pub assigned: bool,
    pub container: ContainerId,
    pub progress: Progress,
}

/// All that is in the file.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub membership: Option<Membership>,
    pub tasks: Vec<TaskRecord>,
    pub tables: Vec<NetworkTable>,
    /// Containers of no task.
    pub containers: Vec<PlainRecord>,
    pub volumes: Vec<Volume>,
    /// Networks of this node alone.
    pub networks: Vec<LocalNetwork>,
    /// The file could not be read, and this is a new one.
    pub rebuilt: bool,
}

#[derive(Clone)]
pub(crate) struct NodeStore {
    path: PathBuf,
    /// `None` after a write that failed.
    database: Arc<Mutex<Option<Database>>>,
}

impl NodeStore {
    /// Opens the file, or a new one in its place when it cannot be read.
    pub(crate) fn open(path: &Path) -> Result<(Self, Stored)> {
        match Self::read(path) {
            Ok(opened) => Ok(opened),
            Err(ReadError::Fatal(error)) => Err(error),
            Err(ReadError::Unreadable(reason)) => {
                let aside = path.with_extension(format!("corrupt-{}", jiff::Timestamp::now().as_second()));
                tracing::warn!(path = %path.display(), aside = %aside.display(), %reason,
                    "node store cannot be read: set aside, rebuilding it from containerd and the manager");
                std::fs::rename(path, &aside).map_err(Error::io("set aside", path))?;
                let opened = Self::read(path).map_err(|error| match error {
                    ReadError::Fatal(error) => error,
                    ReadError::Unreadable(reason) => Error::Store {
                        path: path.to_owned(),
                        source: Box::new(redb::Error::Corrupted(reason)),
                    },
                });
                opened.map(|(store, stored)| (store, Stored { rebuilt: true, ..stored }))
            }
        }
    }

    fn read(path: &Path) -> Result<(Self, Stored), ReadError> {
        let database = Database::create(path).map_err(|error| ReadError::from_open(path, error))?;
        let damaged = |error: redb::Error| ReadError::Unreadable(error.to_string());
        let schema = prepare(&database).map_err(damaged)?;
        if schema > SCHEMA {
            return Err(ReadError::Fatal(Error::NewerSchema {
                path: path.to_owned(),
                found: schema,
                known: SCHEMA,
            }));
        }
        let stored = Stored {
            membership: rows_of(&database, META)
                .map_err(damaged)?
                .into_iter()
                .find_map(|(key, value)| (key == "membership").then(|| parse::<Membership>(&value)))
                .transpose()?,
            tasks: all(&database, TASKS)?,
            tables: all(&database, TABLES)?,
            containers: all(&database, CONTAINERS)?,
            volumes: all(&database, VOLUMES)?,
            networks: all(&database, NETWORKS)?,
            rebuilt: false,
        };
        let database = Arc::new(Mutex::new(Some(database)));
        Ok((Self { path: path.to_owned(), database }, stored))
    }

    pub(crate) async fn put_membership(&self, membership: &Membership) -> Result<()> {
        self.put(META, "membership", membership).await
    }

    /// The same for a membership that changed; one that was given up meanwhile does not come back.
    pub(crate) async fn update_membership(&self, membership: &Membership) -> Result<()> {
        let value = shoal_protocol::encode(membership);
        self.write(move |write| {
            let mut meta = write.open_table(META)?;
            if meta.get("membership")?.is_some() {
                meta.insert("membership", value.as_ref())?;
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn put_task(&self, record: &TaskRecord) -> Result<()> {
        self.put(TASKS, record.task.id.as_str(), record).await
    }

    pub(crate) async fn remove_task(&self, id: &TaskId) -> Result<()> {
        self.remove(TASKS, id.as_str()).await
    }

    pub(crate) async fn put_table(&self, table: &NetworkTable) -> Result<()> {
        self.put(TABLES, table.network.as_str(), table).await
    }

    pub(crate) async fn remove_table(&self, id: &NetworkId) -> Result<()> {
        self.remove(TABLES, id.as_str()).await
    }

    pub(crate) async fn put_container(&self, record: &PlainRecord) -> Result<()> {
        self.put(CONTAINERS, record.id.as_str(), record).await
    }

    pub(crate) async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.remove(CONTAINERS, id.as_str()).await
    }

    pub(crate) async fn put_volume(&self, volume: &Volume) -> Result<()> {
        self.put(VOLUMES, &volume.name, volume).await
    }

    pub(crate) async fn remove_volume(&self, name: &str) -> Result<()> {
        self.remove(VOLUMES, name).await
    }

    pub(crate) async fn put_network(&self, network: &LocalNetwork) -> Result<()> {
        self.put(NETWORKS, network.id.as_str(), network).await
    }

    pub(crate) async fn remove_network(&self, id: &NetworkId) -> Result<()> {
        self.remove(NETWORKS, id.as_str()).await
    }

    /// Forgets the cluster: membership, assignments, tables.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.write(|write| {
            write.open_table(META)?.remove("membership")?;
            write.open_table(TASKS)?.retain(|_, _| false)?;
            write.open_table(TABLES)?.retain(|_, _| false)?;
            Ok(())
        })
        .await
    }

    async fn put<T: Serialize>(&self, rows: Rows, key: &str, value: &T) -> Result<()> {
        let (key, value) = (key.to_owned(), shoal_protocol::encode(value));
        self.write(move |write| {
            write.open_table(rows)?.insert(key.as_str(), value.as_ref())?;
            Ok(())
        })
        .await
    }

    async fn remove(&self, rows: Rows, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.write(move |write| {
            write.open_table(rows)?.remove(key.as_str())?;
            Ok(())
        })
        .await
    }

    /// One durable transaction, off the async threads: it waits for the disk.
    async fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<()> {
        let (path, held) = (self.path.clone(), self.database.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            let mut held = lock(&held);
            // What is on disk after a failure is known only after opening the file again.
            let database = match held.take() {
                Some(database) => database,
                None => Database::create(path)?,
            };
            let write = database.begin_write()?;
            change(&write)?;
            write.commit()?;
            *held = Some(database);
            Ok::<_, redb::Error>(())
        })
        .await;
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(Error::Store { path: self.path.clone(), source: Box::new(source) }),
            Err(_) => Err(Error::Closed),
        }
    }
}

/// Makes the tables of a new file; returns the schema.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let write = database.begin_write()?;
    let schema = {
        write.open_table(TASKS)?;
        write.open_table(TABLES)?;
        write.open_table(CONTAINERS)?;
        write.open_table(VOLUMES)?;
        write.open_table(NETWORKS)?;
        let mut meta = write.open_table(META)?;
        let known = meta.get("schema")?.and_then(|value| serde_json::from_slice(value.value()).ok());
        match known {
            Some(schema) => schema,
            None => {
                meta.insert("schema", SCHEMA.to_string().as_bytes())?;
                SCHEMA
            }
        }
    };
    write.commit()?;
    Ok(schema)
}

fn rows_of(database: &Database, rows: Rows) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let read = database.begin_read()?;
    let table = read.open_table(rows)?;
    let mut found = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        found.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(found)
}

fn all<T: DeserializeOwned>(database: &Database, rows: Rows) -> Result<Vec<T>, ReadError> {
    let rows = rows_of(database, rows).map_err(|error| ReadError::Unreadable(error.to_string()))?;
    rows.iter().map(|(_, value)| parse(value)).collect()
}

enum ReadError {
    /// The file is fine, or may be: leave it alone.
    Fatal(Error),
    Unreadable(String),
}

impl ReadError {
    fn from_open(path: &Path, error: DatabaseError) -> Self {
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        match error {
            DatabaseError::DatabaseAlreadyOpen => {
                Self::Fatal(Error::Locked(path.parent().unwrap_or(path).to_owned()))
            }
            // A full or forbidden disk says nothing about the file.
            DatabaseError::Storage(StorageError::Io(ref io))
                if !matches!(io.kind(), InvalidData | UnexpectedEof) =>
            {
                Self::Fatal(Error::Store { path: path.to_owned(), source: Box::new(error.into()) })
            }
            error => Self::Unreadable(error.to_string()),
        }
    }
}

fn parse<T: DeserializeOwned>(value: &[u8]) -> Result<T, ReadError> {
    shoal_protocol::decode(value).map_err(|error| ReadError::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.redb");
        let record = TaskRecord {
            task: testing::task("t1"),
            assigned: true,
            container: ContainerId::new("c1"),
            progress: Progress::of(&testing::task("t1")),
        };
        let table = testing::table("n1", 3);
        {
            let (store, stored) = NodeStore::open(&path).unwrap();
            assert!(stored.tasks.is_empty() && stored.membership.is_none());
            store.put_membership(&testing::membership()).await.unwrap();
            store.put_task(&record).await.unwrap();
            store.put_table(&table).await.unwrap();
        }
        let (store, stored) = NodeStore::open(&path).unwrap();
        assert_eq!(stored.membership, Some(testing::membership()));
        assert_eq!(stored.tasks, [record]);
        assert_eq!(stored.tables, [table]);
        store.leave().await.unwrap();
        drop(store);
        let (_, stored) = NodeStore::open(&path).unwrap();
        assert!(stored.tasks.is_empty() && stored.tables.is_empty() && stored.membership.is_none());
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        for rubbish in [&b"not a database at all"[..], &[0; 8192], b""] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("node.redb");
            std::fs::write(&path, rubbish).unwrap();
            let (_, stored) = NodeStore::open(&path).unwrap();
            assert!(stored.tasks.is_empty());
            let kept = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(kept, if rubbish.is_empty() { 1 } else { 2 }, "the old file is kept");
        }
    }

    #[tokio::test]
    async fn a_membership_that_was_given_up_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.redb");
        let changed = Membership { node: "other".into(), ..testing::membership() };
        {
            let (store, _) = NodeStore::open(&path).unwrap();
            store.put_membership(&testing::membership()).await.unwrap();
            store.update_membership(&changed).await.unwrap();
        }
        {
            let (store, stored) = NodeStore::open(&path).unwrap();
            assert_eq!(stored.membership, Some(changed.clone()));
            store.leave().await.unwrap();
            store.update_membership(&changed).await.unwrap();
        }
        assert_eq!(NodeStore::open(&path).unwrap().1.membership, None);
    }

    #[tokio::test]
    async fn a_row_nobody_can_read_sets_the_file_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.redb");
        {
            let (store, _) = NodeStore::open(&path).unwrap();
            store.put(TASKS, "t1", &"not a task").await.unwrap();
        }
        let (_, stored) = NodeStore::open(&path).unwrap();
        assert!(stored.tasks.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.redb");
        {
            let (store, _) = NodeStore::open(&path).unwrap();
            store.put(META, "schema", &(SCHEMA + 1)).await.unwrap();
        }
        assert!(matches!(NodeStore::open(&path), Err(Error::NewerSchema { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_store_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.redb");
        let _first = NodeStore::open(&path).unwrap();
        assert!(matches!(NodeStore::open(&path), Err(Error::Locked(_))));
    }
}
