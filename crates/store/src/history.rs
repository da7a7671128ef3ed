//! The last commits, kept in memory for watches.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use tokio::sync::watch;

use crate::{Event, Record, Watch, Watched, Write};

/// Commits that a watch may lag behind before it sees a gap.
const COMMITS_MAX: usize = 8192;

/// One commit as it was written.
struct Commit {
    revision: u64,
    events: Vec<Event>,
}

struct Window {
    /// Every commit after this revision is in `commits`.
    floor: u64,
    commits: VecDeque<Arc<Commit>>,
}

/// Written by the store's thread, read by any number of watches.
pub(crate) struct History {
    window: Mutex<Window>,
    /// The newest revision; dropped when the store closes.
    newest: Mutex<Option<watch::Sender<u64>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl History {
    pub(crate) fn new(revision: u64) -> Arc<Self> {
        Arc::new(Self {
            window: Mutex::new(Window { floor: revision, commits: VecDeque::new() }),
            newest: Mutex::new(Some(watch::Sender::new(revision))),
        })
    }

    /// Adds a commit that is durable.
    pub(crate) fn push(&self, revision: u64, writes: Vec<Write>) {
        let events = writes
            .into_iter()
            .map(|write| match write {
                Write::Put { key, value } => Event::Put(Record { key, value, revision }),
                Write::Delete { key } => Event::Delete { key },
            })
            .collect();
        let mut window = lock(&self.window);
        window.commits.push_back(Arc::new(Commit { revision, events }));
        if window.commits.len() > COMMITS_MAX
            && let Some(dropped) = window.commits.pop_front()
        {
            window.floor = dropped.revision;
        }
        drop(window);
        if let Some(newest) = &*lock(&self.newest) {
            newest.send_replace(revision);
        }
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        lock(&self.newest).take();
    }

    /// The first commit after `after`: `Err` when the history does not reach back that far.
    fn next(&self, after: u64) -> Result<Option<Arc<Commit>>, ()> {
        let window = lock(&self.window);
        if after < window.floor {
            return Err(());
        }
        let index = window.commits.partition_point(|commit| commit.revision <= after);
        Ok(window.commits.get(index).cloned())
    }

    pub(crate) fn watch(self: Arc<Self>, prefix: &str, after: u64) -> Watch {
        struct Cursor {
            history: Arc<History>,
            prefix: String,
            after: u64,
            /// `None`: the watch has ended.
            newest: Option<watch::Receiver<u64>>,
        }
        let newest = lock(&self.newest).as_ref().map(watch::Sender::subscribe);
        let cursor = Cursor { history: self, prefix: prefix.to_owned(), after, newest };
        futures::stream::unfold(cursor, |mut cursor| async move {
            loop {
                match cursor.history.next(cursor.after) {
                    Err(()) => {
                        cursor.newest.take()?;
                        return Some((Watched::Gap, cursor));
                    }
                    Ok(Some(commit)) => {
                        cursor.after = commit.revision;
                        let events = matching(&commit.events, &cursor.prefix);
                        if !events.is_empty() {
                            return Some((Watched::Changes { revision: commit.revision, events }, cursor));
                        }
                    }
                    Ok(None) => {
                        let after = cursor.after;
                        cursor.newest.as_mut()?.wait_for(|newest| *newest > after).await.ok()?;
                    }
                }
            }
        })
        .boxed()
    }
}

fn matching(events: &[Event], prefix: &str) -> Vec<Event> {
    let key = |event: &Event| match event {
        Event::Put(record) => record.key.starts_with(prefix),
        Event::Delete { key } => key.starts_with(prefix),
    };
    events.iter().filter(|event| key(event)).cloned().collect()
}
